"""Labels, weights and the validation split of a source task."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import column_or_1d, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight

_NO_Y = "requires y to be passed, but the target y is None: PrefixEncoder learns from labels"


def stratified_split(
    labels: NDArray[np.int64], fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split positions class by class; every class keeps at least one text in training.

    Parameters
    ----------
    labels : ndarray of shape (n_texts,)
        Classes.
    fraction : float
        Share of each class to set aside.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    train, valid : ndarray
        Sorted positions. `valid` is empty only if `fraction` of no class comes to a text.
    """
    valid: list[NDArray[np.intp]] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        valid.append(members[: min(len(members) - 1, round(fraction * len(members)))])
    chosen = np.sort(np.concatenate(valid))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def check_labels(y: ArrayLike) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Turn labels into positions into their sorted classes.

    Parameters
    ----------
    y : array-like of shape (n_texts,)
        Numbers, booleans or strings.

    Returns
    -------
    labels : int64 ndarray of shape (n_texts,)
        Positions into `classes`.
    classes : ndarray of shape (n_classes,)
        Of the type that `y` had.

    Raises
    ------
    ValueError
        If labels are missing, continuous or of types that do not sort.
    """
    if y is None:
        raise ValueError(_NO_Y)
    array = column_or_1d(y, warn=True)
    if array.dtype == object:
        for position, label in enumerate(array):
            if _is_missing(label):
                raise ValueError(f"y[{position}] must be a label, got {label!r}")
    elif array.dtype.kind == "f" and not np.isfinite(array).all():
        position = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(
            f"y[{position}] must be a label, got {array[position]}: "
            "Input y contains NaN or infinity"
        )
    try:
        classes, labels = np.unique(array, return_inverse=True)
    except TypeError as error:
        raise ValueError(f"labels in y must be of one type that sorts: {error}") from error
    if classes.dtype.kind == "O":
        classes = np.array(classes.tolist())
    if classes.dtype.kind not in "biufU":
        raise ValueError(
            f"labels in y must be numbers, booleans or strings, got {classes[0]!r} "
            f"of type {type(classes[0]).__name__}"
        )
    check_classification_targets(array)
    return labels.astype(np.int64), classes


def _is_missing(label: Any) -> bool:
    try:
        return label is None or bool(label != label)  # NaN is what differs from itself
    except TypeError:  # pandas.NA will not even say that
        return True


def check_weights(
    sample_weight: ArrayLike | None,
    class_weight: dict[Any, float] | str | None,
    labels: NDArray[np.int64],
    classes: NDArray[Any],
) -> NDArray[np.float64]:
    """Multiply the weights of texts with those of their classes.

    Parameters
    ----------
    sample_weight : array-like of shape (n_texts,) or None
        Not negative.
    class_weight : dict, "balanced" or None
        As scikit-learn has it.
    labels, classes : ndarray
        As :func:`check_labels` gives them.

    Returns
    -------
    weights : ndarray of shape (n_texts,)
        One where nothing is given.

    Raises
    ------
    ValueError
        If weights are negative, not finite or of another length.
    """
    weights = _check_sample_weight(
        sample_weight, labels.reshape(-1, 1), dtype=np.float64, ensure_non_negative=True
    )
    if class_weight is not None:
        weights = weights * compute_sample_weight(class_weight, classes[labels])
    return np.asarray(weights, dtype=np.float64)


def check_numbers(y: ArrayLike) -> NDArray[np.float64]:
    """Check the numbers that a regression is to give.

    Parameters
    ----------
    y : array-like of shape (n_texts,)
        Finite numbers.

    Returns
    -------
    numbers : float64 ndarray of shape (n_texts,)
        The same.

    Raises
    ------
    ValueError
        If one is missing, not finite or no number.
    """
    if y is None:
        raise ValueError(_NO_Y)
    array = column_or_1d(y, warn=True)
    try:
        numbers = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"y must hold numbers for objective='regression': {error}") from error
    if not np.isfinite(numbers).all():
        position = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise ValueError(f"y[{position}] must be a finite number, got {array[position]}")
    return numbers


def check_sequences(y: Any, counts: NDArray[np.intp]) -> NDArray[Any]:
    """Check that there is one label a word, and lay them behind each other.

    Parameters
    ----------
    y : sequence of sequences
        Labels of each row's words.
    counts : ndarray of shape (n_rows,)
        Words of each row.

    Returns
    -------
    labels : ndarray of shape (n_words,)
        Row by row.

    Raises
    ------
    ValueError
        If lengths differ; the message has the position.
    """
    if y is None:
        raise ValueError(_NO_Y)
    rows = list(y)
    if len(rows) != len(counts):
        raise ValueError(
            f"y must have one row of labels a sentence: {len(counts)}, got {len(rows)}"
        )
    for position, (row, count) in enumerate(zip(rows, counts, strict=True)):
        if isinstance(row, (str, bytes)) or not hasattr(row, "__len__") or len(row) != count:
            raise ValueError(f"y[{position}] must have one label a word, {count}, got {row!r}")
    labels = [label for row in rows for label in row]
    array = np.array(labels)
    # A mixture, such as of None and str, is left for check_labels to find.
    return array if array.dtype.kind in "biufU" and not _mixed(labels) else np.array(labels, object)


def _mixed(labels: list[Any]) -> bool:
    return len({isinstance(label, str) for label in labels}) > 1
