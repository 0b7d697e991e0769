"""What counts as text, how it becomes tokens, and how tokens become batches."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Text = str | tuple[str, str]

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


def check_texts(X: Any, name: str = "X", start: int = 0) -> list[Text]:
    """Turn what a user of scikit-learn may pass into a list of texts or of pairs.

    Parameters
    ----------
    X : array-like of str of shape (n_texts,), (n_texts, 1) or (n_texts, 2)
        List, tuple, ndarray, Series or frame of pandas or polars, column of ``datasets``.
    name : str, default="X"
        What messages call it.
    start : int, default=0
        Position of the first text, where `X` is part of something longer.

    Returns
    -------
    texts : list of str, or list of (str, str)
        In input order.

    Raises
    ------
    ValueError
        With position and value of what is no text: None, NaN, bytes, a number, a ragged
        pair; or if `X` is a bare string or no sequence at all.
    """
    if isinstance(X, (str, bytes, Mapping, set, frozenset)) or not isinstance(X, Iterable):
        raise ValueError(
            f"{name} must be a sequence of texts or of pairs of texts, got {_show(X)}; "
            "wrap a single text in a list"
        )
    if isinstance(X, Iterator):
        raise ValueError(
            f"{name} must be a sequence, got a {type(X).__name__}: an iterator can be read once, "
            "and only transform and predict take one"
        )
    rows = _rows(X, name)
    if not rows:
        return []
    if isinstance(rows[0], (list, tuple, np.ndarray)):
        width = len(rows[0])
        if width not in (1, 2):
            raise ValueError(
                f"{name}[{start}] must be a text or a pair of texts, got {_show(rows[0])}"
            )
        return [_check_row(row, position, width, name) for position, row in enumerate(rows, start)]
    return [_check_text(row, f"{name}[{position}]") for position, row in enumerate(rows, start)]


def iterate_texts(X: Iterator[Any], size: int) -> Iterator[list[Text]]:
    """Check what an iterator gives, a bounded number of texts at a time.

    Parameters
    ----------
    X : iterator of str, or of rows of one or two str
        Any number of texts.
    size : int
        How many at a time.

    Yields
    ------
    texts : list of str, or list of (str, str)
        As :func:`check_texts` gives them.

    Raises
    ------
    ValueError
        As :func:`check_texts`, and if there are pairs among texts.
    """
    start, is_pair = 0, None
    while rows := list(itertools.islice(X, size)):
        texts = check_texts(rows, start=start)
        if is_pair not in (None, isinstance(texts[0], tuple)):
            raise ValueError(f"X[{start}] must be of the kind of X[0], got {_show(texts[0])}")
        is_pair = isinstance(texts[0], tuple)
        yield texts
        start += len(texts)


def _rows(X: Iterable[Any], name: str) -> list[Any]:
    if isinstance(X, (list, tuple)):
        return list(X)
    if not hasattr(X, "__array__"):
        return list(X)
    array = np.asarray(X, dtype=object)
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] not in (1, 2)):
        raise ValueError(
            f"{name} must have shape (n_texts,), or (n_texts, 2) for pairs, got {array.shape}"
        )
    return array.tolist()


def _check_row(row: Any, position: int, width: int, name: str) -> Text:
    if not isinstance(row, (list, tuple, np.ndarray)) or len(row) != width:
        raise ValueError(
            f"{name}[{position}] must have {width} text{'s' * (width > 1)} as {name}[0] has, "
            f"got {_show(row)}"
        )
    texts = [_check_text(text, f"{name}[{position}][{k}]") for k, text in enumerate(row)]
    return texts[0] if width == 1 else (texts[0], texts[1])


def _check_text(text: Any, where: str) -> str:
    if not isinstance(text, str):
        hint = "; decode it first" if isinstance(text, bytes) else ""
        raise ValueError(f"{where} must be a str, got {_show(text)}{hint}")
    return text


def _show(value: Any) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{shown} of type {type(value).__name__}"


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
    """

    ids: list[NDArray[np.int32]]
    type_ids: list[NDArray[np.int8]]
    truncated: NDArray[np.bool_]

    @property
    def lengths(self) -> NDArray[np.intp]:
        """Number of tokens of each text."""
        return np.array([len(ids) for ids in self.ids], dtype=np.intp)

    def take(self, positions: NDArray[np.intp]) -> Tokens:
        """Give the tokens of some texts."""
        ids, type_ids = ([part[k] for k in positions] for part in (self.ids, self.type_ids))
        return Tokens(ids, type_ids, self.truncated[positions])


def tokenize(tokenizer: Tokenizer, texts: Sequence[Text]) -> Tokens:
    """Tokenize in Rust, many texts at a time.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        With truncation on and padding off.
    texts : sequence of str or of (str, str)
        Lone surrogates, which are no Unicode text, are read as U+FFFD.

    Returns
    -------
    tokens : Tokens
        In the order of `texts`.
    """
    ids: list[NDArray[np.int32]] = []
    type_ids: list[NDArray[np.int8]] = []
    truncated: list[bool] = []
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        try:
            encodings = tokenizer.encode_batch_fast(chunk)
        except TypeError:
            encodings = tokenizer.encode_batch_fast([_without_surrogates(text) for text in chunk])
        for encoding in encodings:
            ids.append(np.array(encoding.ids, dtype=np.int32))
            type_ids.append(np.array(encoding.type_ids, dtype=np.int8))
            truncated.append(bool(encoding.overflowing))
    return Tokens(ids, type_ids, np.array(truncated, dtype=np.bool_))


def _without_surrogates(text: Text) -> Text:
    if isinstance(text, tuple):
        return _clean(text[0]), _clean(text[1])
    return _clean(text)


def _clean(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def plan_batches(lengths: NDArray[np.intp], batch_tokens: int) -> list[NDArray[np.intp]]:
    """Group texts of like length so that no padded batch holds more than a budget of tokens.

    Parameters
    ----------
    lengths : ndarray of shape (n_texts,)
        Tokens of each text.
    batch_tokens : int
        Budget. A text longer than it gets a batch of its own.

    Returns
    -------
    batches : list of ndarray
        Positions into `lengths`, longest texts first: what does not fit into memory shows early.
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[NDArray[np.intp]] = []
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
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
