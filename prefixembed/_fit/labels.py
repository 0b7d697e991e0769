"""Labels, weights and the validation split of a source task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from prefixembed._embed.texts import rows_of, show
from prefixembed._utils.masks import unmasked

# A class with fewer texts stays in training: there, each of its texts counts for more than the
# rough figure that one text of it would add to the validation.
MIN_VALIDATED = 5
# Beyond it, floats do not tell neighbouring integers apart.
_LARGEST_FLOAT = np.float64(2**53)

Where = Callable[[int], str]
_OF_Y: Where = "y[{}]".format


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


def check_labels(y: ArrayLike, where: Where = _OF_Y) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Encode labels as positions into their sorted classes, and return both.

    Error messages call the label at a position what `where` returns.
    """
    array = label_array(y, where)
    classes, labels = np.unique(array, return_inverse=True)
    check_classification_targets(array)  # refuses floats that are no whole numbers
    return labels.astype(np.int64), shortest(classes)


def shortest(classes: NDArray[Any]) -> NDArray[Any]:
    """Return classes in a dtype that does not depend on labels that are not among them."""
    return np.array(classes.tolist()) if classes.dtype.kind == "U" and len(classes) else classes


def label_array(y: ArrayLike, where: Where = _OF_Y) -> NDArray[Any]:
    """Return labels as numbers, booleans or strings that are equal to those that were given."""
    array = column_or_1d(_as_array(y, "y"), warn=True)
    if array.dtype == object:
        array = _narrowed(array.tolist(), where)
    elif _is_too_long(array):
        array = _narrowed(list(array), where)
    if array.dtype.kind not in "biufU" and len(array):
        raise _no_label(array[0], where(0))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        position = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(
            f"{where(position)} must be a label, got {array[position]}: "
            "Input y contains NaN or infinity"
        )
    if array.dtype.kind == "f" and (np.abs(array) > _LARGEST_FLOAT).any():
        position = int(np.flatnonzero(np.abs(array) > _LARGEST_FLOAT)[0])
        raise ValueError(
            f"{where(position)} must be a label, got {array[position]}: numbers beyond 2 ** 53 are "
            "labels only where numpy has integers of 64 bits for all of them"
        )
    return array


def _given(values: Any, name: str) -> Any:
    if values is None:
        raise ValueError(
            f"requires {name} to be passed, but the target {name} is None: PrefixEncoder learns "
            "from labels"
        )
    return values


def _as_array(values: Any, name: str) -> NDArray[Any]:
    """Return values in an array that keeps each of them as it is, of dtype object if need be."""
    values = unmasked(_given(values, name), name)
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind != "T":
        return np.asarray(values)
    try:
        # numpy would make strings of a list of strings and others, and floats of integers and NA.
        return np.asarray(values, dtype=object)
    except ValueError as error:
        raise ValueError(f"{name} must be a sequence of labels: {error}") from error


def _is_too_long(array: NDArray[Any]) -> bool:
    """Return whether an array is of longdouble, which no file of ours holds."""
    return array.dtype.kind == "f" and array.dtype.itemsize > 8


def _narrowed(labels: list[Any], where: Where) -> NDArray[Any]:
    """Return labels in the array that numpy makes of them, if that keeps them as they are."""
    for position, label in enumerate(labels):
        if _is_missing(label):
            raise ValueError(f"{where(position)} must be a label, got {label!r}")
    array = _by_numpy(labels)
    if _is_too_long(array):
        with np.errstate(over="ignore"):
            array = array.astype(np.float64)
    if array.dtype.kind not in "biufU":
        is_label = [_by_numpy([label]).dtype.kind in "biufU" for label in labels]
        position = is_label.index(False) if False in is_label else 0
        raise _no_label(labels[position], where(position))
    for position, (label, kept) in enumerate(zip(labels, array.tolist(), strict=True)):
        if not label == kept:
            raise ValueError(
                f"labels in y must be of one type that keeps each of them: {label!r} at "
                f"{where(position)} would become {kept!r}"
            )
    return array


def _by_numpy(values: list[Any]) -> NDArray[Any]:
    try:
        array = np.array(values)
    except ValueError:  # rows of different lengths
        array = np.empty(0)
    return array if array.shape == (len(values),) else np.fromiter(values, object, len(values))


