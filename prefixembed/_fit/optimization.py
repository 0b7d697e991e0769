"""The training loop, which sees what it trains only as a :class:`Problem`."""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from prefixembed._fit.checkpoints import Checkpoints, State
from prefixembed._utils.warnings import warn

WARMUP_FRACTION = 0.1
MAX_GRADIENT_NORM = 1.0
# AdamW can still multiply by this in float32; sensible rates are far below.
MAX_RATE = 1e6

History = dict[str, list[float]]


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the training loop, which uses AdamW."""

    max_steps: int
    eval_steps: int  # steps between evaluations; there is always one after the last step
    batch_size: int  # rows per step
    learning_rate: float  # at its peak, after the first tenth of the steps; see _rate
    weight_decay: float
    patience: int | None  # evaluations without a lower validation loss, then training stops

    def __post_init__(self) -> None:
        # Scalars of numpy are not JSON, and hash differently from equal numbers of Python.
        for name in ("max_steps", "eval_steps", "batch_size", "patience"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else int(value))
        for name in ("learning_rate", "weight_decay"):
            object.__setattr__(self, name, float(getattr(self, name)))


@dataclass(frozen=True)
class Step:
    """The rows that one step learns from."""

    task: int  # index of the task
    rows: NDArray[np.intp]  # positions of rows of that task
    weight: float  # of the rows together, in recorded losses
    background: NDArray[np.intp] | None = None  # positions of background texts


class Problem(ABC):
    """What the loop optimizes."""

    groups: Sequence[tuple[Sequence[Tensor], float]]  # with shares of the learning rate

    @abstractmethod
    def draw_steps(self, rng: np.random.Generator) -> list[Step]:
        """Return the steps of one pass over the data, in random order."""

    @abstractmethod
    def backward(self, step: Step) -> float:
        """Add the gradient of the loss of a step to the parameters, and return that loss.

        The loss is the sum of the weighted losses of the rows, divided by their number.
        """

    def validate(self) -> dict[str, float]:
        """Return figures that include ``"valid_loss"``, or none if there is no validation set."""
        return {}

    def state(self) -> State:
        """Return what steps depend on besides the parameters, such as random states."""
        return State({}, {})

    def restore(self, state: State) -> None:
        """Restore what :meth:`state` returned, possibly in an earlier process."""
        del state


@dataclass(frozen=True)
class Outcome:
    """The result of a training run.

    The history has one entry per evaluation: ``step`` (number of steps taken so far),
    ``train_loss`` (weighted mean since the entry before), ``learning_rate``, ``seconds`` and the
    figures of validation. If Ctrl-C stops training before any validation, there is also an entry
    for the last steps.
    """

    history: History
    error: BaseException | None = None  # that stopped training

    @property
    def is_usable(self) -> bool:
        """Whether the parameters hold something worth keeping.

        An error may have left anything in the parameters if validation has seen no state. After
        Ctrl-C, they hold the last state.
        """
        if self.error is None or "valid_loss" in self.history:
            return True
        return bool(self.history) and isinstance(self.error, KeyboardInterrupt)

    def reraise(self, checkpoint_dir: str | os.PathLike[str] | None) -> None:
        """Raise the error that stopped training, if there was one, and forget it.

        Before, warn what the estimator holds, and how to continue from a checkpoint.
        """
        if self.error is None:
            return
        parts = []
        if self.is_usable:
            which = "best" if "valid_loss" in self.history else "last"
            step = self.history["step"][kept_entry(self.history)]
            parts.append(f"the estimator holds the {which} state (after step {step})")
        if checkpoint_dir is not None:
            where = os.fspath(checkpoint_dir)
            parts.append(f"the same call continues from the last checkpoint in {where!r}, if any")
        if parts:
            # Where warnings are errors, this one must not replace the original error.
            with suppress(UserWarning):
                warn(f"fit was stopped ({type(self.error).__name__}): {'; '.join(parts)}")
        error = self.error
        # The traceback will hold frames that hold this outcome. If it still held the error, only
        # the garbage collector could free the memory of the run.
        object.__setattr__(self, "error", None)
        try:
            raise error
        finally:
            del error


def kept_entry(history: History) -> int:
    """Return the position of the entry whose state is kept: the best one, or else the last."""
    return int(np.argmin(history["valid_loss"])) if "valid_loss" in history else -1


def optimize(
    problem: Problem,
    recipe: Recipe,
    rng: np.random.Generator,
    *,
    progress: bool = False,
    checkpoints: Checkpoints | None = None,
) -> Outcome:
    """Train parameters in place, and leave the best state that validation has seen in them.

    The best state is also left if an error or Ctrl-C stops training. Without validation, the last
    state stays. If `checkpoints` has a state of the same run, training continues from there and
    ends in the same state, bit for bit, as without a break.

    The error in the outcome is a FloatingPointError if a loss or a gradient is not finite, and an
    OSError if a checkpoint cannot be written.
    """
    run = _Run(problem, recipe, rng)
    try:
        if checkpoints is not None and (state := checkpoints.load()) is not None:
            run.restore(state)
        run.take_steps(progress, checkpoints)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and run.weight and "valid_loss" not in run.history:
            run.record({})
        run.leave_best()
        return Outcome(run.history, error)
    run.leave_best()
    return Outcome(run.history)


class _Run:
    """Everything that changes during training. It can be written down and restored."""

    # The history comes last: a run that has one has something to keep.
    _FACTS = (
        "taken", "finished", "position", "loss", "weight", "rate", "best_loss", "n_since_best",
        "drawn_from", "seconds", "history",
    )  # fmt: skip

    def __init__(self, problem: Problem, recipe: Recipe, rng: np.random.Generator) -> None:
        self.problem, self.recipe, self.rng = problem, recipe, rng
        self.parameters = [parameter for some, _ in problem.groups for parameter in some]
        groups = [{"params": list(some)} for some, _ in problem.groups]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
        self.history: History = {}
        self.taken, self.finished = 0, False
        # The steps of the current pass, the number of them that were taken, and the random state
        # that they were drawn from.
        self.steps: list[Step] = []
        self.position = 0
        self.drawn_from: Mapping[str, Any] = rng.bit_generator.state
        # Since the last entry of the history: sums of the weighted losses and of the weights.
        self.loss, self.weight = 0.0, 0.0
        self.rate = 0.0
        self.best_loss, self.n_since_best = math.inf, 0
        self.best: list[Tensor] | None = None
        self.seconds, self.started = 0.0, time.perf_counter()

    def take_steps(self, progress: bool, checkpoints: Checkpoints | None) -> None:
        """Take the steps that are left, and evaluate at intervals and at the end."""
        last, interval = self.recipe.max_steps, self.recipe.eval_steps
        with tqdm(
            total=last, initial=self.taken, desc="fit", unit="step", disable=not progress
        ) as bar:
            while not self.finished:
                self.step(self.next_step())
                bar.update()
                if self.taken % interval == 0 or self.taken == last:
                    losses = {k: v for k, v in self.evaluate().items() if k.endswith("loss")}
                    bar.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()})
                if checkpoints is not None and (self.finished or checkpoints.is_due()):
                    checkpoints.save(self.taken, self.state())

    def next_step(self) -> Step:
        """Return the next step of the current pass; after its last one, draw another pass."""
        if self.position == len(self.steps):
            self.drawn_from = self.rng.bit_generator.state
            self.steps, self.position = self.problem.draw_steps(self.rng), 0
        return self.steps[self.position]

    def step(self, step: Step) -> None:
        """Take a step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.problem.backward(step)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        for what, value in (("loss", loss), ("norm of the gradient", float(norm))):
            if not math.isfinite(value):
                self._give_up(f"the {what} became {value}", self.taken + 1)
        self.rate = self.recipe.learning_rate * _rate(self.taken, self.recipe.max_steps)
        for group, (_, own) in zip(self.optimizer.param_groups, self.problem.groups, strict=True):
            group["lr"] = own * self.rate
        self.optimizer.step()
        self.loss += loss * len(step.rows)
        self.weight += step.weight
        self.position += 1
        self.taken += 1

    def _give_up(self, what: str, step: int) -> NoReturn:
        raise FloatingPointError(
            f"{what} in step {step} at learning_rate={self.recipe.learning_rate}; a lower rate "
            "may help"
        )

    def evaluate(self) -> Mapping[str, float]:
        """Validate, record the figures, keep a state that is the best, and decide on the end."""
        # After another step, the loss would show it.
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters):
            self._give_up("a parameter became infinite or NaN", self.taken)
        figures = self.problem.validate()
        valid_loss = figures.get("valid_loss")
        is_best = valid_loss is not None and valid_loss < self.best_loss
        best = [p.detach().clone() for p in self.parameters] if is_best else self.best
        entry = self.record(figures)
        self.n_since_best += 1
        if valid_loss is not None and is_best:
            self.best_loss, self.n_since_best, self.best = valid_loss, 0, best
        patience = None if valid_loss is None else self.recipe.patience
        has_stalled = patience is not None and self.n_since_best >= patience
        self.finished = has_stalled or self.taken == self.recipe.max_steps
        return entry

    def record(self, figures: Mapping[str, float]) -> Mapping[str, float]:
        """Append an entry with figures of validation to the history, and return it."""
        entry = {"step": self.taken, "train_loss": self.loss / self.weight, **figures}
        entry |= {"learning_rate": self.rate, "seconds": self._elapsed()}
        # Replaced as a whole, so that Ctrl-C cannot leave it half written.
        self.history = {k: [*self.history.get(k, []), value] for k, value in entry.items()}
        self.loss, self.weight = 0.0, 0.0
        return entry

    def leave_best(self) -> None:
        """Put the best state that validation has seen into the parameters."""
        if self.best is not None:
            with torch.no_grad():
                for parameter, best in zip(self.parameters, self.best, strict=True):
                    parameter.copy_(best)

    def state(self) -> State:
        """Return everything that changes."""
        own = self.problem.state()
        facts = {name: getattr(self, name) for name in self._FACTS}
        facts |= {"seconds": self._elapsed(), "problem": dict(own.facts)}
        tensors = {f"problem.{name}": value for name, value in own.tensors.items()}
        for k, parameter in enumerate(self.parameters):
            tensors[f"parameter.{k}"] = parameter.detach()
            if self.best is not None:
                tensors[f"best.{k}"] = self.best[k]
            for name, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{k}.{name}"] = value
        return State(facts, tensors)

    def restore(self, state: State) -> None:
        """Continue from what :meth:`state` returned."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in state.tensors.items():
            kind, _, rest = name.partition(".")
            parts.setdefault(kind, {})[rest] = value
        best = parts.get("best")
        with torch.no_grad():
            for k, parameter in enumerate(self.parameters):
                parameter.copy_(parts["parameter"][str(k)])
        if best is not None:
            self.best = [best[str(k)].to(p.device) for k, p in enumerate(self.parameters)]
        for name, value in parts.get("optimizer", {}).items():
            position, _, field = name.partition(".")
            parameter = self.parameters[int(position)]
            # AdamW keeps its count of steps on the CPU.
            where = parameter.device if value.ndim else value.device
            self.optimizer.state[parameter][field] = value.to(where)
        self.problem.restore(State(state.facts["problem"], parts.get("problem", {})))
        self.rng.bit_generator.state = state.facts["drawn_from"]
        self.steps = self.problem.draw_steps(self.rng)
        for name in self._FACTS:
            setattr(self, name, state.facts[name])

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.started


def _rate(step: int, n_steps: int) -> float:
    """Return the share of the peak learning rate at a step."""
    warmup = max(1, round(WARMUP_FRACTION * n_steps))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (n_steps - step) / max(1, n_steps - warmup))
