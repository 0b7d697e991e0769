"""Labels, weights and the validation split."""

import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.utils import compute_class_weight

from prefixembed._fit.labels import (
    MIN_VALIDATED,
    check_indicators,
    check_labels,
    check_numbers,
    check_positions,
    check_sequences,
    check_weights,
    relative_weights,
    stratified_split,
)

NUMPY_2 = hasattr(np, "dtypes") and hasattr(np.dtypes, "StringDType")


@pytest.mark.parametrize(
    ("y", "dtype_kind"),
    [
        ([3, 1, 3], "i"),
        (["b", "a", "b"], "U"),
        ([True, False, True], "b"),
        ([1.0, 0.0, 1.0], "f"),
        (np.array([1, 0, 1], dtype=np.float16), "f"),
        (np.array([1, 0, 1], dtype=np.longdouble), "f"),
        (np.array(["b", "a", "b"], dtype=object), "U"),
        (pd.Series(["b", "a", "b"], index=[5, 5, 5]), "U"),
        (pd.Series(["b", "a", "b"], dtype="category"), "U"),
    ],
)
def test_labels_of_each_type_are_encoded(y, dtype_kind):
    labels, classes = check_labels(y)
    np.testing.assert_array_equal(labels, [1, 0, 1])
    assert classes.dtype.kind == dtype_kind
    assert list(classes[labels]) == list(y)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "requires y to be passed"),
        (["a", None], r"y\[1\] must be a label, got None"),
        (np.array(["a", np.nan], dtype=object), r"y\[1\] must be a label, got nan"),
        (pd.Series(["a", pd.NA], dtype="string"), r"y\[1\] must be a label"),
        ([0.0, np.nan], r"y\[1\] must be a label, got nan"),
        ([0.5, 0.7], "continuous"),
        ([0, 2**63], r"y\[1\] must be a label, got 9.22.*: numbers beyond 2 \*\* 53"),
        (np.array(["a", 1], dtype=object), r"of one type .*: 1 at y\[1\] would become '1'"),
        ([[0, 1], [1, 0]], "1d array"),
        ([b"a", b"b"], "numbers, booleans or strings, got .*a"),
        (np.array(["2020-01-01", "2020-01-02"], dtype="M8[D]"), "numbers, booleans or strings"),
    ],
)
def test_invalid_labels_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        check_labels(y)


def test_weights_of_texts_and_classes_are_multiplied():
    labels, classes = check_labels(["a", "b", "b"])
    np.testing.assert_array_equal(check_weights(None, None, labels, classes), [1, 1, 1])
    np.testing.assert_array_equal(
        check_weights([1, 2, 0], {"a": 3, "b": 5}, labels, classes), [3, 10, 0]
    )
    np.testing.assert_allclose(check_weights(None, "balanced", labels, classes), [1.5, 0.75, 0.75])
    np.testing.assert_array_equal(check_weights(2, None, labels, classes), [2, 2, 2])
    # Names that cannot be compared do not occur either.
    unknown = {pd.NA: 2, "a": 1, "b": 1}
    np.testing.assert_array_equal(check_weights(None, unknown, labels, classes), [1, 1, 1])


DAYS = np.array(["2020-01-01", "NaT", "2020-01-03"], dtype="M8[D]")
NO_NUMBERS = [None, np.nan, np.inf, "1", 1j, DAYS[0], DAYS[1], np.timedelta64(1, "s"), pd.NA, [1]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([1, -1, 1], r"sample_weight\[1\] must not be negative, got -1"),
        ([1, 2], r"sample_weight must have shape \(3,\), got \(2,\)"),
        ([[1, 2]] * 3, r"sample_weight must have shape \(3,\), got \(3, 2\)"),
        ([1, np.nan, 1], r"sample_weight\[1\] must be a finite number, got nan"),
        (DAYS, r"sample_weight\[0\] must be a finite number"),
        (DAYS - DAYS[0], r"sample_weight\[0\] must be a finite number"),
        (np.ma.array([1, 2, 3], mask=[0, 0, 1]), r"sample_weight\[2\] is masked"),
        ([1e308, 1e308, 1], "sample_weight must have a finite sum"),
    ],
)
def test_wrong_weights_of_texts_are_refused(wrong, message):
    labels, classes = check_labels(["a", "b", "b"])
    with pytest.raises(ValueError, match=message):
        check_weights(wrong, None, labels, classes)


