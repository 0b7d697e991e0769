"""Warnings after training, from histories that are made up."""

import warnings

import numpy as np
import pytest
from helpers import make_encoder, make_multitask, split_examples
from sklearn.exceptions import ConvergenceWarning

from prefixembed._fit.convergence import warn_after_training
from prefixembed._fit.optimization import Recipe, _rate

CHANCE = np.log(2)
STUCK, NOT_GENERAL, UNFINISHED = "is stuck at chance", "that generalizes", "was still falling"


def make_recipe(max_steps):
    return Recipe(
        max_steps=max_steps, eval_steps=1, batch_size=8, learning_rate=0.5, weight_decay=0.0,
        patience=None,
    )  # fmt: skip


def make_history(train_losses, valid_losses=None, *, interval=1, max_steps=None, accuracy=1.0):
    n = len(train_losses)
    steps = [interval * k for k in range(1, n + 1)]
    rates = [0.5 * _rate(step - 1, max_steps or steps[-1]) for step in steps]
    history = {"step": steps, "train_loss": list(train_losses), "learning_rate": rates}
    if valid_losses is not None:
        history |= {"valid_loss": list(valid_losses), "valid_accuracy": [0.0] * (n - 1)}
        history["valid_accuracy"].append(accuracy)
    return history


def warned(history, tasks, max_steps=None):
    """Return the messages of the warnings about a run."""
    tasks = tasks if isinstance(tasks, dict) else {"": tasks}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_after_training(history, tasks, make_recipe(max_steps or history["step"][-1]))
    assert all(warning.category is ConvergenceWarning for warning in caught)
    return [str(warning.message) for warning in caught]


# A pass over these takes four steps.
BALANCED = split_examples(np.arange(32) % 2, n_valid=0)


@pytest.mark.parametrize(
    ("losses", "is_stuck"),
    [
        ([0.7, 0.69, 0.69, 0.69] * 2, True),
        ([0.9, 0.2, 0.8, 0.9] * 2, True),  # some batches are easy, but no pass is
        ([0.7, 0.7, 0.7, 0.69, 0.68, 0.66, 0.67, 0.68], False),
        ([0.5, 0.5, 0.5, 0.5, 3.0, 3.0, 3.0, 3.0], False),
        ([0.7, 0.69], True),  # less than a pass
        ([0.7, 0.6], False),
    ],
)
def test_training_loss_at_chance_over_every_pass_is_reported(losses, is_stuck):
    messages = warned(make_history(losses), BALANCED)
    assert len(messages) == is_stuck
    for message in messages:
        assert STUCK in message and f"max_steps={len(losses)}" in message
        assert "another learning_rate than 0.5" in message and "has 0.693" in message


def test_passes_are_found_among_long_intervals():
    # Three steps each: a pass of four steps is covered by two entries.
    assert warned(make_history([0.9, 0.5, 0.9, 0.5], interval=3), BALANCED)
    assert not warned(make_history([0.9, 0.6, 0.6, 0.9], interval=3), BALANCED)


FALLING = [0.6, 0.4, 0.2, 0.1]
RISING = [0.69, 0.72, 0.8, 0.9]


@pytest.mark.parametrize(
    ("n_valid", "valid_losses", "accuracy", "is_general"),
    [
        (40, RISING, 0.5, False),
        (40, RISING, 0.525, True),  # better than the share of the most common class
        (40, [0.67, *RISING[1:]], 0.5, True),
        (20, RISING, 0.5, False),
        (18, RISING, 0.5, True),  # too few rows to tell
    ],
)
def test_validation_at_chance_is_reported(n_valid, valid_losses, accuracy, is_general):
    data = split_examples(np.arange(72) % 2, n_valid)
    messages = warned(make_history(FALLING, valid_losses, accuracy=accuracy), data)
    assert len(messages) == (not is_general)
    for message in messages:
        assert NOT_GENERAL in message and "lower learning_rate than 0.5" in message
        assert "(0.69 and 0.693)" in message


def test_accuracy_is_compared_with_the_share_of_the_most_common_class():
    data = split_examples(np.arange(80) % 4 == 0, n_valid=40)
    chance = data.chance(data.valid)
    losses = [chance, 1.1 * chance, 1.2 * chance, 1.3 * chance]
    assert warned(make_history(FALLING, losses, accuracy=0.75), data)
    assert not warned(make_history(FALLING, losses, accuracy=0.775), data)


def test_validation_of_other_objectives_is_judged_by_the_loss():
    data = split_examples(np.tile([-1.0, 1.0], 40).astype(np.float32), 40, "regression")
    assert warned(make_history(FALLING, [0.99, 1.1, 1.2, 1.3]), data)
    assert not warned(make_history(FALLING, [0.9, 1.1, 1.2, 1.3]), data)


def test_validation_of_a_single_class_is_not_judged():
    data = split_examples(np.r_[np.arange(30) % 2, np.zeros(30, dtype=int)], n_valid=30)
    assert not warned(make_history(FALLING, RISING, accuracy=1.0), data)


