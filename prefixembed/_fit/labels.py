"""Labels, weights and the validation split of a source task."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import column_or_1d, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight

# A class with fewer texts stays in training: there, each of its texts counts for more than the
# rough figure that one text of it would add to the validation.
MIN_VALIDATED = 5


def stratified_split(
    labels: NDArray[np.int64], fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split positions class by class, into those to train on and those to validate on.

    The share of each class in the second part is rounded up, but each class keeps at least one text
    for training. A class with fewer than `MIN_VALIDATED` texts stays in training as a whole. Both
    parts are sorted, and the second may be empty.
    """
    valid: list[NDArray[np.intp]] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        n_valid = 0
        if len(members) >= MIN_VALIDATED:
            # Products such as 0.07 * 100 are a little above the whole number that they stand for.
            n_valid = min(len(members) - 1, math.ceil(round(fraction * len(members), 9)))
        valid.append(members[:n_valid])
    chosen = np.sort(np.concatenate(valid))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def check_labels(y: ArrayLike) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Encode labels as positions into their sorted classes, and return both."""
    array = column_or_1d(_check_given(y), warn=True)
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


def _check_given(y: Any) -> Any:
    if y is None:
        raise ValueError(
            "requires y to be passed, but the target y is None: PrefixEncoder learns from labels"
        )
    return y


def _is_missing(label: Any) -> bool:
    try:
        return label is None or bool(label != label)  # NaN differs from itself
    except TypeError:  # pandas.NA cannot be compared
        return True


def check_weights(
    sample_weight: ArrayLike | None,
    class_weight: dict[Any, float] | str | None,
    labels: NDArray[np.int64],
    classes: NDArray[Any],
) -> NDArray[np.float64]:
    """Return the product of the weights of texts and those of their classes; None is 1 each."""
    weights = _check_sample_weight(
        sample_weight, labels.reshape(-1, 1), dtype=np.float64, ensure_non_negative=True
    )
    if class_weight is not None:
        weights = weights * compute_sample_weight(class_weight, classes[labels])
    return np.asarray(weights, dtype=np.float64)


def check_numbers(y: ArrayLike) -> NDArray[np.float64]:
    """Return the targets of a regression as finite floats."""
    array = column_or_1d(_check_given(y), warn=True)
    try:
        numbers = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"y must hold numbers for objective='regression': {error}") from error
    if not np.isfinite(numbers).all():
        position = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise ValueError(f"y[{position}] must be a finite number, got {array[position]}")
    return numbers


def check_sequences(y: Any, counts: NDArray[np.intp]) -> NDArray[Any]:
    """Concatenate the labels of all rows; `counts` holds the number of words of each."""
    rows = list(_check_given(y))
    n = len(counts)
    if len(rows) != n:
        raise ValueError(f"y must have one row of labels per sentence: {n}, got {len(rows)}")
    for position, (row, count) in enumerate(zip(rows, counts, strict=True)):
        if isinstance(row, (str, bytes)) or not hasattr(row, "__len__") or len(row) != count:
            raise ValueError(f"y[{position}] must have one label per word, {count}, got {row!r}")
    labels = [label for row in rows for label in row]
    array = np.array(labels)
    # numpy would turn a mixture of strings and others into strings; check_labels must see it.
    is_mixed = len({isinstance(label, str) for label in labels}) > 1
    return array if array.dtype.kind in "biufU" and not is_mixed else np.array(labels, object)