def _no_label(label: Any, where: str) -> ValueError:
    return ValueError(
        f"labels in y must be numbers, booleans or strings, got {show(label)} at {where}"
    )


def _is_missing(label: Any) -> bool:
    if label is None or label is np.ma.masked:
        return True
    try:
        return bool(label != label)  # NaN differs from itself
    except TypeError:  # pandas.NA cannot be compared
        return True
    except ValueError:  # an array
        return False


def check_numbers(y: ArrayLike) -> NDArray[np.float64]:
    """Return the targets of a regression as finite floats."""
    return _numbers(column_or_1d(_as_array(y, "y"), warn=True), "y")


def _numbers(array: NDArray[Any], name: str) -> NDArray[np.float64]:
    if array.dtype.kind in "biuf":
        with np.errstate(over="ignore"):
            numbers = array.astype(np.float64)
    else:
        numbers = np.array([_number(value) for value in array], dtype=np.float64)
    if not np.isfinite(numbers).all():
        position = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise ValueError(f"{name}[{position}] must be a finite number, got {show(array[position])}")
    return numbers


def _number(value: Any) -> float:
    """Return a value as a float, and NaN if it is no number."""
    # numpy counts durations among the integers.
    if isinstance(value, np.timedelta64) or not isinstance(value, (str, Real, Decimal, np.bool_)):
        return math.nan
    try:
        return float(value)
    except (OverflowError, ValueError):
        return math.nan


def check_indicators(y: Any) -> NDArray[np.float32]:
    """Return the zeros and ones of several labels per text, (row, label)."""
    if isinstance(y, (list, tuple)):
        y = [unmasked(row, f"y[{position}]") for position, row in enumerate(y)]
    try:
        array = np.asarray(unmasked(y.toarray() if hasattr(y, "toarray") else _given(y, "y"), "y"))
    except ValueError as error:
        if "masked" in str(error) or y is None:
            raise
        first = show(next(iter(y)))
        raise _no_indicators(f"rows of different lengths, the first {first}") from error
    if array.ndim != 2:
        is_list = array.ndim == 1 and len(array) > 0
        raise _no_indicators(f"{show(array[0])} at y[0]" if is_list else f"shape {array.shape}")
    if not array.shape[1]:
        raise ValueError(f"y must have one label or more, got an indicator matrix of {array.shape}")
    wrong = np.argwhere(~_is_zero_or_one(array))
    if len(wrong):
        row, label = wrong[0]
        raise _no_indicators(f"{show(array[row, label])} at y[{row}, {label}]")
    return array.astype(np.float32)


def _is_zero_or_one(array: NDArray[Any]) -> NDArray[np.bool_]:
    if array.dtype.kind in "biuf":
        return np.isin(array, (0, 1))
    # Columns of mixed types, or of types that may be missing.
    are = [_number(value) in (0, 1) and not isinstance(value, str) for value in array.ravel()]
    return np.array(are, dtype=bool).reshape(array.shape)


def _no_indicators(got: str) -> ValueError:
    return ValueError(
        "y must be an indicator matrix of zeros and ones of shape (n_texts, n_labels), which "
        f"MultiLabelBinarizer makes of lists of labels, got {got}"
    )


def check_positions(y: ArrayLike) -> NDArray[np.int64]:
    """Return the positions of the right choices, as integers."""
    positions = label_array(y)
    if positions.dtype.kind not in "iu" and len(positions):
        raise ValueError(
            "y must hold the position of the right choice of each row, got "
            f"{show(positions.tolist()[0])} at y[0]"
        )
    return positions.astype(np.int64)


