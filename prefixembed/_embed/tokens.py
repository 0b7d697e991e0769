"""Tokens: from checked texts to token ids."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefixembed._embed.texts import Text, Words, clean, is_pairs, split_pairs, vector_counts
from prefixembed.backbone import Backbone
from prefixembed.reading import PAIR_WIDTH, Reading

# The tokenizer works on a chunk in parallel. Its Encoding objects take some 20 times the memory
# of the ids, so they are released chunk by chunk.
_CHUNK = 2048

_PARALLELISM = "TOKENIZERS_PARALLELISM"
_set_for_fork = False


def _before_fork() -> None:
    # A forked child has none of the threads that tokenizers runs on. Unless the user decided
    # otherwise, the child does without them, and tokenizers prints no warning.
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


@dataclass(frozen=True)
class Tokens:
    """Token ids of texts, with special tokens and without padding.

    Parameters
    ----------
    ids : list of int32 ndarray
        One array per text.
    type_ids : list of int8 ndarray
        Segment of each token: 1 in the second text of a pair.
    truncated : bool ndarray of shape (n_texts,)
        Whether each text was longer than the limit of the tokenizer.
    words : list of int32 ndarray, default=None
        For sentences in words, the word of each token, or -1.
    n_words : ndarray of shape (n_texts,), default=None
        Number of words of each sentence.
    second : Tokens, default=None
        For pairs that are read apart, the second texts; the other fields hold the first ones.
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
        """Number of vectors per text: one, or one per word."""
        return np.ones(len(self.ids), dtype=np.intp) if self.n_words is None else self.n_words

    def take(self, positions: NDArray[np.intp]) -> Tokens:
        """Return the tokens of some texts."""
        ids, type_ids = ([part[k] for k in positions] for part in (self.ids, self.type_ids))
        words = None if self.words is None else [self.words[k] for k in positions]
        n_words = None if self.n_words is None else self.n_words[positions]
        second = None if self.second is None else self.second.take(positions)
        return Tokens(ids, type_ids, self.truncated[positions], words, n_words, second)

    def vector_width(self, n_features: int) -> int:
        """Return the length of the vectors of these texts."""
        return n_features * (1 if self.second is None else PAIR_WIDTH)

    def sequences(self) -> Tokens:
        """Return what the backbone reads: each text of a pair that is read apart by itself."""
        if self.second is None:
            return self
        one, two = self, self.second
        truncated = np.concatenate([one.truncated, two.truncated])
        return Tokens(one.ids + two.ids, one.type_ids + two.type_ids, truncated)


def tokenize(backbone: Backbone, texts: Sequence[Text], reading: Reading) -> Tokens:
    """Tokenize texts, cutting those longer than the limit of the reading.

    Lone surrogates, which are not Unicode text, are read as U+FFFD.

    Parameters
    ----------
    backbone : Backbone
        Its tokenizer is used.
    texts : sequence of str, of (str, str) or of Words
        Checked texts.
    reading : Reading
        Its `max_length`, `pairs` and `prompt` are obeyed.

    Returns
    -------
    tokens : Tokens
        In the order of `texts`. A pair that is read apart counts as truncated if one of its
        texts is.
    """
    if reading.pairs == "apart" and is_pairs(texts):
        both = tokenize(backbone, split_pairs(texts), reading)
        first = both.take(np.arange(len(texts)))
        second = both.take(np.arange(len(texts), 2 * len(texts)))
        return replace(first, truncated=first.truncated | second.truncated, second=second)
    tokenizer = backbone.tokenizer(reading.max_length)
    if len(texts) and isinstance(texts[0], Words):
        return _tokenize_words(tokenizer, texts)
    ids: list[NDArray[np.int32]] = []
    type_ids: list[NDArray[np.int8]] = []
    truncated: list[bool] = []
    for start in range(0, len(texts), _CHUNK):
        chunk = _prompted(texts[start : start + _CHUNK], reading.prompt)
        try:
            encodings = tokenizer.encode_batch_fast(chunk)
        except TypeError:
            encodings = tokenizer.encode_batch_fast([_cleaned(text) for text in chunk])
        for encoding in encodings:
            ids.append(np.array(encoding.ids, dtype=np.int32))
            type_ids.append(np.array(encoding.type_ids, dtype=np.int8))
            truncated.append(bool(encoding.overflowing))
    return Tokens(ids, type_ids, np.array(truncated, dtype=np.bool_))


def tokenize_windows(
    backbone: Backbone, texts: Sequence[Any], reading: Reading
) -> tuple[Tokens, NDArray[np.intp]]:
    """Tokenize texts into overlapping windows, so that nothing is cut.

    Parameters
    ----------
    backbone : Backbone
        Its tokenizer is used.
    texts : sequence of str
        Single texts.
    reading : Reading
        Its `max_length` is the length of a window, and its `prompt` comes first in the first
        window of each text.

    Returns
    -------
    tokens : Tokens
        Of the windows, text by text. Each window has the special tokens of a text.
    n_windows : ndarray of shape (n_texts,)
        Number of windows of each text.
    """
    tokenizer = backbone.tokenizer(reading.max_length, reading.max_length // 4)
    tokens = Tokens([], [], np.zeros(0, dtype=np.bool_))
    n_windows = np.empty(len(texts), dtype=np.intp)
    for start in range(0, len(texts), _CHUNK):
        chunk = [clean(text) for text in _prompted(texts[start : start + _CHUNK], reading.prompt)]
        for k, encoding in enumerate(tokenizer.encode_batch_fast(chunk), start):
            windows = [encoding, *encoding.overflowing]
            n_windows[k] = len(windows)
            tokens.ids.extend(np.array(window.ids, dtype=np.int32) for window in windows)
            tokens.type_ids.extend(np.array(window.type_ids, dtype=np.int8) for window in windows)
    return replace(tokens, truncated=np.zeros(len(tokens.ids), dtype=np.bool_)), n_windows


def _tokenize_words(tokenizer: Any, sentences: Sequence[Any]) -> Tokens:
    tokens = Tokens([], [], np.zeros(len(sentences), dtype=np.bool_), [], vector_counts(sentences))
    assert tokens.words is not None
    for start in range(0, len(sentences), _CHUNK):
        chunk = sentences[start : start + _CHUNK]
        # Not encode_batch_fast, which leaves offsets out.
        encodings = tokenizer.encode_batch([sentence.text for sentence in chunk])
        for k, (sentence, encoding) in enumerate(zip(chunk, encodings, strict=True), start):
            tokens.ids.append(np.array(encoding.ids, dtype=np.int32))
            tokens.type_ids.append(np.array(encoding.type_ids, dtype=np.int8))
            tokens.truncated[k] = bool(encoding.overflowing)
            # A token belongs to the word of its last character: its first one may be the space
            # before the word.
            ends = np.array([end for _, end in encoding.offsets], dtype=np.intp)
            begins = np.array([begin for begin, _ in encoding.offsets], dtype=np.intp)
            # The last entry is for special tokens, which have no characters.
            of_characters = np.append(sentence.of_characters(), -1)
            words = of_characters[np.where(ends > begins, ends - 1, -1)]
            words[np.array(encoding.special_tokens_mask, dtype=np.bool_)] = -1
            tokens.words.append(words.astype(np.int32))
    return tokens


def _prompted(texts: Sequence[Text], prompt: str) -> list[Any]:
    if not prompt:
        return list(texts)
    return [
        prompt + text if isinstance(text, str) else (prompt + text[0], text[1]) for text in texts
    ]


def _cleaned(text: Text) -> Text:
    return (clean(text[0]), clean(text[1])) if isinstance(text, tuple) else clean(text)
