"""Batches: which texts go through the backbone together, and how they are laid out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefixembed._embed.texts import Text
from prefixembed._embed.tokens import Tokens
from prefixembed._model.batch import Batch

# Padded lengths where a batch has a fixed shape: multiples of one step up to a length, and of
# another beyond it. A fine ladder pads texts less, but leaves more batches to be filled up.
_FINE_STEP, _FINE_UP_TO, _COARSE_STEP = 8, 32, 32


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


def word_slots(
    tokens: Tokens, positions: NDArray[np.intp], shape: tuple[int, int]
) -> NDArray[np.int64]:
    """Return each token's word, numbered over the batch, or -1: (batch, position)."""
    assert tokens.words is not None
    slots = np.full(shape, -1, dtype=np.int64)
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


def padded_lengths(lengths: NDArray[np.intp], longest: int) -> NDArray[np.intp]:
    """Return the length that each text is padded to, which follows from its own length alone.

    No text has more than `longest` tokens, and none is padded beyond them.
    """
    steps = np.where(lengths <= _FINE_UP_TO, _FINE_STEP, _COARSE_STEP)
    padded: NDArray[np.intp] = np.minimum(-(-lengths // steps) * steps, longest)
    return np.maximum(padded, lengths)


def plan_fixed_batches(padded: NDArray[np.intp], batch_tokens: int) -> list[NDArray[np.intp]]:
    """Group rows of equal padded length, in batches of at most :func:`fixed_rows` rows.

    The longest rows come first, as in :func:`plan_batches`.
    """
    batches: list[NDArray[np.intp]] = []
    for length in np.unique(padded)[::-1]:
        rows = np.flatnonzero(padded == length)
        n_rows = fixed_rows(int(length), batch_tokens)
        batches += [rows[start : start + n_rows] for start in range(0, len(rows), n_rows)]
    return batches


def fixed_rows(length: int, batch_tokens: int) -> int:
    """Return the number of rows of every batch of texts that are padded to `length`."""
    return max(1, batch_tokens // length)


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


def pad_batch(
    tokens: Tokens,
    positions: NDArray[np.intp],
    pad_id: int,
    shape: tuple[int, int] | None = None,
) -> Batch:
    """Lay texts out in one rectangle, padded on the right.

    `shape` fixes its rows and positions: further rows have one token of padding each, and the mask
    is kept even if nothing is padded. None for the smallest rectangle.
    """
    longest = max(len(tokens.ids[k]) for k in positions)
    ids = np.full(shape or (len(positions), longest), pad_id, dtype=np.int64)
    type_ids = np.zeros_like(ids)
    mask = np.zeros(ids.shape, dtype=np.bool_)
    for row, k in enumerate(positions):
        length = len(tokens.ids[k])
        ids[row, :length] = tokens.ids[k]
        type_ids[row, :length] = tokens.type_ids[k]
        mask[row, :length] = True
    mask[len(positions) :, 0] = True  # a row without any token would be NaN
    return Batch(ids, type_ids, None if shape is None and mask.all() else mask)
