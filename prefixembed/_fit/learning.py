"""Learning from the labelled rows of one task or several."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefixembed._embed.batches import plan_batches, shuffle_batches
from prefixembed._embed.encoding import is_out_of_memory
from prefixembed._embed.tokens import Tokens
from prefixembed._fit.checkpoints import Checkpoints, State
from prefixembed._fit.examples import Examples
from prefixembed._fit.heads import refit_head
from prefixembed._fit.optimization import (
    History,
    Outcome,
    Problem,
    Recipe,
    Step,
    kept_entry,
    optimize,
)
from prefixembed._model.devices import random_state, set_random_state
from prefixembed._model.modes import own_modes
from prefixembed._version import __version__

_BACKGROUND_TEXTS = 8  # per step; more would cost as much as the texts of the task


class Learner(ABC):
    """Base class of what is trained."""

    heads: Sequence[nn.Linear]  # one per task
    groups: Sequence[tuple[Sequence[nn.Parameter], float]]  # with shares of the learning rate
    identity: tuple[Any, ...]  # what vectors depend on besides texts and parameters
    draws_on: torch.device | None = None  # whose random generators `encode` draws from, if any
    generator: torch.Generator | None = None  # that `encode` draws from besides, if any
    n_background = 0  # number of background texts; each step reads some of them

    @abstractmethod
    def encode(self, tokens: Tokens, positions: NDArray[np.intp]) -> Tensor:
        """Return the vectors of some texts, with gradients."""

    @abstractmethod
    def embed(self, tokens: Tokens, batch_tokens: int) -> NDArray[np.float32]:
        """Return all vectors, without gradients, in batches of at most `batch_tokens` tokens."""

    def penalty(self, background: NDArray[np.intp]) -> Tensor | None:
        """Return what a step adds to the loss for what is done to some background texts.

        None for learners without background texts.
        """
        return None

    def training(self) -> AbstractContextManager[None]:
        """Return the context that training takes place in."""
        return nullcontext()


@own_modes(gradients=True)
def train(
    tasks: Mapping[str, Examples],
    learner: Learner,
    recipe: Recipe,
    *,
    temperature: float = 1.0,
    batch_tokens: int,
    rng: np.random.Generator,
    progress: bool = False,
    checkpoint_dir: str | os.PathLike[str] | None = None,
) -> Outcome:
    """Train a learner in place, and return what :func:`optimize` returns.

    Tasks come in the order of the heads. A step takes as many forward passes of at most
    `batch_tokens` tokens as it needs, and half as many tokens if the device runs out of memory.

    In the history, ``valid_loss`` is the loss at the best scale of the logits, averaged over tasks.
    Several tasks also have figures of their
    own, with the name of the task in brackets. If `checkpoint_dir` has a checkpoint of the same
    run, training continues from there.
    """
    problem = _Supervised(tasks, learner, recipe.batch_size, temperature, batch_tokens)
    checkpoints = None
    if checkpoint_dir is not None:
        run = _identify(tasks, learner, recipe, temperature, rng)
        checkpoints = Checkpoints(checkpoint_dir, run)
    with learner.training():
        outcome = optimize(problem, recipe, rng, progress=progress, checkpoints=checkpoints)
        if outcome.error is None:
            problem.refit_heads()
    return outcome


class _Supervised(Problem):
    """The loss of a learner and its heads on labelled rows."""

    def __init__(
        self,
        tasks: Mapping[str, Examples],
        learner: Learner,
        batch_size: int,
        temperature: float,
        batch_tokens: int,
    ) -> None:
        self.groups = learner.groups
        self.names, self.tasks = list(tasks), list(tasks.values())
        self.learner = learner
        self.batch_size, self.temperature = batch_size, temperature
        self.batch_tokens = batch_tokens

    def draw_steps(self, rng: np.random.Generator) -> list[Step]:
        steps = draw_steps(self.tasks, self.temperature, self.batch_size, rng)
        n_texts = self.learner.n_background
        if not n_texts:
            return steps
        size = min(n_texts, _BACKGROUND_TEXTS)
        return [replace(s, background=rng.choice(n_texts, size, replace=False)) for s in steps]

    def backward(self, step: Step) -> float:
        loss = self._backward_rows(step)
        if step.background is not None:
            # The recorded loss is that of the rows alone, which is compared with that at chance.
            self._backward_penalty(step.background)
        return loss

    def _backward_penalty(self, background: NDArray[np.intp]) -> None:
        """Add the gradient of the penalty, for half as many texts if memory runs out."""
        parameters = [parameter for some, _ in self.groups for parameter in some]
        while True:
            try:
                penalty = self.learner.penalty(background)
                if penalty is None:
                    return
                # Gradients of an attempt that fails must not stay beside those of the rows.
                gradients = torch.autograd.grad(penalty, parameters, allow_unused=True)
                break
            except (RuntimeError, MemoryError) as error:
                if len(background) == 1 or not is_out_of_memory(error):
                    raise
            background = background[: len(background) // 2]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def _backward_rows(self, step: Step) -> float:
        data, head = self.tasks[step.task], self.learner.heads[step.task]
        longest, n_texts = data.longest[step.rows], data.n_texts[step.rows]

        def loss_of(rows: NDArray[np.intp]) -> Tensor:
            vectors = self.learner.encode(data.tokens, data.texts(rows))
            return data.losses(head(vectors), rows).sum() / len(step.rows)

        while True:
            plan = plan_batches(longest, self.batch_tokens, n_texts)
            try:
                return _sum_backward(loss_of, [step.rows[part] for part in plan])
            except (RuntimeError, MemoryError) as error:
                if max(len(part) for part in plan) == 1 or not is_out_of_memory(error):
                    raise
            for some, _ in self.groups:
                for parameter in some:
                    parameter.grad = None
            n_tokens = int(longest.max() * n_texts.sum())
            self.batch_tokens = max(1, min(self.batch_tokens, n_tokens) // 2)

    def validate(self) -> dict[str, float]:
        by_task = {
            name: self._validate_task(data, head)
            for name, data, head in zip(self.names, self.tasks, self.learner.heads, strict=True)
            if len(data.valid)
        }
        if len(self.tasks) == 1 or not by_task:
            return next(iter(by_task.values()), {})
        mean = float(np.mean([figures["valid_loss"] for figures in by_task.values()]))
        own = {f"{k}[{name}]": v for name, some in by_task.items() for k, v in some.items()}
        return {"valid_loss": mean, **own}

    def refit_heads(self) -> None:
        """Fit each head again on the vectors that were learned, if that is better."""
        for data, head in zip(self.tasks, self.learner.heads, strict=True):
            refit_head(head, data, partial(self._vectors, data))

    def _vectors(self, data: Examples, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        return self.learner.embed(data.tokens.take(data.texts(rows)), self.batch_tokens)

    def _validate_task(self, data: Examples, head: nn.Linear) -> dict[str, float]:
        rows = data.valid
        vectors = torch.from_numpy(self._vectors(data, rows))
        with torch.no_grad():
            logits = head(vectors.to(head.weight.device)).cpu()  # (unit, output)
        weights, counts = data.weights[rows], data.counts[rows]
        losses = data.losses(data.best_scale(logits, rows) * logits, rows)
        figures = {"valid_loss": float(losses.sum() / weights.sum())}
        objective = data.objective
        if len(rows) >= objective.min_scored:
            outputs = np.arange(data.targets.n_outputs)
            predicted = objective.predict(logits.double().numpy(), outputs, counts)
            truth = objective.take(data.targets.values, rows)
            figures[f"valid_{objective.metric}"] = objective.score(truth, predicted, weights)
        return figures

    def state(self) -> State:
        device = self.learner.draws_on
        tensors = {} if device is None else random_state(device)
        if self.learner.generator is not None:
            tensors["generator"] = self.learner.generator.get_state()
        return State({"batch_tokens": self.batch_tokens}, tensors)

    def restore(self, state: State) -> None:
        # If the device ran out of memory before the break, the parts of a step stay as small:
        # the sum over other parts is rounded differently.
        self.batch_tokens = min(self.batch_tokens, state.facts["batch_tokens"])
        if self.learner.draws_on is not None:
            set_random_state(self.learner.draws_on, state.tensors)
        if self.learner.generator is not None:
            self.learner.generator.set_state(state.tensors["generator"])


def _sum_backward(
    loss_of: Callable[[NDArray[np.intp]], Tensor], parts: Sequence[NDArray[np.intp]]
) -> float:
    """Add the gradients of the losses of all parts, and return the sum of the losses."""
    total = 0.0
    for part in parts:
        loss = loss_of(part)
        torch.autograd.backward(loss)
        total += float(loss.detach())
    return total


def draw_steps(
    tasks: Sequence[Examples], temperature: float, batch_size: int, rng: np.random.Generator
) -> list[Step]:
    """Return the steps of one pass in random order, each with rows of one task."""
    steps = []
    counts = count_steps(tasks, temperature, batch_size)
    for k, (data, count) in enumerate(zip(tasks, counts, strict=True)):
        batches: list[NDArray[np.intp]] = []
        while len(batches) < count:
            batches += shuffle_batches(data.longest[data.train], batch_size, rng)
        rows = [data.train[batch] for batch in batches[:count]]
        steps += [Step(k, some, float(data.weights[some].sum())) for some in rows]
    # The batches of a single task are in random order already.
    return [steps[k] for k in rng.permutation(len(steps))] if len(tasks) > 1 else steps


def count_steps(tasks: Sequence[Examples], temperature: float, batch_size: int) -> NDArray[np.intp]:
    """Return the number of steps that each task has in one pass.

    The share of a task is proportional to its number of batches to the power ``1 / temperature``.
    There are about as many steps as batches, and at least one per task.
    """
    sizes = np.array([count_batches(len(data.train), batch_size) for data in tasks])
    shares = sizes ** (1 / temperature)
    return np.maximum(1, np.rint(shares / shares.sum() * sizes.sum()).astype(np.intp))


def count_batches(n_rows: int, batch_size: int) -> int:
    """Return the number of batches that rows fill, the last of them perhaps in part."""
    return -(-n_rows // batch_size)


def _identify(
    tasks: Mapping[str, Examples],
    learner: Learner,
    recipe: Recipe,
    temperature: float,
    rng: np.random.Generator,
) -> str:
    """Return a digest of everything that decides what is learned, except the device and batches."""
    # The initial values of parameters follow from the rest up to rounding, which depends on the
    # number of threads. So only shapes enter.
    shapes = [tuple(parameter.shape) for some, _ in learner.groups for parameter in some]
    shares = [share for _, share in learner.groups]
    content = [
        (data.objective.name, data.tokens, data.counts, data.targets, data.weights, data.train,
         data.valid)
        for data in tasks.values()
    ]  # fmt: skip
    training = (shapes, shares, learner.identity, recipe, temperature, rng.bit_generator.state)
    # Another version may train differently, and write other facts.
    return joblib.hash((__version__, list(tasks), content, training))


def check_can_resume(checkpoint_dir: Any, random_state: Any) -> None:
    """Check that a run with checkpoints draws the same numbers when it is started again."""
    if checkpoint_dir is not None and random_state is None:
        raise ValueError(
            "random_state must be an int if checkpoint_dir is set, got random_state=None "
            f"and checkpoint_dir={os.fspath(checkpoint_dir)!r}: a run continues from its "
            "checkpoint only if it draws the same numbers again"
        )


def training_facts(examples: Examples, recipe: Recipe, history: History) -> dict[str, Any]:
    """Return the facts about training that a prefix records, as JSON types.

    Losses are those of the evaluation whose state was kept.
    """
    facts: dict[str, Any] = {
        "n_texts": len(examples.train),
        "n_validation_texts": len(examples.valid),
        "n_truncated": int(examples.tokens.truncated.sum()),
        "learning_rate": recipe.learning_rate,
        "batch_size": recipe.batch_size,
        "n_steps": int(history["step"][-1]),
        "seconds": history["seconds"][-1],
    }
    kept = kept_entry(history)
    figures = ("train_loss", "valid_loss", f"valid_{examples.objective.metric}")
    return facts | {name: history[name][kept] for name in figures if name in history}
