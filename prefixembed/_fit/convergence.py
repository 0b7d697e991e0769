"""Warnings about runs that learned nothing, nothing that generalizes, or less than they could."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from prefixembed._fit.examples import Examples
from prefixembed._fit.learning import count_batches
from prefixembed._fit.optimization import History, Recipe
from prefixembed._model.modes import own_modes
from prefixembed._utils.warnings import warn

_AT_CHANCE = 0.98  # a loss above this share of that at chance means that nothing was learned
_MIN_VALID_ROWS = 20  # on fewer rows, figures of validation say little
_LEARNED = 0.1  # a loss below this share of that at chance has little left to fall
_MIN_GAIN = 0.01  # in the last third of the steps, relative to the loss before
# Progress in the last third of the steps relative to the average, per step and learning rate. A run
# that is trained well makes most of its progress early: where a loss falls exponentially towards
# its limit, it has come three quarters of the way when progress is half as fast as on average.
_STEADY = 0.5


@own_modes(gradients=False)
def warn_after_training(history: History, tasks: Mapping[str, Examples], recipe: Recipe) -> None:
    """Warn about what a history shows. There is at most one warning per task, or one about all.

    The training loss is judged for a single task only: the history has none per task.
    """
    if len(tasks) == 1:
        (data,) = tasks.values()
        if warn_if_stuck(history, data, recipe):
            return
    suffixes = {name: f"[{name}]" if len(tasks) > 1 else "" for name in tasks}
    general = [
        warn_if_not_general(history, data, recipe, suffixes[name]) for name, data in tasks.items()
    ]
    if not any(general):
        warn_if_unfinished(history, tasks, recipe)


def warn_if_stuck(history: History, data: Examples, recipe: Recipe) -> bool:
    """Warn, and return True, if the training loss was never clearly below that at chance."""
    loss = _lowest_of_passes(history, count_batches(len(data.train), recipe.batch_size))
    chance = data.chance(data.train)
    if loss <= _AT_CHANCE * chance:
        return False
    warn(
        f"the training loss is stuck at chance or above ({loss:.3g}, and the best prediction that "
        f"does not depend on the text has {chance:.3g}): try another learning_rate than "
        f"{recipe.learning_rate}, or more steps than max_steps={recipe.max_steps}",
        ConvergenceWarning,
    )
    return True


def _lowest_of_passes(history: History, n_steps: int) -> float:
    """Return the lowest mean of the training loss over entries that cover a pass of some steps.

    Fewer rows could have a lower loss by luck. Over a whole pass, a prediction that is the same for
    all texts has no loss below that at chance.
    """
    ends = np.array([0, *history["step"]])
    sums = np.cumsum([0.0, *np.diff(ends) * history["train_loss"]])
    starts = np.searchsorted(ends, ends - n_steps, side="right") - 1
    stops = np.flatnonzero(starts >= 0)
    if not len(stops):  # the run was shorter than a pass
        return float(sums[-1] / ends[-1])
    starts = starts[stops]
    return float(((sums[stops] - sums[starts]) / (ends[stops] - ends[starts])).min())


def warn_if_not_general(history: History, data: Examples, recipe: Recipe, suffix: str = "") -> bool:
    """Warn, and return True, if validation was never better than at chance.

    `suffix` is that of the figures of the task in the history. A classification must also not have
    been more accurate than always the most common class.
    """
    rows = data.valid
    chance = data.chance(rows) if len(rows) >= _MIN_VALID_ROWS else 0.0
    if not chance:
        return False
    loss = min(history[f"valid_loss{suffix}"])
    if loss <= _AT_CHANCE * chance:
        return False
    if data.objective.name == "classification":
        masses = np.bincount(data.targets.values[rows], weights=data.weights[rows])
        if max(history[f"valid_accuracy{suffix}"]) > masses.max() / masses.sum():
            return False
    warn(
        f"valid_loss{suffix} was never below that at chance ({loss:.3g} and {chance:.3g}): nothing "
        "was learned that generalizes to other texts; try more texts, or a lower learning_rate "
        f"than {recipe.learning_rate}",
        ConvergenceWarning,
    )
    return True


def warn_if_unfinished(history: History, tasks: Mapping[str, Examples], recipe: Recipe) -> None:
    """Warn if the validation loss was still falling at the end.

    The learning rate has fallen to zero by then, so that the last figures alone say little. The
    loss of a run that needs more steps hardly moves any more, and a loss that has stalled falls a
    little once the rate is low. Progress is therefore measured per step and learning rate, from the
    loss at chance. It must be at least half as fast as on average both in the middle third of the
    steps and in the last one.
    """
    n_rows = sum(len(data.valid) for data in tasks.values())
    if n_rows < _MIN_VALID_ROWS or history["step"][-1] < recipe.max_steps:
        return
    chance = float(np.mean([data.chance(data.valid) for data in tasks.values() if len(data.valid)]))
    steps, losses = np.array([0, *history["step"]]), np.array([chance, *history["valid_loss"]])
    rates = np.array([0.0, *history["learning_rate"]])
    # The sum of the learning rates of all steps up to each entry, by the trapezoid rule.
    effort = np.cumsum([0.0, *np.diff(steps) * (rates[1:] + rates[:-1]) / 2])
    first, second = np.searchsorted(steps, steps[-1] * np.array([1, 2]) / 3, side="right") - 1
    last = len(steps) - 1
    if not 0 < first < second < last:
        return
    if losses.argmin() < last or losses[last] < _LEARNED * chance:
        return
    marks = [0, first, second, last]
    gains = -np.diff(losses[marks])
    speeds = gains / np.diff(effort[marks])
    is_steady = speeds[1:].min() >= _STEADY * gains.sum() / effort[-1]
    if is_steady and gains[-1] > _MIN_GAIN * losses[second]:
        warn(
            f"the validation loss was still falling after max_steps={recipe.max_steps} steps: more "
            "steps may help",
            ConvergenceWarning,
        )
