"""Labels, weights and the validation split."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixembed._fit.labels import (
    MIN_VALIDATED,
    check_labels,
    check_weights,
    stratified_split,
)


@pytest.mark.parametrize(
    ("y", "dtype_kind"),
    [
        ([3, 1, 3], "i"),
        (["b", "a", "b"], "U"),
        ([True, False, True], "b"),
        ([1.0, 0.0, 1.0], "f"),
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
        (np.array(["a", 1], dtype=object), "sort|string"),
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
    for wrong in ([1, -1, 1], [1, 2], [1, np.nan, 1]):
        with pytest.raises(ValueError):  # noqa: PT011 (messages of scikit-learn)
            check_weights(wrong, None, labels, classes)


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
