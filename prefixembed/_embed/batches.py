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
    """Return the rows of the vectors of some texts, where each text has any number of vectors.

    `ends` has, for each of all texts, the row after its last vector.
    """
    sizes = np.diff(ends, prepend=0)[positions]
    starts = np.cumsum(sizes) - sizes
    return np.repeat(ends[positions] - sizes - starts, sizes) + np.arange(sizes.sum())


def word_slots(tokens: Tokens, positions: NDArray[np.intp], width: int) -> NDArray[np.int64]:
    """Return each token's word, numbered over the batch, or -1: (batch, width)."""
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
    """Group rows of similar length so that no padded batch exceeds a budget of tokens.

    A row that is longer than the budget gets a batch of its own. The longest rows come first, so
    that a lack of memory shows early. `n_texts` has the number of texts of each row, if they must
    stay together; the length of a row is then that of its longest text. None for one text each.
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
    """Lay texts out in one rectangle, padded on the right."""
    longest = max(len(tokens.ids[k]) for k in positions)
    ids = np.full((len(positions), longest), pad_id, dtype=np.int64)
    type_ids = np.zeros_like(ids)
    mask = np.zeros(ids.shape, dtype=np.bool_)
    for row, k in enumerate(positions):
        length = len(tokens.ids[k])
        ids[row, :length] = tokens.ids[k]
        type_ids[row, :length] = tokens.type_ids[k]
        mask[row, :length] = True
    return Batch(ids, type_ids, None if mask.all() else mask)
