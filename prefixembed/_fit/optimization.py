"""One optimisation loop; it knows nothing of what it trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from prefixembed._fit.checkpoints import Checkpoints, State

WARMUP_FRACTION = 0.1
MAX_GRADIENT_NORM = 1.0
# What AdamW can still multiply by in float32; sensible rates are far below.
MAX_RATE = 1e6

History = dict[str, list[float]]


@dataclass(frozen=True)
class Recipe:
    """How to optimise.

    Parameters
    ----------
    max_epochs : int
        Passes over the training texts.
    batch_size : int
        Texts a step.
    learning_rate : float
        Peak of AdamW's rate: linear warm-up over the first tenth of the steps, then linear
        decay to zero.
    weight_decay : float
        AdamW's.
    patience : int or None
        Epochs without a better validation loss before training stops. None: never.
    """

    max_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    patience: int | None

    def __post_init__(self) -> None:
        # What numpy gives is neither JSON nor the same content as Python's own.
        for name, kind in (
            ("max_epochs", int),
            ("batch_size", int),
            ("learning_rate", float),
            ("weight_decay", float),
        ):
            object.__setattr__(self, name, kind(getattr(self, name)))
        if self.patience is not None:
            object.__setattr__(self, "patience", int(self.patience))


@dataclass(frozen=True)
class Step:
    """What one step learns from.

    Parameters
    ----------
    task : int
        Which of the tasks.
    rows : ndarray of shape (batch,)
        Positions of some of its rows.
    """

    task: int
    rows: NDArray[np.intp]


@dataclass(frozen=True)
class Surroundings:
    """State of what a step depends on beside the parameters, such as a random generator.

    Parameters
    ----------
    get : callable
        Gives it.
    put : callable
        Takes what the other gave, perhaps in an earlier process.
    """

    get: Callable[[], State]
    put: Callable[[State], None]


def optimise(
    groups: Sequence[tuple[Sequence[Tensor], float]],
    backward: Callable[[Step], float],
    draw: Callable[[np.random.Generator], list[Step]],
    recipe: Recipe,
    validate: Callable[[], dict[str, float]] | None,
    rng: np.random.Generator,
    history: History,
    *,
    progress: bool = False,
    checkpoints: Checkpoints | None = None,
    surroundings: Surroundings | None = None,
) -> None:
    """Train parameters in place, and leave in them the best state that validation saw.

    So it is too where an error or Ctrl-C ends it. With checkpoints, the same call again goes on
    where the last one was written, and ends where it would have ended without a break, in every
    bit.

    Parameters
    ----------
    groups : sequence of (sequence of Tensor, float)
        Leaves that require gradients, and the share of the learning rate that they get.
    backward : callable
        Adds the gradient of a step's mean loss to the parameters and returns that loss.
    draw : callable
        Gives the steps of an epoch, always as many.
    recipe : Recipe
        How.
    validate : callable or None
        Gives figures, among them ``"valid_loss"``. None: the last state stays.
    rng : numpy.random.Generator
        Order of the texts.
    history : dict of str to list of float
        Empty. It gets one entry an epoch: ``epoch``, ``train_loss``, ``learning_rate``,
        ``seconds`` and what `validate` gives; and one of the first epoch if Ctrl-C ends it there.
    progress : bool, default=False
        Show a progress bar.
    checkpoints : Checkpoints, default=None
        Where states are kept, and where one may be from before. None: nowhere.
    surroundings : Surroundings, default=None
        What is to be kept and put back with them.

    Raises
    ------
    FloatingPointError
        If a loss or a gradient is not finite.
    OSError
        If a checkpoint cannot be written.
    """
    run = _Run(groups, recipe, rng, history, surroundings)
    try:
        if checkpoints is not None and (state := checkpoints.load()) is not None:
            run.restore(state)
        while not run.finished:
            _run_epoch(run, backward, draw, recipe, validate, progress, checkpoints)
    except KeyboardInterrupt:
        if not history and run.n_rows:
            run.record({"train_loss": run.loss / run.n_rows})
        raise
    finally:
        run.leave_best()


def _run_epoch(
    run: _Run,
    backward: Callable[[Step], float],
    draw: Callable[[np.random.Generator], list[Step]],
    recipe: Recipe,
    validate: Callable[[], dict[str, float]] | None,
    progress: bool,
    checkpoints: Checkpoints | None,
) -> None:
    steps = run.draw(draw)
    n_steps = len(steps) * recipe.max_epochs
    before = len(steps) * (run.epoch - 1)
    with tqdm(
        total=len(steps),
        initial=run.taken,
        desc=f"fit, epoch {run.epoch} of {recipe.max_epochs}",
        unit="step",
        disable=not progress,
    ) as bar:
        for step in steps[run.taken :]:
            run.step(backward, step, _rate(before + run.taken, n_steps))
            bar.update()
            if checkpoints is not None and checkpoints.is_due() and run.taken < len(steps):
                checkpoints.save(before + run.taken, run.state())
        run.check_finite()
        figures = {"train_loss": run.loss / run.n_rows}
        if validate is not None:
            figures |= validate()
        bar.set_postfix({k: f"{v:.3f}" for k, v in figures.items() if k.endswith("loss")})
    run.end_epoch(figures)
    if checkpoints is not None:
        checkpoints.save(before + len(steps), run.state())


class _Run:
    """All that changes while optimising: it can be written down and taken up again."""

    def __init__(
        self,
        groups: Sequence[tuple[Sequence[Tensor], float]],
        recipe: Recipe,
        rng: np.random.Generator,
        history: History,
        surroundings: Surroundings | None,
    ) -> None:
        self.parameters = [parameter for some, _ in groups for parameter in some]
        self.shares = [share for _, share in groups]
        self.optimizer = torch.optim.AdamW(
            [{"params": list(some)} for some, _ in groups], weight_decay=recipe.weight_decay
        )
        self.recipe, self.rng, self.history = recipe, rng, history
        self.surroundings = surroundings
        self.epoch, self.finished = 1, False
        # Of this epoch: steps taken, sum of their losses over rows, and the rows.
        self.taken, self.loss, self.n_rows = 0, 0.0, 0
        self.rate = 0.0
        self.best_loss, self.best_epoch = math.inf, 0
        self.best: list[Tensor] | None = None
        self.drawn_from: Mapping[str, Any] = rng.bit_generator.state
        self.seconds, self.started = 0.0, time.perf_counter()

    def draw(self, draw: Callable[[np.random.Generator], list[Step]]) -> list[Step]:
        """Give all steps of this epoch, those included that were taken before a break."""
        self.drawn_from = self.rng.bit_generator.state
        return draw(self.rng)

    def step(self, backward: Callable[[Step], float], step: Step, share: float) -> None:
        """Take a step at a share of the peak rate."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = backward(step)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        for what, value in (("loss", loss), ("gradient's norm", float(norm))):
            if not math.isfinite(value):
                self._give_up(f"the {what} became {value}")
        self.rate = self.recipe.learning_rate * share
        for group, own in zip(self.optimizer.param_groups, self.shares, strict=True):
            group["lr"] = own * self.rate
        self.optimizer.step()
        self.loss += loss * len(step.rows)
        self.n_rows += len(step.rows)
        self.taken += 1

    def check_finite(self) -> None:
        """Refuse what the last step may have left; the next step would notice by its loss."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters):
            self._give_up("what is learned became infinite or NaN")

    def _give_up(self, what: str) -> NoReturn:
        raise FloatingPointError(
            f"{what} in epoch {self.epoch} at learning_rate={self.recipe.learning_rate}; a lower "
            "rate may help"
        )

    def record(self, figures: Mapping[str, float]) -> None:
        """Write figures of this epoch into the history."""
        entry = {"epoch": self.epoch, **figures, "learning_rate": self.rate}
        entry["seconds"] = self.seconds + time.perf_counter() - self.started
        for name, figure in entry.items():
            self.history.setdefault(name, []).append(figure)

    def end_epoch(self, figures: Mapping[str, float]) -> None:
        """Record the epoch, keep its state if it is the best, and see whether it is the last."""
        stops = False
        better = figures.get("valid_loss", math.inf) < self.best_loss
        best = [p.detach().clone() for p in self.parameters] if better else self.best
        self.record(figures)
        if "valid_loss" in figures:
            if better:
                self.best_loss, self.best_epoch, self.best = (
                    figures["valid_loss"], self.epoch, best,
                )  # fmt: skip
            patience = self.recipe.patience
            stops = patience is not None and self.epoch - self.best_epoch >= patience
        self.finished = stops or self.epoch == self.recipe.max_epochs
        self.epoch += 1
        self.taken, self.loss, self.n_rows = 0, 0.0, 0
        self.drawn_from = self.rng.bit_generator.state

    def leave_best(self) -> None:
        """Put the best state that validation saw into the parameters."""
        if self.best is not None:
            with torch.no_grad():
                for parameter, best in zip(self.parameters, self.best, strict=True):
                    parameter.copy_(best)

    _FACTS = (
        "epoch", "finished", "taken", "loss", "n_rows", "rate", "best_loss", "best_epoch",
        "drawn_from", "history",
    )  # fmt: skip

    def state(self) -> State:
        """Write everything down."""
        facts: dict[str, Any] = {name: getattr(self, name) for name in self._FACTS}
        facts["seconds"] = self.seconds + time.perf_counter() - self.started
        tensors: dict[str, Tensor] = {}
        for k, parameter in enumerate(self.parameters):
            tensors[f"parameter.{k}"] = parameter.detach()
            if self.best is not None:
                tensors[f"best.{k}"] = self.best[k]
            for name, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{k}.{name}"] = value
        if self.surroundings is not None:
            around = self.surroundings.get()
            facts["surroundings"] = dict(around.facts)
            tensors |= {f"surroundings.{name}": value for name, value in around.tensors.items()}
        return State(facts, tensors)

    def restore(self, state: State) -> None:
        """Take up what was written down."""
        facts, by_kind = dict(state.facts), _nested(state.tensors)
        around = State(facts.pop("surroundings", {}), by_kind.get("surroundings", {}))
        history = facts.pop("history")
        with torch.no_grad():
            for name, value in by_kind["parameter"].items():
                self.parameters[int(name)].copy_(value)
        if "best" in by_kind:
            self.best = [
                by_kind["best"][str(k)].to(parameter.device)
                for k, parameter in enumerate(self.parameters)
            ]
        for name, value in by_kind.get("optimizer", {}).items():
            position, _, field = name.partition(".")
            parameter = self.parameters[int(position)]
            # The count of steps stays on the CPU, as AdamW has it.
            where = parameter.device if value.ndim else value.device
            self.optimizer.state[parameter][field] = value.to(where)
        if self.surroundings is not None:
            self.surroundings.put(around)
        for name, value in facts.items():
            setattr(self, name, value)
        self.rng.bit_generator.state = self.drawn_from
        # Last: with a history, there is something to keep.
        self.history.update(history)


def _nested(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        found.setdefault(kind, {})[rest] = tensor
    return found


def _rate(step: int, n_steps: int) -> float:
    warmup = max(1, round(WARMUP_FRACTION * n_steps))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (n_steps - step) / max(1, n_steps - warmup))
