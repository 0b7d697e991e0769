"""How texts become tokens, and how tokens become batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from prefixembed._embed.texts import (
    PAIR_WIDTH,
    Text,
    Words,
    clean,
    is_pairs,
    split_pairs,
    vector_counts,
)

# Rust tokenizes a chunk in parallel; its Encoding objects are some 20 times the size of the ids,
# so they are let go chunk by chunk.
_CHUNK = 2048

_PARALLELISM = "TOKENIZERS_PARALLELISM"
_set_for_fork = False


def _before_fork() -> None:
    # A forked child has none of the threads that tokenizers runs on. Unless the user has said
    # what to do, the child is to do without, and tokenizers is not to print a warning.
    global _set_for_fork
    if _PARALLELISM not in os.environ:
        os.environ[_PARALLELISM] = "false"
        _set_for_fork = True


def _after_fork_in_parent() -> None:
    global _set_for_fork
    if _set_for_fork:
        os.environ.pop(_PARALLELISM, None)
        _set_for_fork = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)


def first_positions(texts: Sequence[Text]) -> NDArray[np.intp]:
    """Find repeated texts.

    Parameters
    ----------
    texts : sequence of str or of (str, str)
        Any texts.

    Returns
    -------
    first : ndarray of shape (n_texts,)
        Where each text stands first: its own position, if it is no repetition.
    """
    positions: dict[Text, int] = {}
    return np.fromiter(
        (positions.setdefault(text, k) for k, text in enumerate(texts)), np.intp, len(texts)
    )


def expand(positions: NDArray[np.intp], ends: NDArray[np.intp]) -> NDArray[np.intp]:
    """Give the vectors of some texts, where each text has any number of them.

    Parameters
    ----------
    positions : ndarray
        Texts.
    ends : ndarray of shape (n_texts,)
        Behind the last vector of each text; vectors lie in the order of texts.

    Returns
    -------
    rows : ndarray
        Positions of their vectors, text by text.
    """
    sizes = np.diff(ends, prepend=0)[positions]
    starts = np.cumsum(sizes) - sizes
    return np.repeat(ends[positions] - sizes - starts, sizes) + np.arange(sizes.sum())


@dataclass(frozen=True)
class Tokens:
    """Token ids of texts, special tokens included and nothing padded.

    Parameters
    ----------
    ids : list of int32 ndarray
        One array a text.
    type_ids : list of int8 ndarray
        Segment of each token: 1 in the second text of a pair.
    truncated : bool ndarray of shape (n_texts,)
        Which texts were longer than the tokenizer's limit.
    words : list of int32 ndarray, default=None
        Of sentences in words, the word that each token belongs to, -1 for none.
    n_words : ndarray of shape (n_texts,), default=None
        Number of words of each sentence.
    second : Tokens, default=None
        Of pairs that are read apart, the second texts; the others are the first ones.
    """

    ids: list[NDArray[np.int32]]
    type_ids: list[NDArray[np.int8]]
    truncated: NDArray[np.bool_]
    words: list[NDArray[np.int32]] | None = None
    n_words: NDArray[np.intp] | None = None
    second: Tokens | None = None

    @property
    def lengths(self) -> NDArray[np.intp]:
        """Number of tokens of each text, or of both texts of a pair."""
        own = np.array([len(ids) for ids in self.ids], dtype=np.intp)
        return own if self.second is None else own + self.second.lengths

    @property
    def n_vectors(self) -> NDArray[np.intp]:
        """Number of vectors that each text gives: one, or one a word."""
        return np.ones(len(self.ids), dtype=np.intp) if self.n_words is None else self.n_words

    def take(self, positions: NDArray[np.intp]) -> Tokens:
        """Give the tokens of some texts."""
        ids, type_ids = ([part[k] for k in positions] for part in (self.ids, self.type_ids))
        words = None if self.words is None else [self.words[k] for k in positions]
        n_words = None if self.n_words is None else self.n_words[positions]
        second = None if self.second is None else self.second.take(positions)
        return Tokens(ids, type_ids, self.truncated[positions], words, n_words, second)

    def vector_width(self, n_features: int) -> int:
        """Give the length of the vectors that come of this, where those of a text have a length."""
        return n_features * (1 if self.second is None else PAIR_WIDTH)

    def sequences(self) -> Tokens:
        """Give what the backbone reads, each text of a pair that is read apart by itself."""
        if self.second is None:
            return self
        one, two = self, self.second
        cut = np.concatenate([one.truncated, two.truncated])
        return Tokens(one.ids + two.ids, one.type_ids + two.type_ids, cut)


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[Text], pairs: str = "joint", prompt: str = ""
) -> Tokens:
    """Tokenize in Rust, many texts at a time.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        With truncation on and padding off.
    texts : sequence of str, of (str, str) or of Words
        Lone surrogates, which are no Unicode text, are read as U+FFFD.
    pairs : {"joint", "apart"}, default="joint"
        Whether a pair is one sequence, or each of its texts one of its own.
    prompt : str, default=""
        Put before each text; of a pair that is one sequence, before the first one.

    Returns
    -------
    tokens : Tokens
        In the order of `texts`. A pair that is read apart is truncated if one of its texts is.

    Raises
    ------
    ValueError
        If words have a prompt.
    """
    if pairs == "apart" and is_pairs(texts):
        both = tokenize(tokenizer, split_pairs(texts), prompt=prompt)
        first = both.take(np.arange(len(texts)))
        second = both.take(np.arange(len(texts), 2 * len(texts)))
        return replace(first, truncated=first.truncated | second.truncated, second=second)
    if len(texts) and isinstance(texts[0], Words):
        if prompt:
            raise ValueError(f"prompt is for texts, and sentences in words have none: {prompt!r}")
        return _tokenize_words(tokenizer, texts)
    ids: list[NDArray[np.int32]] = []
    type_ids: list[NDArray[np.int8]] = []
    truncated: list[bool] = []
    for start in range(0, len(texts), _CHUNK):
        chunk = _prompted(texts[start : start + _CHUNK], prompt)
        try:
            encodings = tokenizer.encode_batch_fast(chunk)
        except TypeError:
            encodings = tokenizer.encode_batch_fast([_without_surrogates(text) for text in chunk])
        for encoding in encodings:
            ids.append(np.array(encoding.ids, dtype=np.int32))
            type_ids.append(np.array(encoding.type_ids, dtype=np.int8))
            truncated.append(bool(encoding.overflowing))
    return Tokens(ids, type_ids, np.array(truncated, dtype=np.bool_))


def tokenize_windows(
    tokenizer: Tokenizer, texts: Sequence[Any], prompt: str = ""
) -> tuple[Tokens, NDArray[np.intp]]:
    """Tokenize texts into as many windows as each needs, so that nothing is cut off.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        With truncation on, to the length of a window, and padding off.
    texts : sequence of str
        Texts, not pairs.
    prompt : str, default=""
        Put before each text, and so into its first window.

    Returns
    -------
    tokens : Tokens
        Of the windows, text by text; each has the special tokens of a text.
    n_windows : ndarray of shape (n_texts,)
        How many each text has.
    """
    tokens = Tokens([], [], np.zeros(0, dtype=np.bool_))
    n_windows = np.empty(len(texts), dtype=np.intp)
    for start in range(0, len(texts), _CHUNK):
        chunk = [clean(text) for text in _prompted(texts[start : start + _CHUNK], prompt)]
        for k, encoding in enumerate(tokenizer.encode_batch_fast(chunk), start):
            windows = [encoding, *encoding.overflowing]
            n_windows[k] = len(windows)
            tokens.ids.extend(np.array(window.ids, dtype=np.int32) for window in windows)
            tokens.type_ids.extend(np.array(window.type_ids, dtype=np.int8) for window in windows)
    return replace(tokens, truncated=np.zeros(len(tokens.ids), dtype=np.bool_)), n_windows


def _tokenize_words(tokenizer: Tokenizer, sentences: Sequence[Any]) -> Tokens:
    tokens = Tokens([], [], np.zeros(len(sentences), dtype=np.bool_), [], vector_counts(sentences))
    assert tokens.words is not None
    for start in range(0, len(sentences), _CHUNK):
        chunk = sentences[start : start + _CHUNK]
        # Not the fast variant, which leaves offsets out.
        encodings = tokenizer.encode_batch([sentence.text for sentence in chunk])
        for k, (sentence, encoding) in enumerate(zip(chunk, encodings, strict=True), start):
            tokens.ids.append(np.array(encoding.ids, dtype=np.int32))
            tokens.type_ids.append(np.array(encoding.type_ids, dtype=np.int8))
            tokens.truncated[k] = bool(encoding.overflowing)
            # A token is of the word of its last character: its first may be the space before.
            ends = np.array([end for _, end in encoding.offsets], dtype=np.intp)
            begins = np.array([begin for begin, _ in encoding.offsets], dtype=np.intp)
            # The last entry is for special tokens, which have no characters.
            of_characters = np.append(sentence.of_characters(), -1)
            words = of_characters[np.where(ends > begins, ends - 1, -1)]
            words[np.array(encoding.special_tokens_mask, dtype=np.bool_)] = -1
            tokens.words.append(words.astype(np.int32))
    return tokens


def word_slots(tokens: Tokens, positions: NDArray[np.intp], width: int) -> NDArray[np.int64]:
    """Give the number of each token's word, where words of a batch are counted row by row.

    Parameters
    ----------
    tokens : Tokens
        Of sentences in words.
    positions : ndarray of shape (batch,)
        Which of them.
    width : int
        Positions of the padded batch.

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


