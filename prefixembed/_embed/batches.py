"""Batches: which texts go through the backbone together, and how they are laid out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefixembed._embed.texts import Text
from prefixembed._embed.tokens import Tokens
from prefixembed._model.batch import Batch


def first_positions(texts: Sequence[Text]) -> NDArray[np.intp]:
    """Return the position of the first equal text of each text: its own, if it is no repetition."""
    positions: dict[Text, int] = {}
    return np.fromiter(
        (positions.setdefault(text, k) for k, text in enumerate(texts)), np.intp, len(texts)
    )


def expand(positions: NDArray[np.intp], ends: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the positions of the vectors of some texts that have any number of vectors each.

    Parameters
    ----------
    positions : ndarray
        Positions of texts.
    ends : ndarray of shape (n_texts,)
        Position after the last vector of each text; vectors lie in the order of texts.

    Returns
    -------
    rows : ndarray
        Positions of their vectors, text by text.
    """
    sizes = np.diff(ends, prepend=0)[positions]
    starts = np.cumsum(sizes) - sizes
    return np.repeat(ends[positions] - sizes - starts, sizes) + np.arange(sizes.sum())


def word_slots(tokens: Tokens, positions: NDArray[np.intp], width: int) -> NDArray[np.int64]:
    """Return the number of each token's word; the words of a batch are numbered row by row.

    Parameters
    ----------
    tokens : Tokens
        Sentences in words.
    positions : ndarray of shape (batch,)
        Positions of the sentences in the batch.
    width : int
        Number of positions of the padded batch.

    Returns
    -------
    slots : int64 ndarray of shape (batch, width)
        -1 for padding and for tokens that belong to no word.
    """
    assert tokens.words is not None
    slots = np.full((len(positions), width), -1, dtype=np.int64)
    starts = np.cumsum(tokens.n_vectors[positions]) - tokens.n_vectors[positions]
    for row, (position, start) in enumerate(zip(positions, starts, strict=True)):
        words = tokens.words[position]
        slots[row, : len(words)] = np.where(words < 0, -1, words + start)
    return slots


def plan_batches(
    lengths: NDArray[np.intp], batch_tokens: int, n_texts: NDArray[np.intp] | None = None
) -> list[NDArray[np.intp]]:
    """Group texts of similar length so that no padded batch exceeds a budget of tokens.

    Parameters
    ----------
    lengths : ndarray of shape (n_rows,)
        Number of tokens of each text, or of the longest text of each row.
    batch_tokens : int
        Budget. A text longer than the budget gets a batch of its own.
    n_texts : ndarray of shape (n_rows,), default=None
        Number of texts of each row, if the texts of a row must stay together. None for one each.

    Returns
    -------
    batches : list of ndarray
        Positions into `lengths`. The longest texts come first, so that a lack of memory shows
        early.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.arange(1, len(order) + 1) if n_texts is None else np.cumsum(n_texts[order])
    batches: list[NDArray[np.intp]] = []
    start, done = 0, 0
    while start < len(order):
        most = batch_tokens // max(1, int(lengths[order[start]]))
        stop = max(start + 1, int(np.searchsorted(ends, done + most, side="right")))
        batches.append(order[start:stop])
        start, done = stop, int(ends[stop - 1])
    return batches


def shuffle_batches(
    lengths: NDArray[np.intp], batch_size: int, rng: np.random.Generator
) -> list[NDArray[np.intp]]:
    """Split shuffled texts into batches of similar length, to save padding.

    Texts are sorted within random groups of 32 batches only, so that batches stay random.

    Parameters
    ----------
    lengths : ndarray of shape (n_texts,)
        Number of tokens of each text.
    batch_size : int
        Number of texts per batch; the last one may be smaller.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    batches : list of ndarray
        Each position once, in random order.
    """
    order = rng.permutation(len(lengths))
    group = 32 * batch_size
    batches: list[NDArray[np.intp]] = []
    for start in range(0, len(order), group):
        some = order[start : start + group]
        some = some[np.argsort(lengths[some], kind="stable")]
        batches += [some[k : k + batch_size] for k in range(0, len(some), batch_size)]
    return [batches[k] for k in rng.permutation(len(batches))]


def pad_batch(tokens: Tokens, positions: NDArray[np.intp], pad_id: int) -> Batch:
    """Lay texts out in one rectangle, padded on the right.

    Parameters
    ----------
    tokens : Tokens
        All texts.
    positions : ndarray of shape (batch,)
        Positions of the texts in the batch.
    pad_id : int
        Id of the backbone's padding token.

    Returns
    -------
    batch : Batch
        Rows in the order of `positions`.
    """
    rows = [tokens.ids[k] for k in positions]
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    type_ids = np.zeros_like(ids)
    mask = np.zeros(ids.shape, dtype=np.bool_)
    for k, (row, segments) in enumerate(
        zip(rows, (tokens.type_ids[k] for k in positions), strict=True)
    ):
        ids[k, : len(row)] = row
        type_ids[k, : len(row)] = segments
        mask[k, : len(row)] = True
    return Batch(ids, type_ids, None if mask.all() else mask)