@pytest.mark.parametrize("weight", [*NO_NUMBERS, -1, -np.inf, -1e-300])
@pytest.mark.parametrize("name", ["a", "unknown"])
def test_wrong_weights_of_classes_are_refused_by_name_and_value(weight, name):
    labels, classes = check_labels(["a", "b", "b"])
    message = f"class_weight[{name!r}] must be a finite number of at least 0, got {weight!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_weights(None, {name: weight, "b": 1}, labels, classes)


LABELS = {"i": [3, 1, 2], "f": [1.0, 0.0, 2.0], "b": [True, False], "U": ["1", "b", "a"]}


@given(
    kind=st.sampled_from(sorted(LABELS)),
    picks=st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 0, 0.5, 1, 3])), min_size=2),
    known=st.sets(st.integers(0, 3)),
)
@settings(max_examples=80, deadline=None)
def test_weights_of_classes_are_those_of_scikit_learn(kind, picks, known):
    names = LABELS[kind]
    picks = [(pick % len(names), weight) for pick, weight in picks]
    y = np.array([names[pick] for pick, _ in picks])
    weights = np.array([weight for _, weight in picks], dtype=float)
    rows = list(zip(y, weights, strict=True))
    occur = weights > 0
    labels, classes = check_labels(y)
    given = {[*names, "d", "e"][k]: 1.0 + k for k in known}
    unknown = [name for name in given if name not in y[occur].tolist()]
    without = [name for name in y[occur].tolist() if name not in given]
    if unknown and without:
        with pytest.raises(ValueError, match=re.escape(f"class_weight has {unknown}, which are")):
            check_weights(weights, given, labels, classes)
    else:
        expected = weights * [given.get(name, 1.0) if w else 0 for name, w in rows]
        found = check_weights(weights, given, labels, classes)
        np.testing.assert_array_equal(found, expected)
    if occur.any():
        # Weights are repetitions, so that those of zero are absent.
        repeated = np.repeat(y, (2 * weights).astype(int))
        expected = weights * [
            compute_class_weight("balanced", classes=np.unique(repeated), y=repeated)[
                np.searchsorted(np.unique(repeated), name)
            ] if w else 0
            for name, w in rows
        ]  # fmt: skip
        found = check_weights(weights, "balanced", labels, classes)
        np.testing.assert_allclose(found, expected)


def test_weights_that_float32_cannot_hold_together_are_refused():
    labels, classes = check_labels(["a", "b", "b"])

    def relative(sample_weight, class_weight):
        weights = check_weights(sample_weight, class_weight, labels, classes)
        return relative_weights(weights[weights > 0])

    for sample_weight, class_weight in (
        ([1, 1e-60, 1], None),
        (None, {"a": 1e-60}),
        (None, {"a": 1e308, "b": 1e308}),
        ([1e-200, 1, 1], {"a": 1e-200}),
        ([1e300, 1, 1], {"a": 1e300, "b": 0}),
        ([1e-60, 1e300, 0], "balanced"),
    ):
        with pytest.raises(ValueError, match="too large, too small or too far apart"):
            relative(sample_weight, class_weight)
    np.testing.assert_allclose(relative_weights(np.array([1e-300, 3e-300])), [0.5, 1.5])


NUMBERS = [0, 1.5, -3, True, np.float32(0.25), np.int8(5), Decimal("1.25"), Fraction(1, 4), "2.5"]


@given(
    st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=6),
    st.one_of(st.none(), st.tuples(st.integers(0, 6), st.sampled_from([*NO_NUMBERS, "a"]))),
)
@settings(max_examples=120, deadline=None)
def test_targets_of_a_regression_are_numbers_or_refused_by_position(numbers, wrong):
    values = list(numbers)
    assume(wrong is None or wrong[1] is not NO_NUMBERS[3])  # a string that is a number
    if wrong is not None:
        values.insert(min(wrong[0], len(values)), wrong[1])
    array = np.fromiter(values, dtype=object, count=len(values))
    for y in (array, pd.Series(array)):
        if wrong is None:
            np.testing.assert_array_equal(check_numbers(y), [float(number) for number in numbers])
            continue
        message = rf"y\[{min(wrong[0], len(numbers))}\] must be a finite number, got"
        with pytest.raises(ValueError, match=message):
            check_numbers(y)