def test_each_task_that_does_not_generalize_is_named():
    data = split_examples(np.arange(72) % 2, n_valid=40)
    history = make_history(FALLING, RISING)
    for name, accuracy in (("a", 0.5), ("b", 0.9), ("c", 0.4)):
        history |= {f"valid_loss[{name}]": RISING, f"valid_accuracy[{name}]": 4 * [accuracy]}
    messages = warned(history, {"a": data, "b": data, "c": data})
    assert [message.partition(" ")[0] for message in messages] == ["valid_loss[a]", "valid_loss[c]"]


def test_only_the_first_kind_of_warning_is_given():
    data = split_examples(np.arange(72) % 2, n_valid=40)
    (message,) = warned(make_history([0.7] * 4, RISING, accuracy=0.5), data)
    assert STUCK in message


def effort(n_steps):
    """Return the share of the sum of learning rates that each step has behind it."""
    rates = np.array([_rate(step, n_steps) for step in range(n_steps)])
    return np.cumsum(rates) / rates.sum()


def curve(loss_of_effort, n_evaluations=20, n_steps=300, seed=None):
    """Return a history whose validation loss depends on the sum of learning rates."""
    interval = n_steps // n_evaluations
    losses = loss_of_effort(effort(n_steps)[interval - 1 :: interval])
    if seed is not None:
        losses = losses * (1 + 0.01 * np.random.default_rng(seed).standard_normal(len(losses)))
    return make_history(losses, losses, interval=interval)


def falls(speed, limit=0.3):
    """Return a loss that falls exponentially from chance to a limit."""
    return lambda effort: limit + (CHANCE - limit) * np.exp(-speed * effort)


VALIDATED = split_examples(np.arange(72) % 2, n_valid=40)


@pytest.mark.parametrize("n_evaluations", [4, 10, 20])
@pytest.mark.parametrize(
    ("speed", "is_unfinished"), [(0.3, True), (0.7, True), (3, False), (6, False), (20, False)]
)
def test_loss_that_still_falls_is_reported(speed, is_unfinished, n_evaluations):
    messages = warned(curve(falls(speed), n_evaluations), VALIDATED)
    assert len(messages) == is_unfinished
    for message in messages:
        assert UNFINISHED in message and "max_steps=300" in message


def test_late_start_is_reported():
    history = curve(lambda effort: 0.3 + (CHANCE - 0.3) / (1 + np.exp(12 * (effort - 0.8))))
    assert UNFINISHED in warned(history, VALIDATED)[0]


@pytest.mark.parametrize("amplitude", [0.02, 0.05, 0.1])
def test_fall_that_is_due_to_the_falling_rate_is_not_reported(amplitude):
    # The loss has stalled, and then falls with the learning rate.
    history = curve(falls(20))
    rates = np.array(history["learning_rate"]) / 0.5
    history["valid_loss"] = list(history["valid_loss"] + amplitude * rates)
    assert np.argmin(history["valid_loss"]) == 19
    assert not warned(history, VALIDATED)


def test_noise_of_a_run_that_is_trained_well_is_not_reported():
    for seed in range(200):
        assert not warned(curve(falls(8), seed=seed), VALIDATED)


def test_run_that_stopped_early_or_was_not_validated_is_not_unfinished():
    history = curve(falls(0.5))
    assert warned(history, VALIDATED)
    assert not warned(history, VALIDATED, max_steps=600)  # stopped by patience at 300
    del history["valid_loss"]
    assert not warned(history, split_examples(np.arange(32) % 2, n_valid=0))


def test_run_of_few_evaluations_is_not_judged():
    for n_evaluations in (1, 2):
        assert not warned(curve(falls(0.5), n_evaluations), VALIDATED)


def test_several_tasks_are_unfinished_together():
    history = curve(falls(0.5))
    history |= {f"valid_{figure}[{name}]": history[f"valid_{figure}"]
                for name in "ab" for figure in ("loss", "accuracy")}  # fmt: skip
    messages = warned(history, {"a": VALIDATED, "b": VALIDATED})
    assert len(messages) == 1 and UNFINISHED in messages[0]


# The same text has either label: nothing can be learned but how common the labels are.
CONTRADICTORY = ["a text"] * 60, [0, 1] * 30


def test_prefix_encoder_warns_where_the_user_called_it(tiny):
    with pytest.warns(ConvergenceWarning, match=STUCK) as caught:
        make_encoder(tiny(), learning_rate=1e-12).fit(*CONTRADICTORY)
    assert [warning.filename for warning in caught] == [__file__]


def test_multitask_encoder_warns_where_the_user_called_it(tiny):
    encoder = make_multitask(tiny(), max_steps=20, validation_fraction=0.4)
    with pytest.warns(ConvergenceWarning, match=r"valid_loss\[[ab]\] .*generalizes") as caught:
        encoder.fit({"a": CONTRADICTORY, "b": CONTRADICTORY})
    assert [warning.filename for warning in caught] == [__file__] * 2
