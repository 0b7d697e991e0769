"""Labels and weights of any kind in any container, compared with scikit-learn."""

import datetime
import json
import re
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.exceptions import DataConversionWarning
from sklearn.linear_model import LogisticRegression

INF, NAN = float("inf"), float("nan")
# Labels that go well together, and then those that do not.
POOLS = [
    [0, 1, 2, -3, 7],
    [2**53, 2**53 + 1, 2**63 - 1, -(2**63)],
    [2**63, 2**64 - 1, 1, 2**70],
    [0.0, 1.0, -2.0, 2.5, -0.0],
    [1e300, 2.0**53, 2.0**60, INF, NAN],
    [True, False],
    ["a", "b", "Z", "", "é", "\ud800", "10", "9", "nan", "None", "True"],
    ["a", "a\0", "a\0b", "a" * 40, "a "],
    [b"a", b"b"],
    [np.int8(1), np.uint64(2**63), np.float16(2), np.bool_(True), np.str_("a"), np.longdouble(3)],
    [None, NAN, pd.NA, pd.NaT, np.datetime64("NaT"), np.ma.masked],
    [np.datetime64("2020"), np.timedelta64(3, "s"), datetime.date(2020, 1, 1), pd.Timestamp(5)],
    [Decimal(1), Fraction(1, 2), 1j, complex(1)],
    [(1, 2), [1], {1}, {"a": 1}, np.array([1, 2]), np.array(1), object(), range(2), int],
]
PANDAS = [
    "category", "Int64", "boolean", "string", "Float64", "object", "UInt8", "int64[pyarrow]",
    "bool[pyarrow]", "string[pyarrow]", "double[pyarrow]", "datetime64[ns]", "datetime64[ns, UTC]",
    "timedelta64[s]",
]  # fmt: skip
NUMPY = ["O", "i1", "u8", ">i4", "f2", ">f8", "g", "?", "U", "S", "M8[D]", "M8[ns]", "m8[s]", "c16"]
NUMPY += [np.dtypes.StringDType()] if hasattr(np.dtypes, "StringDType") else []
WEIGHTS = [0, 0, 1, 1, 2.5, 1e-3, 1e-60, 1e300, -1, NAN, INF, None, "1", True, np.float32(2)]
# How a refusal says what is wrong.
NAMED = re.compile(
    r"\by\b|sample_weight|class_weight|Unknown label type|Complex data|inconsistent numbers"
)


class Bytes:
    """Choices that some bytes decide; first ones where they end."""

    def __init__(self, data):
        self.data, self.position = data, 0

    def below(self, n):
        byte = self.data[self.position] if self.position < len(self.data) else 0
        self.position += 1
        return byte % n

    def of(self, values):
        return values[self.below(len(values))]


def object_array(values):
    array = np.empty(len(values), dtype=object)
    for k, value in enumerate(values):
        array[k] = value
    return array


def contain(choose, values):
    """Return values in a container; those that it does not take are an error of its own."""
    kind = choose.below(12)
    if kind < 2:
        return list(values)
    if kind < 5:
        return object_array(values).astype(choose.of(NUMPY))
    if kind < 8:
        return pd.Series(object_array(values), index=[7] * len(values)).astype(choose.of(PANDAS))
    if kind == 8:
        # pyarrow 26 ends the process where one of numpy's dates stands beside another scalar.
        return pa.array([v for v in values if not isinstance(v, (np.datetime64, np.timedelta64))])
    if kind == 9:
        mask = [choose.below(8) == 7 for _ in values]
        return np.ma.array(object_array(values).astype(choose.of(NUMPY)), mask=mask)
    if kind == 10:
        return tuple(values)
    return pd.DataFrame({"y": object_array(values)}).convert_dtypes()