@pytest.mark.parametrize(
    "y",
    [
        DAYS,
        DAYS.astype("M8[ns]"),
        DAYS[::2] - DAYS[0],
        pd.Series(DAYS),
        pd.Series(DAYS).dt.tz_localize("UTC"),
        pd.period_range("2020", periods=3, freq="D"),
        np.array([1, 2j]),
        np.array([b"1", b"2"]),
        np.array([(1, 2), (3, 4)], dtype="i,i"),
        np.array([1, np.longdouble("1e4000")]) if np.finfo(np.longdouble).max > 1e4000 else DAYS,
    ],
)
def test_arrays_of_no_numbers_are_refused(y):
    with pytest.raises(ValueError, match=r"y\[\d\] must be a finite number|Complex data"):
        check_numbers(y)


POOL = [0, 1, 2**53, 2**53 + 1, 2**63, -1, 2**70, 0.0, 2.0, True, False, "a", "a\0", "1", "nan",
        np.int8(1), np.float32(2), np.str_("b"), np.bool_(True), b"a", None, np.nan, pd.NA, pd.NaT,
        1j, DAYS[0], np.timedelta64(1, "s"), Decimal(1), (1, 2), [1], object(),
        np.ma.masked, np.longdouble(3)]  # fmt: skip


@given(st.lists(st.sampled_from(POOL), min_size=1, max_size=4))
@settings(max_examples=250, deadline=None)
def test_labels_are_kept_as_they_are_or_refused_by_position(values):
    array = np.empty(len(values), dtype=object)
    for k, value in enumerate(values):
        array[k] = value
    for y in (array, pd.Series(array, dtype=object)):
        message = ""
        try:
            labels, classes = check_labels(y)
        except ValueError as error:
            message = str(error)
        if message:
            assert re.search(r"y\[\d\]|Unknown label type: continuous", message), message
            continue
        # Each class is equal to its labels, and so no two labels become one.
        assert classes.dtype.kind in "biufU"
        for value, kept in zip(values, classes[labels].tolist(), strict=True):
            assert kept == value
            assert isinstance(kept, str) == isinstance(value, str)


@pytest.mark.parametrize(
    "y",
    [
        np.array([1, 0, 1], dtype=object),
        pd.Series([1, 0, 1], dtype="Int64"),
        pd.Series([1, 0, 1], dtype="int64[pyarrow]"),
        pa.array([1, 0, 1]),
        pd.Series([1, 0, 1], dtype="category"),
        torch.tensor([1, 0, 1]),
        np.ma.array([1, 0, 1]),
        np.ma.array([1, 0, 1], mask=False),
        pd.Series([True, False, True], dtype="boolean"),
        np.array([True, False, True], dtype=object),
        np.array(["b", "a", "b"], dtype="<U9"),
        pd.Series(["b", "a", "b"], dtype="string"),
        pd.Series(["b", "a", "b"], dtype="string[pyarrow]"),
        pa.chunked_array([["b", "a"], ["b"]]),
        *([np.array(["b", "a", "b"], dtype=np.dtypes.StringDType())] if NUMPY_2 else []),
    ],
)
def test_labels_in_every_container_are_those_of_a_list(y):
    labels, classes = check_labels(y)
    expected = sorted(set(np.asarray(y, dtype=object).tolist()))
    assert classes.dtype == np.array(expected).dtype
    assert classes.tolist() == expected
    np.testing.assert_array_equal(labels, [1, 0, 1])


@pytest.mark.skipif(not NUMPY_2, reason="numpy 2 has StringDType")
@pytest.mark.parametrize("missing", [None, np.nan])
def test_missing_strings_are_refused_by_position(missing):
    y = np.array(["a", missing], dtype=np.dtypes.StringDType(na_object=missing))
    with pytest.raises(ValueError, match=r"y\[1\] must be a label"):
        check_labels(y)


