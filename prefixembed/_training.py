"""One optimisation loop; it knows nothing of what it trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

WARMUP_FRACTION = 0.1
MAX_GRADIENT_NORM = 1.0

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


def optimise(
    groups: Sequence[tuple[Sequence[Tensor], float]],
    backward: Callable[[Step], float],
    draw: Callable[[np.random.Generator], list[Step]],
    recipe: Recipe,
    validate: Callable[[], dict[str, float]] | None,
    rng: np.random.Generator,
    progress: bool = False,
) -> History:
    """Train parameters in place, and leave in them the best state that validation saw.

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
    progress : bool, default=False
        Show a progress bar.

    Returns
    -------
    history : dict of str to list of float
        One entry an epoch: ``epoch``, ``train_loss``, ``learning_rate``, ``seconds`` and what
        `validate` gives.

    Raises
    ------
    FloatingPointError
        If a loss is not finite.
    """
    parameters = [parameter for some, _ in groups for parameter in some]
    optimizer = torch.optim.AdamW(
        [{"params": list(some), "lr": share * recipe.learning_rate} for some, share in groups],
        weight_decay=recipe.weight_decay,
    )
    steps = draw(rng)
    n_steps = len(steps) * recipe.max_epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, n_steps))

    history: History = {}
    best_loss, best_epoch, best_state = math.inf, 0, [p.detach().clone() for p in parameters]
    started = time.perf_counter()
    with tqdm(total=n_steps, desc="fit", unit="step", disable=not progress) as bar:
        for epoch in range(1, recipe.max_epochs + 1):
            total = 0.0
            for step in steps:
                optimizer.zero_grad(set_to_none=True)
                loss = backward(step)
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"the loss became {loss} in epoch {epoch} at "
                        f"learning_rate={recipe.learning_rate}; a lower rate may help"
                    )
                torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
                rate = recipe.learning_rate * _rate(schedule.last_epoch, n_steps)
                optimizer.step()
                schedule.step()
                total += loss * len(step.rows)
                bar.update()
            mean = total / sum(len(step.rows) for step in steps)
            figures = {"epoch": epoch, "train_loss": mean, "learning_rate": rate}
            if validate is not None:
                figures |= validate()
            figures["seconds"] = time.perf_counter() - started
            for name, figure in figures.items():
                history.setdefault(name, []).append(figure)
            bar.set_postfix({k: f"{v:.3f}" for k, v in figures.items() if k.endswith("loss")})
            if validate is not None:
                if figures["valid_loss"] < best_loss:
                    best_loss, best_epoch = figures["valid_loss"], epoch
                    best_state = [p.detach().clone() for p in parameters]
                elif recipe.patience is not None and epoch - best_epoch >= recipe.patience:
                    break
            if epoch < recipe.max_epochs:
                steps = draw(rng)
    if validate is not None:
        with torch.no_grad():
            for parameter, best in zip(parameters, best_state, strict=True):
                parameter.copy_(best)
    return history


def _rate(step: int, n_steps: int) -> float:
    warmup = max(1, round(WARMUP_FRACTION * n_steps))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (n_steps - step) / max(1, n_steps - warmup))
