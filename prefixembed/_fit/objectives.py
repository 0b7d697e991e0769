"""Objectives: how the labels of a source task are read, learned and predicted.

A unit is what the head scores: a text, one of the choices of a row, or a word. `counts` holds the
number of units of each row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_expit, log_softmax, softmax, xlogy
from sklearn.metrics import accuracy_score, r2_score
from torch import Tensor
from torch.nn import functional

from prefixembed._fit.labels import (
    check_indicators,
    check_labels,
    check_numbers,
    check_positions,
    check_sample_weight,
    check_sequences,
    label_array,
    shortest,
    stratified_split,
)

Array = NDArray[Any]


@dataclass(frozen=True)
class Targets:
    """Labels of a source task, encoded for its loss."""

    values: Any  # one entry per row
    classes: Array | None  # labels that the integers in `values` stand for
    n_outputs: int  # of the head, per unit
    mean: float = 0.0  # subtracted from numbers, which are then divided by `scale`
    scale: float = 1.0


class Objective(ABC):
    """A kind of source task; :data:`OBJECTIVES` holds one instance of each."""

    name: ClassVar[str]
    row: ClassVar[str] = "text"  # or "choices" or "words"; see check_rows
    metric: ClassVar[str] = "accuracy"
    measure: ClassVar[Callable[..., float]] = staticmethod(accuracy_score)
    min_scored: ClassVar[int] = 1  # rows below which there is no metric
    has_scale: ClassVar[bool] = True  # whether the scale of logits says how sure a head is

    @abstractmethod
    def read(self, y: ArrayLike, counts: Array) -> Targets:
        """Check labels and encode them."""

    def truth(self, y: ArrayLike) -> Any:
        """Check labels that are compared with predictions, and return them in the same form."""
        return label_array(y)

    def keep(self, targets: Targets, rows: Array) -> Targets:
        """Return the targets of some rows, as if there were no others."""
        return replace(targets, values=self.take(targets.values, rows))

    def scaled(self, targets: Targets, weights: Array) -> Targets:
        """Return targets on the scale that they are learned on."""
        return targets

    def take(self, values: Any, rows: Array) -> Any:
        """Return the values of some rows."""
        return values[rows]

    def flat(self, values: Any) -> Array:
        """Return the values of all rows as one array, with one entry per row or per unit."""
        return values

    def split(
        self, values: Any, fraction: float, rng: np.random.Generator
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return sorted positions of the rows to train on, and of those to validate on."""
        return stratified_split(np.zeros(len(values), dtype=np.int64), fraction, rng)

    @abstractmethod
    def losses(self, logits: Tensor, values: Tensor, counts: Array) -> Tensor:
        """Return the loss of each row, (row,), given logits of shape (unit, output)."""

    @abstractmethod
    def chance(self, values: Any, counts: Array, weights: Array) -> float:
        """Return the mean loss of the best prediction that does not depend on the text."""

    @abstractmethod
    def predict(self, logits: Array, classes: Array | None, counts: Array) -> Any:
        """Return predicted labels in the form of y, given logits of shape (unit, output)."""

    @abstractmethod
    def probabilities(self, logits: Array, counts: Array) -> Any:
        """Return the probabilities that ``predict_proba`` returns."""

    def decision(self, logits: Array, counts: Array) -> Any:
        """Return the scores that ``decision_function`` returns."""
        return logits

    def log_probabilities(self, logits: Array, counts: Array) -> Any:
        """Return the logarithms of probabilities, also of those that round to zero."""
        return to_log_probabilities(logits)

    def score(self, y: Any, predicted: Any, sample_weight: ArrayLike | None) -> float:
        """Return the score of predictions; higher is better."""
        weights = None
        if sample_weight is not None:
            weights = check_sample_weight(sample_weight, len(predicted))
        return float(self.measure(self.truth(y), predicted, sample_weight=weights))