def test_masked_entries_are_refused_by_position():
    masked = np.ma.array([1, 0, 1], mask=[0, 1, 0])
    for read in (check_labels, check_numbers, check_positions):
        with pytest.raises(ValueError, match=r"y\[1\] is masked"):
            read(masked)
    for y in (np.ma.array(np.eye(2), mask=[[0, 0], [0, 1]]), [[1, 0], np.ma.array([1, 0], mask=1)]):
        with pytest.raises(ValueError, match=r"y(\[1, 1|\[1\]\[0)\] is masked"):
            check_indicators(y)
    with pytest.raises(ValueError, match=r"y\[1\]\[0\] is masked"):
        check_sequences([["a"], np.ma.array(["b", "c"], mask=[1, 0])], np.array([1, 2]))
    np.testing.assert_array_equal(check_indicators(np.ma.array(np.eye(2))), np.eye(2))


INDICATORS = np.array([[1, 0, 1], [0, 0, 1]])


@pytest.mark.parametrize(
    "y",
    [
        INDICATORS.tolist(),
        INDICATORS.astype(bool),
        INDICATORS.astype(object),
        csr_matrix(INDICATORS),
        *(pd.DataFrame(INDICATORS).astype(t) for t in ("Int64", "boolean", "uint8[pyarrow]")),
        pd.DataFrame(INDICATORS).astype({0: "Int64", 1: bool, 2: float}),
        pd.DataFrame(INDICATORS).astype({0: "boolean", 1: "Int8", 2: "bool[pyarrow]"}),
    ],
)
def test_indicators_in_every_container(y):
    np.testing.assert_array_equal(check_indicators(y), INDICATORS)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([["a", "b"], ["a"]], r"MultiLabelBinarizer .*\['a', 'b'\] of type list"),
        ([["a", "b"], ["a", "c"]], r"MultiLabelBinarizer .*'a'.* at y\[0, 0\]"),
        ([{"a", "b"}, set()], r"MultiLabelBinarizer .* of type set at y\[0\]"),
        ([("a",), ()], r"MultiLabelBinarizer .* of type tuple"),
        (pd.Series([["a", "b"], ["a"]]), r"MultiLabelBinarizer .* at y\[0\]"),
        ([[0, 2], [1]], "MultiLabelBinarizer"),
        (np.zeros((2, 0)), r"y must have one label or more, got .* \(2, 0\)"),
        (pd.DataFrame({"a": [1, pd.NA]}, dtype="Int64"), r"(<NA>|nan).* at y\[1, 0\]"),
        (pd.DataFrame({"a": [1, 0], "b": ["1", "0"]}), r"'1' of type str at y\[0, 1\]"),
        ([[0, 1], [1, np.nan]], r"nan.* at y\[1, 1\]"),
        ([[0, 1], [2, 1]], r"2.* at y\[1, 0\]"),
        (np.zeros((2, 2), dtype="m8[s]"), r"timedelta64 at y\[0, 0\]"),
        ([], r"got shape \(0,\)"),
        (None, "requires y to be passed"),
    ],
)  # fmt: skip
def test_what_is_no_indicator_matrix_is_refused(y, message):
    with pytest.raises(ValueError, match=message):
        check_indicators(y)


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    percent=st.integers(1, 99),
    seed=st.integers(0, 5),
)
@settings(max_examples=80, deadline=None)
def test_split_keeps_each_class_in_training_and_rounds_up(counts, percent, seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    train, valid = stratified_split(labels, percent / 100, rng)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, valid])), np.arange(len(labels)))
    assert set(labels[train]) == set(labels)
    for label, count in enumerate(counts):
        expected = min(count - 1, -(-percent * count // 100))
        assert (labels[valid] == label).sum() == (expected if count >= MIN_VALIDATED else 0)


@pytest.mark.parametrize(
    ("n", "fraction", "expected"),
    [(4, 0.9, 0), (5, 0.01, 1), (5, 0.99, 4), (10, 0.1, 1), (11, 0.1, 2), (70, 0.1, 7),
     (100, 0.07, 7)],
)  # fmt: skip
def test_number_of_validated_texts_of_a_class(n, fraction, expected):
    # In floating point, 0.1 * 70 and 0.07 * 100 are a little more than 7.
    _, valid = stratified_split(np.zeros(n, dtype=np.int64), fraction, np.random.default_rng(0))
    assert len(valid) == expected
