"""Check texts, pairs of texts, contexts with choices, and sentences in words."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefixembed._utils.masks import unmasked

Text = str | tuple[str, ...]  # a text, a pair of texts, or Words
Choices = tuple[str, tuple[str, ...]]

_NOT_SEQUENCES = (str, bytes, Mapping, set, frozenset)


def check_texts(X: Any, name: str = "X", start: int = 0) -> list[Text]:
    """Convert texts or pairs of texts in any container to a list.

    `X` is a list, tuple, ndarray, Series or frame of pandas or polars, or column of ``datasets``.
    Error messages call it `name`, and count positions from `start`.
    """
    if isinstance(X, _NOT_SEQUENCES) or not isinstance(X, Iterable):
        raise ValueError(
            f"{name} must be a sequence of texts or of pairs of texts, got {show(X)}; "
            "wrap a single text in a list"
        )
    if isinstance(X, Iterator):
        raise ValueError(
            f"{name} must be a sequence, got a {type(X).__name__}: an iterator can be read once, "
            "and only transform and predict accept one"
        )
    rows = _rows(X, name)
    if not rows:
        return []
    if isinstance(rows[0], (list, tuple, np.ndarray)):
        width = len(rows[0])
        if width not in (1, 2):
            raise ValueError(
                f"{name}[{start}] must be a text or a pair of texts, got {show(rows[0])}"
            )
        return [_check_row(row, position, width, name) for position, row in enumerate(rows, start)]
    return [check_text(row, f"{name}[{position}]") for position, row in enumerate(rows, start)]


def check_sentences(X: Any, words: bool, start: int = 0) -> list[Text]:
    """Check sentences in words if `words` is True, and texts or pairs of texts otherwise."""
    return list(check_words(X, start=start)) if words else check_texts(X, start=start)


def iterate_texts(X: Iterator[Any], size: int, words: bool = False) -> Iterator[list[Text]]:
    """Check the texts of an iterator, `size` of them at a time; all must be of one kind."""
    start, is_pair = 0, None
    while rows := list(itertools.islice(X, size)):
        texts = check_sentences(rows, words, start)
        if is_pair not in (None, isinstance(texts[0], tuple)):
            raise ValueError(f"X[{start}] must be of the same kind as X[0], got {show(texts[0])}")
        is_pair = isinstance(texts[0], tuple)
        yield texts
        start += len(texts)


def _rows(X: Iterable[Any], name: str) -> list[Any]:
    if isinstance(X, (list, tuple)) or not hasattr(X, "__array__"):
        return list(X)
    array = np.asarray(unmasked(X, name), dtype=object)
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] not in (1, 2)):
        raise ValueError(
            f"{name} must have shape (n_texts,), or (n_texts, 2) for pairs, got {array.shape}"
        )
    return array.tolist()


def _check_row(row: Any, position: int, width: int, name: str) -> Text:
    if not isinstance(row, (list, tuple, np.ndarray)) or len(row) != width:
        raise ValueError(
            f"{name}[{position}] must have {width} text{'s' * (width > 1)} like {name}[0], "
            f"got {show(row)}"
        )
    texts = [check_text(text, f"{name}[{position}][{k}]") for k, text in enumerate(row)]
    return texts[0] if width == 1 else (texts[0], texts[1])


def check_text(text: Any, where: str) -> str:
    """Return a text; raise ValueError, which calls it `where`, if it is something else."""
    if not isinstance(text, str):
        hint = "; decode it first" if isinstance(text, bytes) else ""
        raise ValueError(f"{where} must be a str, got {show(text)}{hint}")
    return text


def show(value: Any) -> str:
    """Return a value, shortened, and its type for an error message."""
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{shown} of type {type(value).__name__}"


class Words(tuple[str, ...]):
    """A sentence that is given as a sequence of words.

    The backbone reads :attr:`text`, and each token belongs to the word that it lies in.
    """

    __slots__ = ()

    @property
    def text(self) -> str:
        """The words, joined by spaces."""
        return " ".join(self)

    def of_characters(self) -> NDArray[np.intp]:
        """Return the index of the word of each character of :attr:`text`, or -1 for a space."""
        parts = [np.append(np.full(len(word), k), -1) for k, word in enumerate(self)]
        return np.concatenate(parts)[:-1].astype(np.intp) if parts else np.zeros(0, np.intp)


def vector_counts(texts: Sequence[Text]) -> NDArray[np.intp]:
    """Return the number of vectors of each text: one, or one per word of a sentence in words."""
    if len(texts) and isinstance(texts[0], Words):
        return np.array([len(sentence) for sentence in texts], dtype=np.intp)
    return np.ones(len(texts), dtype=np.intp)


def is_pairs(texts: Sequence[Text]) -> bool:
    """Return whether checked texts are pairs."""
    return bool(len(texts)) and isinstance(texts[0], tuple) and not isinstance(texts[0], Words)


def split_pairs(pairs: Sequence[Text]) -> list[Text]:
    """Return the first texts of all pairs, followed by the second ones."""
    return [pair[part] for part in (0, 1) for pair in pairs]


def check_words(X: Any, name: str = "X", start: int = 0) -> list[Words]:
    """Convert sequences of words to a list of :class:`Words`; a sequence may be empty."""
    sentences = []
    for position, row in enumerate(rows_of(X, name, "sentences, each a sequence of words"), start):
        where = f"{name}[{position}]"
        if hasattr(row, "to_list"):  # rows of a polars Series are Series
            row = row.to_list()
        if not isinstance(row, (list, tuple, np.ndarray)):
            raise ValueError(f"{where} must be a sequence of words, got {show(row)}")
        sentences.append(Words(_strings(row, where)))
    return sentences


def check_choices(X: Any) -> list[Choices]:
    """Convert rows of a context and one or more choices to a list."""
    rows: list[Choices] = []
    for position, row in enumerate(rows_of(X, "X", "rows of a context and its choices")):
        where = f"X[{position}]"
        if not isinstance(row, (list, tuple, np.ndarray)) or len(row) != 2:
            raise ValueError(f"{where} must be a context and its choices, got {show(row)}")
        context, choices = row
        if not isinstance(context, str):
            raise ValueError(f"{where}[0] must be a str, the context, got {show(context)}")
        if not isinstance(choices, (list, tuple, np.ndarray)) or not len(choices):
            raise ValueError(f"{where}[1] must be a sequence of choices, got {show(choices)}")
        rows.append((context, _strings(choices, f"{where}[1]")))
    return rows


def check_rows(X: Any, row: str) -> tuple[list[Text], NDArray[np.intp]]:
    """Check the rows of a source task, and return the texts that the backbone reads.

    A row is a text or pair (``"text"``), a context with its choices, which become one pair each
    (``"choices"``), or a sentence in words (``"words"``). Also returns the number of units of each
    row that a head scores: one, or one per choice or word.
    """
    if row == "choices":
        return choice_pairs(check_choices(X))
    texts = check_sentences(X, row == "words")
    return texts, vector_counts(texts)


def choice_pairs(rows: Sequence[Choices]) -> tuple[list[Text], NDArray[np.intp]]:
    """Return a pair of context and choice for each choice, and the number of choices per row."""
    pairs: list[Text] = [(context, choice) for context, choices in rows for choice in choices]
    return pairs, np.array([len(choices) for _, choices in rows], dtype=np.intp)


def clean(text: str) -> str:
    """Replace lone surrogates, which are not valid Unicode, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def rows_of(X: Any, name: str, what: str) -> Iterable[Any]:
    """Return the rows of any container; error messages call them `what`."""
    if isinstance(X, (*_NOT_SEQUENCES, Iterator)) or not isinstance(X, Iterable):
        raise ValueError(f"{name} must be a sequence of {what}, got {show(X)}")
    X = unmasked(X, name)
    if hasattr(X, "to_list"):
        rows: list[Any] = X.to_list()
        return rows
    if hasattr(X, "__array__") and not isinstance(X, np.ndarray):
        return np.asarray(X, dtype=object).tolist()
    return X


def _strings(values: Iterable[Any], where: str) -> tuple[str, ...]:
    for k, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"{where}[{k}] must be a str, got {show(value)}")
    return tuple(clean(str(value)) for value in values)