def _prompted(texts: Sequence[Text], prompt: str) -> list[Any]:
    if not prompt:
        return list(texts)
    return [
        prompt + text if isinstance(text, str) else (prompt + text[0], text[1]) for text in texts
    ]


def _without_surrogates(text: Text) -> Text:
    if isinstance(text, tuple):
        return clean(text[0]), clean(text[1])
    return clean(text)


def plan_batches(
    lengths: NDArray[np.intp], batch_tokens: int, n_texts: NDArray[np.intp] | None = None
) -> list[NDArray[np.intp]]:
    """Group texts of like length so that no padded batch holds more than a budget of tokens.

    Parameters
    ----------
    lengths : ndarray of shape (n_texts,)
        Tokens of each text.
    batch_tokens : int
        Budget. A text longer than it gets a batch of its own.
    n_texts : ndarray of shape (n_texts,), default=None
        Where rows of several texts stay together: how many each has, `lengths` being those of
        their longest. None for one each.

    Returns
    -------
    batches : list of ndarray
        Positions into `lengths`, longest texts first: what does not fit into memory shows early.
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


@dataclass(frozen=True)
class Batch:
    """Padded tokens of some texts.

    Parameters
    ----------
    ids : int64 ndarray of shape (batch, position)
        Token ids.
    type_ids : int64 ndarray of shape (batch, position)
        Segments.
    mask : bool ndarray of shape (batch, position) or None
        True where there is a token; None where nothing is padded.
    """

    ids: NDArray[np.int64]
    type_ids: NDArray[np.int64]
    mask: NDArray[np.bool_] | None


def pad_batch(tokens: Tokens, positions: NDArray[np.intp], pad_id: int) -> Batch:
    """Lay texts into one rectangle, padded on the right.

    Parameters
    ----------
    tokens : Tokens
        All texts.
    positions : ndarray of shape (batch,)
        Which of them.
    pad_id : int
        The backbone's padding token.

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


def shuffle_batches(
    lengths: NDArray[np.intp], batch_size: int, rng: np.random.Generator
) -> list[NDArray[np.intp]]:
    """Cut shuffled texts into batches of like length, so that little is spent on padding.

    Texts are sorted within random groups of 32 batches only: batches stay random.

    Parameters
    ----------
    lengths : ndarray of shape (n_texts,)
        Tokens of each text.
    batch_size : int
        Texts a batch; the last one may be smaller.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    batches : list of ndarray
        Every position once, in random order.
    """
    order = rng.permutation(len(lengths))
    group = 32 * batch_size
    batches: list[NDArray[np.intp]] = []
    for start in range(0, len(order), group):
        some = order[start : start + group]
        some = some[np.argsort(lengths[some], kind="stable")]
        batches += [some[k : k + batch_size] for k in range(0, len(some), batch_size)]
    return [batches[k] for k in rng.permutation(len(batches))]