def check_sequences(y: Any, counts: NDArray[np.intp]) -> tuple[NDArray[Any], Where]:
    """Concatenate the labels of all rows; `counts` holds the number of words of each.

    Also returns what error messages call the label at a position.
    """
    what = "sequences of labels, one per sentence"
    rows = list(rows_of(_given(y, "y"), "y", what))
    n = len(counts)
    if len(rows) != n:
        raise ValueError(f"y must have one row of labels per sentence: {n}, got {len(rows)}")
    labels: list[Any] = []
    for position, (row, count) in enumerate(zip(rows, counts, strict=True)):
        if isinstance(row, (str, bytes)) or not hasattr(row, "__len__") or len(row) != count:
            raise ValueError(f"y[{position}] must have one label per word, {count}, got {row!r}")
        labels.extend(unmasked(row, f"y[{position}]"))
    ends = np.cumsum(counts)

    def where(position: int) -> str:
        row = int(np.searchsorted(ends, position, side="right"))
        return f"y[{row}][{position - int(ends[row] - counts[row])}]"

    return np.fromiter(labels, dtype=object, count=len(labels)), where


def check_sample_weight(sample_weight: ArrayLike | None, n_rows: int) -> NDArray[np.float64]:
    """Return the weights of rows, or 1 each; a number is the weight of every row."""
    if sample_weight is None:
        return np.ones(n_rows)
    array = _as_array(sample_weight, "sample_weight")
    if array.shape not in ((), (n_rows,)):
        raise ValueError(f"sample_weight must have shape ({n_rows},), got {array.shape}")
    array = np.broadcast_to(array, (n_rows,))
    weights = _numbers(array, "sample_weight")
    if (weights < 0).any():
        position = int(np.flatnonzero(weights < 0)[0])
        raise ValueError(
            f"sample_weight[{position}] must not be negative, got {show(array[position])}"
        )
    if not np.isfinite(_sum(weights)):
        raise ValueError(f"sample_weight must have a finite sum, got up to {weights.max():g}")
    return weights


def check_weights(
    sample_weight: ArrayLike | None,
    class_weight: dict[Any, float] | str | None,
    labels: NDArray[np.int64],
    classes: NDArray[Any],
) -> NDArray[np.float64]:
    """Return the product of the weights of texts and those of their classes; None is 1 each.

    Classes and their sizes are those of the texts whose weight is not zero.
    """
    weights = check_sample_weight(sample_weight, len(labels))
    if class_weight is None:
        return weights
    masses = np.bincount(labels, weights=weights, minlength=len(classes))
    factors = np.zeros(len(classes))
    occur = np.flatnonzero(masses)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if isinstance(class_weight, str):  # "balanced"
            factors[occur] = masses.sum() / (len(occur) * masses[occur])
        else:
            factors[occur] = _class_factors(class_weight, classes[occur].tolist())
        products = weights * factors[labels]
    if ((products == 0) & (weights > 0) & (factors[labels] > 0)).any():
        raise _too_far_apart(products)
    return products


def _class_factors(class_weight: Mapping[Any, Any], classes: list[Any]) -> list[float]:
    """Return the weights of classes as scikit-learn does: 1 for a class without one."""
    for name, weight in class_weight.items():
        value = math.nan if isinstance(weight, str) else _number(weight)
        if not 0 <= value < math.inf:
            raise ValueError(
                f"class_weight[{name!r}] must be a finite number of at least 0, got {weight!r}"
            )
    known = set(classes)  # by hash: not all names can be compared
    without = [name for name in classes if name not in class_weight]
    unknown = [name for name in class_weight if name not in known]
    if without and unknown:  # most likely names of another type or spelling
        raise ValueError(
            f"class_weight has {unknown}, which are no classes of y, but not the classes {without}"
        )
    return [float(class_weight.get(name, 1.0)) for name in classes]


def relative_weights(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of rows in the loss, 1 on average; all must be above zero in float32."""
    if not len(weights):
        return weights
    mean = _sum(weights) / len(weights)
    if not np.isfinite(mean):
        raise _too_far_apart(weights)
    with np.errstate(under="ignore"):
        relative = weights / mean
        if not relative.astype(np.float32).all():
            raise _too_far_apart(weights)
    return relative


def _sum(weights: NDArray[np.float64]) -> float:
    with np.errstate(over="ignore"):
        return float(weights.sum())


def _too_far_apart(weights: NDArray[np.float64]) -> ValueError:
    return ValueError(
        "sample_weight and class_weight are too large, too small or too far apart: their products "
        f"are between {weights.min():g} and {weights.max():g}"
    )
