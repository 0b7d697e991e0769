"""Learning from labelled rows of one task or several: steps, validation, what came of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from prefixembed._embed.batching import Tokens, plan_batches, shuffle_batches
from prefixembed._embed.encoding import is_out_of_memory
from prefixembed._fit.checkpoints import Checkpoints, State
from prefixembed._fit.examples import Examples
from prefixembed._fit.optimization import History, Recipe, Step, Surroundings, optimise
from prefixembed._model.devices import random_state, set_random_state
from prefixembed._utils.warnings import warn
from prefixembed._version import __version__

# A final training loss above this share of the labels' entropy means that nothing was learned.
_STUCK = 0.98


@dataclass(frozen=True)
class Learner:
    """What is trained, and how it reads texts.

    Parameters
    ----------
    encode : callable
        Gives the vectors of some of the texts that were tokenized, gradients and all.
    embed : callable
        Gives the vectors of all texts within a budget of tokens a batch, without gradients.
    heads : sequence of torch.nn.Linear
        One a task.
    groups : sequence of (sequence of Parameter, float)
        What is trained, with the share of the learning rate that it gets.
    identity : tuple
        What `encode` depends on beside what is trained; numbers and strings.
    draws_on : torch.device, default=None
        Whose generators of torch `encode` draws from. None: from none.
    """

    encode: Callable[[Tokens, NDArray[np.intp]], Tensor]
    embed: Callable[[Tokens, int], NDArray[np.float32]]
    heads: Sequence[nn.Linear]
    groups: Sequence[tuple[Sequence[nn.Parameter], float]]
    identity: tuple[Any, ...]
    draws_on: torch.device | None = None


def learn(
    tasks: Mapping[str, Examples],
    learner: Learner,
    draw: Callable[[np.random.Generator], list[Step]],
    recipe: Recipe,
    *,
    batch_tokens: int,
    rng: np.random.Generator,
    history: History,
    progress: bool,
    checkpoint_dir: str | os.PathLike[str] | None,
) -> None:
    """Train in place.

    Parameters
    ----------
    tasks : mapping of str to Examples
        What to learn from. One task needs no name.
    learner : Learner
        What is trained.
    draw : callable
        Gives the steps of an epoch.
    recipe : Recipe
        How.
    batch_tokens : int
        Most tokens that go through the backbone at once; a step's gradient is summed over as
        many parts as that takes. A device out of memory halves it.
    rng : numpy.random.Generator
        Order of the texts.
    history : dict of str to list of float
        Empty; filled as :func:`~prefixembed._fit.optimization.optimise` says. ``valid_loss`` is the mean
        over tasks; of several tasks, each has its own figures too, with its name in brackets.
    progress : bool
        Show a progress bar.
    checkpoint_dir : str, path-like or None
        Where states are kept, and looked for first.

    Raises
    ------
    FloatingPointError
        If a loss or a gradient is not finite.
    OSError
        If a checkpoint cannot be written.
    """
    parameters = [parameter for some, _ in learner.groups for parameter in some]
    all_data = list(tasks.values())
    budget = batch_tokens

    def backward(step: Step) -> float:
        nonlocal budget
        data, head = all_data[step.task], learner.heads[step.task]
        longest, n_texts = data.longest[step.rows], data.n_texts[step.rows]

        def loss_of(rows: NDArray[np.intp]) -> Tensor:
            vectors = learner.encode(data.tokens, data.texts(rows))
            return data.losses(head(vectors), rows).sum()

        while True:
            parts = [step.rows[part] for part in plan_batches(longest, budget, n_texts)]
            try:
                return _backward_parts(parts, loss_of, len(step.rows))
            except (RuntimeError, MemoryError) as error:
                if max(len(part) for part in parts) == 1 or not is_out_of_memory(error):
                    raise
            for parameter in parameters:
                parameter.grad = None
            budget = max(1, min(budget, int(longest.max() * n_texts.sum())) // 2)

    def validate() -> dict[str, float]:
        validated = {
            name: _validate(data, head, learner, budget)
            for (name, data), head in zip(tasks.items(), learner.heads, strict=True)
            if len(data.valid)
        }
        if len(tasks) == 1:
            return next(iter(validated.values()))
        mean = float(np.mean([figures["valid_loss"] for figures in validated.values()]))
        own = {f"{k}[{name}]": v for name, some in validated.items() for k, v in some.items()}
        return {"valid_loss": mean, **own}

    def get() -> State:
        device = learner.draws_on
        return State({"budget": budget}, {} if device is None else random_state(device))

    def put(state: State) -> None:
        nonlocal budget
        # The device may have run out of memory before: parts of a step are summed as they were.
        budget = min(budget, state.facts["budget"])
        if learner.draws_on is not None:
            set_random_state(learner.draws_on, state.tensors)

    checkpoints = None
    if checkpoint_dir is not None:
        checkpoints = Checkpoints(checkpoint_dir, _identify(tasks, learner, recipe, rng))
    can_validate = any(len(data.valid) for data in all_data)
    optimise(
        learner.groups, backward, draw, recipe, validate if can_validate else None, rng, history,
        progress=progress, checkpoints=checkpoints, surroundings=Surroundings(get, put),
    )  # fmt: skip


def _identify(
    tasks: Mapping[str, Examples], learner: Learner, recipe: Recipe, rng: np.random.Generator
) -> str:
    """Digest all that decides what is learned, but for the device and how it splits batches."""
    content = [
        (data.tokens, data.counts, data.targets, data.weights, data.train, data.valid)
        for data in tasks.values()
    ]
    # Where parameters start follows from the rest, but for rounding, which goes by the number of
    # threads.
    shapes = [tuple(parameter.shape) for some, _ in learner.groups for parameter in some]
    shares = [share for _, share in learner.groups]
    kinds = [type(data.objective).__name__ for data in tasks.values()]
    # Another version may train otherwise, and write down other things.
    data = (list(tasks), kinds, content)
    training = (shapes, shares, learner.identity, recipe, rng.bit_generator.state)
    return joblib.hash((__version__, data, training))


def check_can_resume(checkpoint_dir: Any, random_state: Any) -> None:
    """Refuse checkpoints of a run that would draw other numbers when it is started again."""
    if checkpoint_dir is not None and random_state is None:
        raise ValueError(
            f"random_state must be an int where there is a checkpoint_dir, got random_state=None "
            f"and checkpoint_dir={os.fspath(checkpoint_dir)!r}: a run goes on from its checkpoint "
            "only if it draws the same numbers again"
        )


@contextmanager
def kept_when_stopped(
    history: History, keep: Callable[[], None], checkpoint_dir: str | os.PathLike[str] | None
) -> Iterator[None]:
    """Where learning is stopped by an error or Ctrl-C, keep what is usable, say so, and raise on.

    Parameters
    ----------
    history : dict of str to list of float
        What the learning in the context fills.
    keep : callable
        Makes what is learned so far the estimator's own.
    checkpoint_dir : str, path-like or None
        Where the learning has its checkpoints.

    Warns
    -----
    UserWarning
        What was kept, and how to go on.
    """
    try:
        yield
    except BaseException as error:
        told = []
        # Where validation saw no state that is better, an error may have left anything.
        if "valid_loss" in history or (history and isinstance(error, KeyboardInterrupt)):
            keep()
            n_epochs = len(history["epoch"])
            which = "best" if "valid_loss" in history else "last"
            told.append(f"the estimator holds the {which} state of {n_epochs} epoch(s)")
        if checkpoint_dir is not None:
            where = os.fspath(checkpoint_dir)
            told.append(f"the same call goes on from the last checkpoint in {where!r}, if any")
        if told:
            # Where warnings are errors, this one must not take the place of the other.
            with suppress(UserWarning):
                warn(f"fit was stopped ({type(error).__name__}): {'; '.join(told)}")
        raise


def mixed_steps(
    tasks: Sequence[Examples], temperature: float, batch_size: int, rng: np.random.Generator
) -> list[Step]:
    """Give the steps of an epoch over several tasks.

    Parameters
    ----------
    tasks : sequence of Examples
        What to learn from.
    temperature : float
        Each task gets a share of the steps in proportion to its number of batches to the power
        ``1 / temperature``.
    batch_size : int
        Rows a step, of one task.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    steps : list of Step
        In random order; as many as there are batches, or a few more, so that each task has one.
    """
    batches = [shuffle_batches(data.longest[data.train], batch_size, rng) for data in tasks]
    sizes = np.array([len(some) for some in batches])
    shares = sizes ** (1 / temperature)
    counts = np.maximum(1, np.rint(shares / shares.sum() * sizes.sum()).astype(int))
    steps = []
    for k, (data, some, count) in enumerate(zip(tasks, batches, counts, strict=True)):
        while len(some) < count:
            some = some + shuffle_batches(data.longest[data.train], batch_size, rng)
        steps += [Step(k, data.train[batch]) for batch in some[:count]]
    return [steps[k] for k in rng.permutation(len(steps))]


def _backward_parts(
    parts: Sequence[NDArray[np.intp]],
    loss_of: Callable[[NDArray[np.intp]], Tensor],
    n_texts: int,
) -> float:
    total = 0.0
    for part in parts:
        loss = loss_of(part) / n_texts
        torch.autograd.backward(loss)
        total += float(loss.detach())
    return total


def _validate(data: Examples, head: nn.Linear, learner: Learner, budget: int) -> dict[str, float]:
    rows = data.valid
    tokens = data.tokens.take(data.texts(rows))
    vectors = torch.from_numpy(learner.embed(tokens, budget))
    with torch.no_grad():
        logits = head(vectors.to(head.weight.device)).cpu()
    weights, counts = data.weights[rows], data.counts[rows]
    predicted = data.objective.predict(
        logits.double().numpy(), np.arange(data.targets.n_outputs), counts
    )
    truth = data.objective.take(data.targets.values, rows)
    return {
        "valid_loss": float(data.losses(logits, rows).sum() / weights.sum()),
        f"valid_{data.objective.metric}": data.objective.score(truth, predicted, weights),
    }


def warn_if_stuck(history: History, data: Examples, learning_rate: float) -> None:
    """Warn if the loss says that nothing was learned."""
    loss = min(history["train_loss"])
    if loss > _STUCK * data.chance:
        warn(
            f"the training loss is stuck at chance or above ({loss:.3g}, and the best guess that "
            f"looks at no text gives {data.chance:.3g}): try another learning_rate than "
            f"{learning_rate}, more max_epochs, or init='text'",
            ConvergenceWarning,
        )


def training_facts(data: Examples, recipe: Recipe, history: History) -> dict[str, Any]:
    """Tell how a prefix was trained, as its file will say."""
    facts: dict[str, Any] = {
        "n_texts": len(data.train),
        "n_validation_texts": len(data.valid),
        "n_truncated": int(data.tokens.truncated.sum()),
        "learning_rate": float(recipe.learning_rate),
        "batch_size": int(recipe.batch_size),
        "n_epochs": len(history["epoch"]),
        "seconds": history["seconds"][-1],
    }
    # Of the epoch whose state was kept.
    kept = int(np.argmin(history["valid_loss"])) if "valid_loss" in history else -1
    figures = ("train_loss", "valid_loss", f"valid_{data.objective.metric}")
    return facts | {name: history[name][kept] for name in figures if name in history}
