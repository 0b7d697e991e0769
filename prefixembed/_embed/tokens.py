"""Tokens: from checked texts to token ids."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
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
_fork_lock = threading.Lock()  # of one fork at a time
_own_setting: str | None = None  # of the process that forks


def _before_fork() -> None:
    # A forked child has none of the threads that tokenizers runs on, and would wait for them for
    # ever. It does without them, and so do its own children. This is set before the fork, and not
    # in the child, since tokenizers looks at it there first, and may print a warning.
    global _own_setting
    _fork_lock.acquire()
    _own_setting = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "false"


def _after_fork_in_parent() -> None:
    if _own_setting is None:
        os.environ.pop(_PARALLELISM, None)
    else:
        os.environ[_PARALLELISM] = _own_setting
    _fork_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_fork_lock.release,
    )


@dataclass(frozen=True)
class Tokens:
    """Token ids of texts, with special tokens and without padding; one array per text."""

    ids: list[NDArray[np.int32]]
    type_ids: list[NDArray[np.int8]]  # 1 in the second text of a pair
    truncated: NDArray[np.bool_]  # (text,)
    words: list[NDArray[np.int32]] | None = None  # of sentences in words: each token's word, or -1
    n_words: NDArray[np.intp] | None = None  # (text,), of sentences in words
    second: Tokens | None = None  # of pairs read apart: the second texts; the rest is of the first

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
        truncated = np.concatenate([self.truncated, self.second.truncated])
        ids, type_ids = self.ids + self.second.ids, self.type_ids + self.second.type_ids
        return Tokens(ids, type_ids, truncated)


def tokenize(backbone: Backbone, texts: Sequence[Text], reading: Reading) -> Tokens:
    """Tokenize texts, cutting those longer than the limit of the reading.

    A pair that is read apart counts as truncated if one of its texts is.
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
    for encoding in _encodings(tokenizer.encode_batch_fast, texts, reading.prompt):
        ids.append(np.array(encoding.ids, dtype=np.int32))
        type_ids.append(np.array(encoding.type_ids, dtype=np.int8))
        truncated.append(bool(encoding.overflowing))
    return Tokens(ids, type_ids, np.array(truncated, dtype=np.bool_))


def tokenize_windows(
    backbone: Backbone, texts: Sequence[Any], reading: Reading
) -> tuple[Tokens, NDArray[np.intp]]:
    """Tokenize single texts into overlapping windows, so that nothing is cut.

    Returns the tokens of the windows, text by text, and the number of windows of each text. Each
    window has special tokens; the prompt is in the first one only.
    """
    tokenizer = backbone.tokenizer(reading.max_length, reading.max_length // 4)
    ids: list[NDArray[np.int32]] = []
    type_ids: list[NDArray[np.int8]] = []
    n_windows: list[int] = []
    for encoding in _encodings(tokenizer.encode_batch_fast, texts, reading.prompt):
        windows = [encoding, *encoding.overflowing]
        ids += [np.array(window.ids, dtype=np.int32) for window in windows]
        type_ids += [np.array(window.type_ids, dtype=np.int8) for window in windows]
        n_windows.append(len(windows))
    tokens = Tokens(ids, type_ids, np.zeros(len(ids), dtype=np.bool_))
    return tokens, np.array(n_windows, dtype=np.intp)


def _tokenize_words(tokenizer: Any, sentences: Sequence[Any]) -> Tokens:
    tokens = Tokens([], [], np.zeros(len(sentences), dtype=np.bool_), [], vector_counts(sentences))
    assert tokens.words is not None
    # Not encode_batch_fast, which leaves offsets out.
    encodings = _encodings(tokenizer.encode_batch, [sentence.text for sentence in sentences])
    for k, (sentence, encoding) in enumerate(zip(sentences, encodings, strict=True)):
        tokens.ids.append(np.array(encoding.ids, dtype=np.int32))
        tokens.type_ids.append(np.array(encoding.type_ids, dtype=np.int8))
        tokens.truncated[k] = bool(encoding.overflowing)
        # A token belongs to the word of its last character: its first one may be the space before
        # the word. The last entry of `of_characters` is for tokens without characters.
        begins, ends = np.array(encoding.offsets, dtype=np.intp).T
        of_characters = np.append(sentence.of_characters(), -1)
        words = of_characters[np.where(ends > begins, ends - 1, -1)]
        words[np.array(encoding.special_tokens_mask, dtype=np.bool_)] = -1
        tokens.words.append(words.astype(np.int32))
    return tokens


def _encodings(
    encode: Callable[[list[Any]], list[Any]], texts: Sequence[Any], prompt: str = ""
) -> Iterator[Any]:
    """Yield the encoding of each text, with the prompt; lone surrogates are read as U+FFFD."""
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        if prompt:
            chunk = [prompt + t if isinstance(t, str) else (prompt + t[0], t[1]) for t in chunk]
        try:
            encodings = encode(chunk)
        except TypeError:  # what tokenizers raise for lone surrogates
            encodings = encode(
                [clean(t) if isinstance(t, str) else tuple(map(clean, t)) for t in chunk]
            )
        yield from encodings
