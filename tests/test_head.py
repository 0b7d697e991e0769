"""The linear head of a source task, as a value."""

import pickle

import numpy as np
import pytest

from prefixembed.head import Head


def make(**changes):
    rng = np.random.default_rng(0)
    fields = {
        "objective": "classification",
        "classes": np.array(["no", "yes"]),
        "weight": rng.standard_normal((2, 6)),
        "bias": rng.standard_normal(2),
    }
    return Head(**(fields | changes))


def test_logits_are_computed_in_float64():
    head = make()
    vectors = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
    expected = vectors.astype(np.float64) @ head.weight.astype(np.float64).T + head.bias
    logits = head.decision_function(vectors)
    assert logits.dtype == np.float64
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_allclose(
        head.decision_function(vectors.astype(np.float16)), expected, atol=0.1
    )


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((2, 5)), r"reads vectors of width 6, got shape \(2, 5\)"),
        (np.zeros(6), r"got shape \(6,\)"),
        (np.zeros((2, 6), np.int8), "vectors of floats, got int8"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(vectors, message):
    with pytest.raises(ValueError, match=message):
        make().decision_function(vectors)


def test_head_is_read_only_also_after_a_pickle():
    for head in (make(), pickle.loads(pickle.dumps(make()))):
        for array in (head.weight, head.bias, head.classes):
            assert not array.flags.writeable


def make_regression(**changes):
    fields = {"objective": "regression", "classes": None}
    return make(**fields | {"weight": np.ones((1, 6)), "bias": np.ones(1)} | changes)


def test_mean_and_scale_of_a_regression_keep_the_digits_of_float64():
    vectors = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
    plain = make_regression().decision_function(vectors)
    head = make_regression(mean=1.7e9 + 0.1, scale=1e-3)
    for scaled in (head, pickle.loads(pickle.dumps(head))):
        np.testing.assert_array_equal(
            scaled.decision_function(vectors), plain * 1e-3 + (1.7e9 + 0.1)
        )
    assert not make_regression(mean=0, scale=1).is_scaled


@pytest.mark.parametrize("wrong", [np.nan, np.inf, "1", None, True, 10**400, 1j])
def test_wrong_mean_and_scale_are_refused(wrong):
    for name in ("mean", "scale"):
        with pytest.raises(ValueError, match=f"head {name} must be a finite number"):
            make_regression(**{name: wrong})
    for scale in (0, -1):
        with pytest.raises(ValueError, match="head scale must be above 0"):
            make_regression(scale=scale)
    with pytest.raises(ValueError, match="mean and scale are for objective='regression'"):
        make(mean=1.0)


@pytest.mark.parametrize("objective", ["regression", "multiple_choice"])
def test_some_objectives_have_no_classes(objective):
    head = make(objective=objective, classes=None, weight=np.ones((1, 6)), bias=np.ones(1))
    assert head.classes is None and head.width == 6
    with pytest.raises(ValueError, match="classes must have shape"):
        make(classes=None)