def draw(data):
    """Return labels as a list and in a container, weights, and weights of classes."""
    choose = Bytes(data)
    pool = list(choose.of(POOLS))
    if choose.below(4) == 3:
        pool += choose.of(POOLS)
    values = [choose.of(pool) for _ in range(2 + choose.below(7))]
    y = contain(choose, values)
    weights = class_weight = None
    if choose.below(3) == 2:
        limit = choose.of([5, len(WEIGHTS)])
        weights = [WEIGHTS[choose.below(limit)] for _ in values]
        weights = contain(choose, weights) if choose.below(3) == 2 else weights
    if choose.below(3) == 2:
        names = [choose.of([*values, "unknown"]) for _ in range(choose.below(4))]
        names = [name for name in names if getattr(type(name), "__hash__", None)]
        class_weight = {name: choose.of(WEIGHTS) for name in names}
        class_weight = class_weight if choose.below(3) else "balanced"
    return y, weights, class_weight


def labels_of(y):
    """Return the labels in a container as objects."""
    if isinstance(y, pd.DataFrame):
        y = y["y"]
    labels = y.to_pylist() if isinstance(y, pa.Array) else list(y)
    if all(isinstance(row, (list, tuple, np.ndarray)) and np.shape(row) == (1,) for row in labels):
        return [label for (label,) in labels]  # a column
    return labels


def attempt(call):
    """Return a result, or None where a ValueError names what is wrong."""
    refusal = None
    try:
        return call()
    except ValueError as error:
        refusal = error
    assert NAMED.search(str(refusal)), refusal
    assert not isinstance(refusal, UnicodeError), refusal
    return None


def check(data):
    """Draw labels and weights, and check whatever is promised of them."""
    from prefixembed._fit.examples import read_rows
    from prefixembed._fit.labels import check_labels, check_numbers, check_positions
    from prefixembed._fit.objectives import OBJECTIVES
    from prefixembed.head import decode_classes, encode_classes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            y, weights, class_weight = draw(data)
        except Exception:  # of the container, or of what a mapping does with its keys
            return
        try:
            own = LogisticRegression(max_iter=1).fit(np.arange(len(y))[:, None], y).classes_
        except Exception:  # all kinds
            own = None
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", DataConversionWarning)
    warnings.filterwarnings("ignore", "The number of unique classes")
    found = attempt(lambda: check_labels(y))
    if found is not None:
        labels, classes = found
        given = labels_of(y)
        for value, kept in zip(given, classes[labels].tolist(), strict=True):
            assert kept == value and isinstance(kept, str) == isinstance(value, str), (value, kept)
        assert len(set(classes.tolist())) == len(classes)
        assert sorted(classes.tolist()) == classes.tolist()
        encoded = json.loads(json.dumps(encode_classes(classes)))
        np.testing.assert_array_equal(decode_classes(encoded), classes)
        if given:
            assert OBJECTIVES["classification"].score(y, classes[labels], None) == 1
        if own is not None:
            # To scikit-learn, nullable integers are floats, and neighbours may become one.
            same = classes if own.dtype.kind != "f" else np.unique(classes.astype(own.dtype))
            assert same.tolist() == own.tolist(), (classes, own)
    numbers = attempt(lambda: check_numbers(y))
    if numbers is not None:
        assert [float(value) for value in labels_of(y)] == numbers.tolist()
    attempt(lambda: check_positions(y))
    attempt(lambda: OBJECTIVES["multilabel"].read(y, np.ones(len(y))))
    texts = [f"text {k}" for k in range(len(y))]
    rows = attempt(lambda: read_rows("classification", texts, y, weights, class_weight))
    if rows is None:
        return
    # What remains is what there would be without the rows of weight zero.
    kept = [texts.index(text) for text in rows.texts]
    if isinstance(class_weight, dict):  # a name that no longer occurs may be refused
        class_weight = {name: weight for name, weight in class_weight.items() if weight}
    some = None if weights is None else [float(w) for w in labels_of(weights)]
    less = read_rows(
        "classification",
        rows.texts,
        [labels_of(y)[k] for k in kept],
        None if some is None else [some[k] for k in kept],
        class_weight,
    )
    assert less.targets.classes.tolist() == rows.targets.classes.tolist()
    np.testing.assert_array_equal(less.targets.values, rows.targets.values)
    np.testing.assert_array_equal(less.weights, rows.weights)
    assert np.isfinite(rows.weights).all() and (rows.weights > 0).all()
