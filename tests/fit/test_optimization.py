"""The training loop on small problems."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixembed._files.tensors import pack_tensors, unpack_tensors
from prefixembed._fit.checkpoints import State
from prefixembed._fit.optimization import Outcome, Problem, Recipe, Step, _rate, optimize


class Quadratic(Problem):
    """Minimize the mean square of a parameter; validation losses are given."""

    def __init__(self, valid_losses=()):
        self.parameter = torch.nn.Parameter(torch.full((4,), 3.0))
        self.groups = [([self.parameter], 1.0)]
        self.valid_losses = iter(valid_losses)
        self.taken, self.validated = [], []

    def draw_steps(self, rng):
        return [Step(0, rows, 16.0) for rows in rng.permutation(64).reshape(4, 16)]

    def backward(self, step):
        self.taken.append(step)
        loss = (self.parameter**2).mean()
        loss.backward()
        return float(loss.detach())

    def validate(self):
        self.validated.append(self.parameter.detach().clone())
        loss = next(self.valid_losses, None)
        return {} if loss is None else {"valid_loss": loss}


def run(problem, **changes):
    fields = {
        "max_steps": 24,
        "eval_steps": 4,
        "batch_size": 16,
        "learning_rate": 0.1,
        "weight_decay": 0.0,
        "patience": None,
    }
    return optimize(problem, Recipe(**(fields | changes)), np.random.default_rng(0))


def test_quadratic_gets_smaller_and_history_records_it():
    problem = Quadratic()
    outcome = run(problem)
    history = outcome.history
    assert history["step"] == [4, 8, 12, 16, 20, 24]
    assert history["train_loss"] == sorted(history["train_loss"], reverse=True)
    assert history["seconds"] == sorted(history["seconds"])
    assert set(history) == {"step", "train_loss", "learning_rate", "seconds"}
    assert (problem.parameter**2).mean() < 4
    assert outcome.error is None and outcome.is_usable
    outcome.reraise("folder")  # there is nothing to raise, and no warning


def test_learning_rate_rises_then_falls_to_zero():
    rates = [_rate(step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == 0
    assert all(np.isfinite(_rate(step, 1)) for step in range(3))


def test_best_state_is_left_and_patience_stops_training():
    problem = Quadratic([0.9, 0.5, 0.7, 0.6, 0.1])
    outcome = run(problem, patience=2)
    assert outcome.history["valid_loss"] == [0.9, 0.5, 0.7, 0.6]
    assert torch.equal(problem.parameter, problem.validated[1])
    assert not torch.equal(problem.parameter, problem.validated[3])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_training(bad):
    class Breaks(Quadratic):
        def backward(self, step):
            return bad if len(self.taken) == 5 else super().backward(step)

    problem = Breaks()
    outcome = run(problem)
    assert torch.isfinite(problem.parameter).all()
    assert not outcome.is_usable  # validation has seen no state
    with pytest.raises(FloatingPointError, match=r"in step 6 at learning_rate=0\.1"):
        outcome.reraise(None)


def test_groups_get_their_shares_of_the_learning_rate():
    class Sum(Quadratic):
        def __init__(self):
            super().__init__()
            self.fast, self.slow = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
            self.groups = [([self.fast], 1.0), ([self.slow], 0.1)]

        def backward(self, step):
            loss = self.fast.sum() + self.slow.sum()
            loss.backward()
            return float(loss.detach())

    problem = Sum()
    run(problem)
    torch.testing.assert_close((1 - problem.slow) * 10, 1 - problem.fast)


def test_gradients_are_clipped_over_all_parameters():
    norms = []

    class Steep(Quadratic):
        def backward(self, step):
            (1000 * self.parameter).sum().backward()
            return 1.0

    problem = Steep()
    problem.parameter.register_post_accumulate_grad_hook(lambda p: norms.append(p.grad))
    run(problem, max_steps=4)
    assert len(norms) == 4
    assert all(float(gradient.norm()) <= 1.0001 for gradient in norms)


def test_each_pass_takes_each_row():
    problem = Quadratic()
    run(problem, max_steps=8)
    counts = np.bincount(np.concatenate([step.rows for step in problem.taken]))
    assert (counts == 2).all() and len(counts) == 64


class Lines(Problem):
    """Fit a line to random numbers with random weights."""

    def __init__(self, n_rows, batch_size, validates):
        rng = np.random.default_rng(0)
        self.x, self.y = torch.from_numpy(rng.standard_normal((2, n_rows)))
        self.weights = torch.from_numpy(rng.uniform(0.1, 2, n_rows))
        self.batch_size, self.validates = batch_size, validates
        self.line = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.groups = [([self.line], 1.0)]
        self.taken, self.losses = [], []

    def draw_steps(self, rng):
        order = rng.permutation(len(self.x))
        rows = [order[k : k + self.batch_size] for k in range(0, len(order), self.batch_size)]
        return [Step(0, some, float(self.weights[some].sum())) for some in rows]

    def row_losses(self, rows):
        errors = self.line[0] * self.x[rows] + self.line[1] - self.y[rows]
        return errors**2 * self.weights[rows]

    def backward(self, step):
        losses = self.row_losses(step.rows)
        self.taken.append(step)
        self.losses.append(float(losses.detach().sum()))
        loss = losses.sum() / len(step.rows)
        loss.backward()
        return float(loss.detach())

    def validate(self):
        if not self.validates:
            return {}
        return {"valid_loss": float(self.row_losses(np.arange(len(self.x))).mean().detach())}


class Kept:
    """Keep the bytes of the last checkpoint, and stop training after given numbers of steps."""

    def __init__(self, stops):
        self.stops, self.content = set(stops), None

    def is_due(self):
        return True

    def save(self, number, state):
        self.content = pack_tensors(state.facts, state.tensors)
        if number in self.stops:
            self.stops.remove(number)
            raise RuntimeError("stopped")

    def load(self):
        if self.content is None:
            return None
        return State(*unpack_tensors(self.content, "checkpoint", framework="torch"))


runs = given(
    n_rows=st.integers(1, 30),
    batch_size=st.integers(1, 12),
    max_steps=st.integers(1, 40),
    eval_steps=st.integers(1, 50),
    validates=st.booleans(),
    stops=st.sets(st.integers(1, 40), max_size=4),
)


@runs
@settings(max_examples=60, deadline=None)
def test_steps_come_from_passes_and_are_evaluated_at_intervals(
    n_rows, batch_size, max_steps, eval_steps, validates, stops
):
    problem = Lines(n_rows, batch_size, validates)
    history = run(problem, max_steps=max_steps, eval_steps=eval_steps).history
    assert len(problem.taken) == max_steps
    assert history["step"] == [*range(eval_steps, max_steps, eval_steps), max_steps]
    # The steps are those of one pass after the other.
    rng, expected = np.random.default_rng(0), []
    while len(expected) < max_steps:
        expected += Lines(n_rows, batch_size, validates).draw_steps(rng)
    for step, other in zip(problem.taken, expected[:max_steps], strict=True):
        np.testing.assert_array_equal(step.rows, other.rows)
    # A training loss is the weighted mean since the entry before.
    ends = [0, *history["step"]]
    for k, (start, end) in enumerate(itertools.pairwise(ends)):
        weight = sum(step.weight for step in problem.taken[start:end])
        assert history["train_loss"][k] == pytest.approx(sum(problem.losses[start:end]) / weight)
        assert history["learning_rate"][k] == 0.1 * _rate(end - 1, max_steps)
    assert ("valid_loss" in history) == validates


@runs
@settings(max_examples=60, deadline=None)
def test_run_that_stops_at_any_steps_ends_in_the_same_bits(
    n_rows, batch_size, max_steps, eval_steps, validates, stops
):
    recipe = {"max_steps": max_steps, "eval_steps": eval_steps, "patience": 3}
    recipe = Recipe(batch_size=batch_size, learning_rate=0.3, weight_decay=0.1, **recipe)
    problem = Lines(n_rows, batch_size, validates)
    expected = optimize(problem, recipe, np.random.default_rng(0)).history
    kept, error = Kept(stops), RuntimeError()
    while error is not None:
        again = Lines(n_rows, batch_size, validates)
        outcome = optimize(again, recipe, np.random.default_rng(0), checkpoints=kept)
        error = outcome.error
    assert torch.equal(again.line, problem.line)
    del expected["seconds"], outcome.history["seconds"]
    assert outcome.history == expected


LOST = RuntimeError("the device is lost")
SOME = {"step": [1], "train_loss": [0.7]}
VALIDATED = SOME | {"valid_loss": [0.6]}


@pytest.mark.parametrize(
    ("history", "error", "is_usable"),
    [
        ({}, LOST, False),
        (SOME, LOST, False),
        (VALIDATED, LOST, True),
        ({}, KeyboardInterrupt(), False),
        (SOME, KeyboardInterrupt(), True),
        (VALIDATED, KeyboardInterrupt(), True),
        (SOME, None, True),
    ],
)
def test_state_is_usable_if_validated_or_stopped_by_the_user(history, error, is_usable):
    assert Outcome(history, error).is_usable == is_usable


@pytest.mark.parametrize("folder", [None, "checkpoints"])
@pytest.mark.parametrize("history", [{}, SOME, VALIDATED])
@pytest.mark.parametrize("error", [LOST, KeyboardInterrupt()])
def test_original_error_is_raised_with_a_warning_that_says_how_to_continue(history, error, folder):
    outcome = Outcome(history, error)
    is_usable = outcome.is_usable
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(type(error)) as raised:
            outcome.reraise(folder)
    assert raised.value is error
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == (is_usable or folder is not None)
    for message in messages:
        assert message.startswith(f"fit was stopped ({type(error).__name__}): ")
        which = "best" if "valid_loss" in history else "last"
        assert (f"holds the {which} state (after step 1)" in message) == is_usable
        continues = "continues from the last checkpoint in 'checkpoints', if any"
        assert (continues in message) == (folder is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(type(error)) as raised:
            Outcome(history, error).reraise(folder)
    assert raised.value is error and raised.value.__context__ is None