class Classification(Objective):
    """One class per text: softmax and cross-entropy."""

    name = "classification"

    def read(self, y: ArrayLike, counts: Array) -> Targets:
        labels, classes = check_labels(y)
        return Targets(labels, _several(classes), len(classes))

    def keep(self, targets: Targets, rows: Array) -> Targets:
        return _without_absent_classes(targets, targets.values[rows])

    def split(
        self, values: Any, fraction: float, rng: np.random.Generator
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        return stratified_split(values, fraction, rng)

    def losses(self, logits: Tensor, values: Tensor, counts: Array) -> Tensor:
        return functional.cross_entropy(logits, values, reduction="none")

    def chance(self, values: Any, counts: Array, weights: Array) -> float:
        return _entropy(np.bincount(values, weights=weights))

    def predict(self, logits: Array, classes: Array | None, counts: Array) -> Any:
        assert classes is not None
        return classes[logits.argmax(axis=1)]

    def probabilities(self, logits: Array, counts: Array) -> Any:
        return to_probabilities(logits)

    def decision(self, logits: Array, counts: Array) -> Any:
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits


class Regression(Objective):
    """One number per text: squared error of standardized numbers."""

    name = "regression"
    metric = "r2"
    measure = staticmethod(r2_score)
    min_scored = 2
    has_scale = False

    def read(self, y: ArrayLike, counts: Array) -> Targets:
        return Targets(check_numbers(y), None, 1)

    def truth(self, y: ArrayLike) -> Any:
        return check_numbers(y)

    def scaled(self, targets: Targets, weights: Array) -> Targets:
        values = targets.values
        if values.min() == values.max():
            raise ValueError(
                "y must have two different numbers or more, "
                f"all of n_samples={len(weights)} are {values[0]:g}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(np.average(values, weights=weights))
            scale = float(np.average((values - mean) ** 2, weights=weights)) ** 0.5
        if not 0 < scale < np.inf:
            raise ValueError(
                "y must hold numbers whose variance is neither zero nor infinite in float64, got "
                f"numbers between {values.min():g} and {values.max():g}"
            )
        values = ((values - mean) / scale).astype(np.float32)
        return replace(targets, values=values, mean=mean, scale=scale)

    def losses(self, logits: Tensor, values: Tensor, counts: Array) -> Tensor:
        return functional.mse_loss(logits[:, 0], values, reduction="none")

    def chance(self, values: Any, counts: Array, weights: Array) -> float:
        mean = np.average(values, weights=weights)
        return float(np.average((values - mean) ** 2, weights=weights))

    def predict(self, logits: Array, classes: Array | None, counts: Array) -> Any:
        return logits[:, 0]

    def probabilities(self, logits: Array, counts: Array) -> Any:
        raise ValueError("a regression has no probabilities and no classes: call predict")

    decision = log_probabilities = probabilities


class MultiLabel(Objective):
    """Any number of labels per text: sigmoid and cross-entropy, averaged over labels."""

    name = "multilabel"

    def read(self, y: ArrayLike, counts: Array) -> Targets:
        array = check_indicators(y)
        return Targets(array, np.arange(array.shape[1]), array.shape[1])

    def truth(self, y: ArrayLike) -> Any:
        return check_indicators(y).astype(np.int64)

    def losses(self, logits: Tensor, values: Tensor, counts: Array) -> Tensor:
        losses = functional.binary_cross_entropy_with_logits(logits, values, reduction="none")
        return losses.mean(dim=1)

    def chance(self, values: Any, counts: Array, weights: Array) -> float:
        shares = np.average(values, axis=0, weights=weights)
        return float(np.mean([_entropy(np.array([share, 1 - share])) for share in shares]))

    def predict(self, logits: Array, classes: Array | None, counts: Array) -> Any:
        return (logits > 0).astype(np.int64)

    def probabilities(self, logits: Array, counts: Array) -> Any:
        with np.errstate(under="ignore"):
            return expit(logits)

    def log_probabilities(self, logits: Array, counts: Array) -> Any:
        with np.errstate(under="ignore"):
            return log_expit(logits)


class MultipleChoice(Objective):
    """The right choice of each row: one score per choice, and softmax over the choices of a row."""

    name = "multiple_choice"
    row = "choices"

    def read(self, y: ArrayLike, counts: Array) -> Targets:
        labels = check_positions(y)
        if len(labels) == len(counts) and not ((labels >= 0) & (labels < counts)).all():
            position = int(np.flatnonzero((labels < 0) | (labels >= counts))[0])
            raise ValueError(
                f"y[{position}] must be the position of one of {counts[position]} choices, got "
                f"{labels[position]}"
            )
        return Targets(labels, None, 1)

    def truth(self, y: ArrayLike) -> Any:
        return check_positions(y)

    def losses(self, logits: Tensor, values: Tensor, counts: Array) -> Tensor:
        rows = torch.nn.utils.rnn.pad_sequence(
            list(logits[:, 0].split(counts.tolist())), batch_first=True, padding_value=-torch.inf
        )
        return functional.cross_entropy(rows, values, reduction="none")

    def chance(self, values: Any, counts: Array, weights: Array) -> float:
        return float(np.average(np.log(counts), weights=weights))

    def predict(self, logits: Array, classes: Array | None, counts: Array) -> Any:
        return self.decision(logits, counts).argmax(axis=1)

    def probabilities(self, logits: Array, counts: Array) -> Any:
        return to_probabilities(self.decision(logits, counts))

    def log_probabilities(self, logits: Array, counts: Array) -> Any:
        return to_log_probabilities(self.decision(logits, counts))

    def decision(self, logits: Array, counts: Array) -> Any:
        scores = np.full((len(counts), max(counts, default=1)), -np.inf)
        scores[np.arange(scores.shape[1]) < counts[:, None]] = logits[:, 0]
        return scores


class TokenClassification(Objective):
    """One class per word: softmax and cross-entropy, averaged over the words of each row."""

    name = "token_classification"
    row = "words"

    def read(self, y: ArrayLike, counts: Array) -> Targets:
        labels, classes = check_labels(*check_sequences(y, counts))
        return Targets(_by_row(labels, counts), _several(classes), len(classes))

    def keep(self, targets: Targets, rows: Array) -> Targets:
        values = self.take(targets.values, rows)
        counts = np.array([len(row) for row in values], dtype=np.intp)
        kept = _without_absent_classes(targets, self.flat(values))
        return replace(kept, values=_by_row(kept.values, counts))

    def take(self, values: Any, rows: Array) -> Any:
        return [values[k] for k in rows]

    def flat(self, values: Any) -> Array:
        return np.concatenate([np.zeros(0, np.int64), *values])

    def losses(self, logits: Tensor, values: Tensor, counts: Array) -> Tensor:
        losses = functional.cross_entropy(logits, values, reduction="none")  # (word,)
        sizes = torch.as_tensor(counts, device=losses.device)
        row = torch.repeat_interleave(torch.arange(len(sizes), device=losses.device), sizes)
        return losses.new_zeros(len(sizes)).index_add(0, row, losses / sizes[row])

    def chance(self, values: Any, counts: Array, weights: Array) -> float:
        flat = self.flat(values)
        filled = counts > 0
        mass = np.bincount(flat, weights=np.repeat(weights / np.maximum(counts, 1), counts))
        return _entropy(mass) * float(weights[filled].sum() / weights.sum())

    def predict(self, logits: Array, classes: Array | None, counts: Array) -> Any:
        assert classes is not None
        return _by_row(classes[logits.argmax(axis=1)], counts)

    def probabilities(self, logits: Array, counts: Array) -> Any:
        return _by_row(to_probabilities(logits), counts)

    def log_probabilities(self, logits: Array, counts: Array) -> Any:
        return _by_row(to_log_probabilities(logits), counts)

    def decision(self, logits: Array, counts: Array) -> Any:
        return _by_row(logits, counts)

    def score(self, y: Any, predicted: Any, sample_weight: ArrayLike | None) -> float:
        counts = np.array([len(row) for row in predicted], dtype=np.intp)
        weights = np.repeat(check_sample_weight(sample_weight, len(counts)), counts)
        if not counts.sum():
            return float("nan")
        truth = label_array(*check_sequences(y, counts))
        return float(self.measure(truth, np.concatenate(predicted), sample_weight=weights))


_ALL = (Classification(), Regression(), MultiLabel(), MultipleChoice(), TokenClassification())
OBJECTIVES: dict[str, Objective] = {objective.name: objective for objective in _ALL}


def _several(classes: Array) -> Array:
    if len(classes) < 2:
        raise ValueError(f"y must have two classes or more, got {len(classes)} class")
    return classes


def _without_absent_classes(targets: Targets, labels: Array) -> Targets:
    """Return targets of labels, with those classes only that occur among them."""
    assert targets.classes is not None
    present, labels = np.unique(labels, return_inverse=True)
    classes = shortest(targets.classes[present])
    return Targets(labels.astype(np.int64), classes, len(classes))


def to_probabilities(scores: Array) -> Any:
    """Return the softmax of each row."""
    with np.errstate(under="ignore"):  # what rounds to zero is no error
        return softmax(scores, axis=1)


def to_log_probabilities(scores: Array) -> Any:
    """Return the logarithm of the softmax of each row."""
    with np.errstate(under="ignore"):
        return log_softmax(scores, axis=1)


def _entropy(mass: Array) -> float:
    share = mass / mass.sum()
    return -float(xlogy(share, share).sum())


def _by_row(units: Array, counts: Array) -> list[Array]:
    return np.split(units, np.cumsum(counts)[:-1]) if len(counts) else []
