"""Losses, predictions and label checks of each objective."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.special import log_softmax

from prefixembed._fit.objectives import OBJECTIVES, Targets
from prefixembed.head import Head

ONE_EACH = np.ones(4, dtype=np.intp)


def losses(name, logits, targets, counts):
    objective = OBJECTIVES[name]
    values = torch.from_numpy(objective.flat(targets.values))
    return objective.losses(torch.tensor(logits).float(), values, counts).numpy()


def test_classification_is_cross_entropy():
    targets = OBJECTIVES["classification"].read(["b", "a", "b", "c"], ONE_EACH)
    logits = np.random.default_rng(0).standard_normal((4, 3))
    expected = -log_softmax(logits, axis=1)[np.arange(4), [1, 0, 1, 2]]
    np.testing.assert_allclose(losses("classification", logits, targets, ONE_EACH), expected, 1e-6)


def test_regression_is_squared_error_and_its_head_predicts_on_the_scale_of_y():
    objective = OBJECTIVES["regression"]
    y = np.array([10.0, 20.0, 30.0, 60.0])
    targets = objective.scaled(objective.read(y, ONE_EACH), np.ones(4))
    np.testing.assert_allclose([targets.values.mean(), targets.values.std()], [0, 1], atol=1e-6)
    logits = targets.values[:, None] + [[0.0], [1.0], [0.0], [-2.0]]
    np.testing.assert_allclose(losses("regression", logits, targets, ONE_EACH), [0, 1, 0, 4], 1e-5)
    # A head that returns standardized numbers returns y with their mean and scale.
    head = Head("regression", None, np.ones((1, 1)), np.zeros(1), targets.mean, targets.scale)
    np.testing.assert_allclose(head.decision_function(targets.values[:, None]), y[:, None], 1e-6)


def test_multilabel_is_a_sigmoid_per_label():
    objective = OBJECTIVES["multilabel"]
    y = np.array([[1, 0], [0, 0], [1, 1], [0, 1]])
    targets = objective.read(y, ONE_EACH)
    logits = np.random.default_rng(0).standard_normal((4, 2))
    p = objective.probabilities(logits, ONE_EACH)
    expected = -np.where(y, np.log(p), np.log(1 - p)).mean(axis=1)
    np.testing.assert_allclose(losses("multilabel", logits, targets, ONE_EACH), expected, 1e-5)
    np.testing.assert_array_equal(objective.predict(logits, targets.classes, ONE_EACH), p > 0.5)
    np.testing.assert_array_equal(objective.read(csr_matrix(y), ONE_EACH).values, y)
    assert objective.score(y, y, None) == 1
    assert objective.score(y, 1 - y, None) == 0


def test_multiple_choice_is_a_softmax_over_the_choices_of_a_row():
    objective = OBJECTIVES["multiple_choice"]
    counts = np.array([3, 1, 2])
    logits = np.array([[1.0], [2.0], [0.0], [5.0], [1.0], [1.0]])
    targets = objective.read([1, 0, 0], counts)
    expected = [-log_softmax([1.0, 2.0, 0.0])[1], 0, np.log(2)]
    np.testing.assert_allclose(
        losses("multiple_choice", logits, targets, counts), expected, atol=1e-6
    )
    p = objective.probabilities(logits, counts)
    assert p.shape == (3, 3)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(p > 0, [[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(objective.predict(logits, None, counts), [1, 0, 0])


def test_token_classification_averages_over_the_words_of_a_row():
    objective = OBJECTIVES["token_classification"]
    counts = np.array([2, 0, 1])
    targets = objective.read([["N", "V"], [], ["N"]], counts)
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    each = -log_softmax(logits, axis=1)[np.arange(3), [0, 1, 0]]
    expected = [each[:2].mean(), 0, each[2]]
    np.testing.assert_allclose(
        losses("token_classification", logits, targets, counts), expected, 1e-6
    )
    predicted = objective.predict(logits, targets.classes, counts)
    assert [list(row) for row in predicted] == [["N", "V"], [], ["N"]]
    assert objective.score([["N", "N"], [], ["N"]], predicted, None) == pytest.approx(2 / 3)
    # Each word has the weight of its row.
    assert objective.score([["N", "N"], [], ["N"]], predicted, [1, 1, 4]) == pytest.approx(5 / 6)


@st.composite
def rows(draw):
    name = draw(st.sampled_from(sorted(OBJECTIVES)))
    n = draw(st.integers(2, 6))
    counts = np.ones(n, dtype=np.intp)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if name == "multiple_choice":
        counts = rng.integers(1, 5, size=n)
        y = rng.integers(counts)
    elif name == "token_classification":
        counts = rng.integers(0, 4, size=n)
        counts[:2] = 2
        y = [rng.integers(2, size=k) for k in counts]
        y[0] = np.array([0, 1])
    elif name == "regression":
        y = rng.standard_normal(n)
    elif name == "multilabel":
        y = rng.integers(2, size=(n, 3))
    else:
        y = np.r_[0, 1, rng.integers(3, size=n - 2)]
    return name, y, counts, rng


@given(rows())
@settings(max_examples=100, deadline=None)
def test_chance_is_the_lowest_loss_of_a_constant_prediction(case):
    name, y, counts, rng = case
    objective = OBJECTIVES[name]
    targets = objective.read(y, counts)
    weights = rng.uniform(0.5, 2, size=len(counts))
    targets = objective.scaled(targets, weights)
    chance = objective.chance(targets.values, counts, weights)
    # The best constant, found by optimization.
    constant = torch.zeros(targets.n_outputs, requires_grad=True)
    optimizer = torch.optim.LBFGS([constant], max_iter=200, line_search_fn="strong_wolfe")
    values = torch.from_numpy(objective.flat(targets.values))

    def mean_loss():
        logits = constant.expand(int(counts.sum()), -1)
        each = objective.losses(logits, values, counts)
        return (each * torch.tensor(weights)).sum() / weights.sum()

    def closure():
        optimizer.zero_grad()
        loss = mean_loss()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(mean_loss().detach()) == pytest.approx(chance, abs=2e-3)


@pytest.mark.parametrize(
    ("name", "y", "counts", "message"),
    [
        ("classification", [0, 0, 0, 0], ONE_EACH, "two classes or more, got 1 class"),
        ("regression", [1.0, np.nan, 2, 3], ONE_EACH, r"y\[1\] must be a finite number, got nan"),
        ("regression", [1.0, np.inf, 2, 3], ONE_EACH, r"y\[1\] must be a finite number, got inf"),
        ("regression", ["a", "b", "c", "d"], ONE_EACH, r"y\[0\] must be a finite number, got 'a'"),
        ("regression", None, ONE_EACH, "requires y to be passed"),
        ("multilabel", [0, 1, 0, 1], ONE_EACH, r"indicator matrix .* got .* at y\[0\]"),
        ("multilabel", [[0, 2]] * 4, ONE_EACH, "indicator matrix of zeros and ones"),
        ("multiple_choice", [0, 3, 0], np.array([3, 3, 1]), r"y\[1\] must be .* of 3 choices, got"),
        ("multiple_choice", [0, -1, 0], np.array([3, 3, 1]), r"y\[1\] must be the position"),
        ("multiple_choice", ["a", "b"], np.array([2, 2]), "position of the right choice"),
        ("token_classification", [["a"]], np.array([2]), r"y\[0\] must have one label per word, 2"),
        ("token_classification", ["ab"], np.array([2]), r"y\[0\] must have one label per word, 2"),
        (
            "token_classification",
            [["a", "b"]],
            np.array([2, 1]),
            "one row of labels per sentence: 2",
        ),
        (
            "token_classification",
            [["a", None]],
            np.array([2]),
            r"y\[0\]\[1\] must be a label, .* None",
        ),
        ("token_classification", None, np.array([2]), "requires y to be passed"),
    ],
)
def test_invalid_labels_are_named(name, y, counts, message):
    with pytest.raises(ValueError, match=message):
        OBJECTIVES[name].read(y, counts)


def test_equal_numbers_are_refused():
    objective = OBJECTIVES["regression"]
    targets = objective.read([2.0, 2, 2, 5], ONE_EACH)
    with pytest.raises(ValueError, match="two different numbers or more, all of n_samples=3 are 2"):
        objective.scaled(Targets(targets.values[:3], None, 1), np.ones(3))
