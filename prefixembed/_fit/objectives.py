"""Objectives: how the labels of a source task are read, learned and predicted.

A unit is what the head scores: a text, one of the choices of a row, or a word. `counts` holds the
number of units of each row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax, xlogy
from sklearn.metrics import accuracy_score, r2_score
from torch import Tensor
from torch.nn import functional

from prefixembed._fit.labels import check_labels, check_numbers, check_sequences, stratified_split

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

    @abstractmethod
    def read(self, y: ArrayLike, counts: Array) -> Targets:
        """Check labels and encode them."""

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

    def finish(self, weight: Array, bias: Array, targets: Targets) -> tuple[Array, Array]:
        """Return weight and bias of a head that predicts on the scale of y."""
        return weight, bias

    def score(self, y: Any, predicted: Any, sample_weight: ArrayLike | None) -> float:
        """Return the score of predictions; higher is better."""
        return float(accuracy_score(y, predicted, sample_weight=sample_weight))


class Classification(Objective):
    """One class per text: softmax and cross-entropy."""

    name = "classification"

    def read(self, y: ArrayLike, counts: Array) -> Targets:
        labels, classes = _check_classes(y)
        return Targets(labels, classes, len(classes))

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

    def read(self, y: ArrayLike, counts: Array) -> Targets:
        return Targets(check_numbers(y), None, 1)

    def scaled(self, targets: Targets, weights: Array) -> Targets:
        mean = float(np.average(targets.values, weights=weights))
        scale = float(np.average((targets.values - mean) ** 2, weights=weights)) ** 0.5
        if scale == 0:
            raise ValueError(
                "y must have two different numbers or more, "
                f"all of n_samples={len(weights)} are {mean:g}"
            )
        values = ((targets.values - mean) / scale).astype(np.float32)
        return replace(targets, values=values, mean=mean, scale=scale)

    def losses(self, logits: Tensor, values: Tensor, counts: Array) -> Tensor:
        return functional.mse_loss(logits[:, 0], values, reduction="none")

    def chance(self, values: Any, counts: Array, weights: Array) -> float:
        mean = np.average(values, weights=weights)
        return float(np.average((values - mean) ** 2, weights=weights))

    def predict(self, logits: Array, classes: Array | None, counts: Array) -> Any:
        return logits[:, 0]

    def probabilities(self, logits: Array, counts: Array) -> Any:
        raise ValueError("a regression has no probabilities: call predict")

    def finish(self, weight: Array, bias: Array, targets: Targets) -> tuple[Array, Array]:
        return weight * targets.scale, bias * targets.scale + targets.mean

    def score(self, y: Any, predicted: Any, sample_weight: ArrayLike | None) -> float:
        return float(r2_score(y, predicted, sample_weight=sample_weight))


class MultiLabel(Objective):
    """Any number of labels per text: sigmoid and cross-entropy, averaged over labels."""

    name = "multilabel"

    def read(self, y: ArrayLike, counts: Array) -> Targets:
        array = np.asarray(y.toarray() if hasattr(y, "toarray") else y)
        if array.ndim != 2 or array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
            raise ValueError(
                "y must be an indicator matrix of zeros and ones of shape (n_texts, n_labels), as "
                f"MultiLabelBinarizer returns it, got {array.dtype} of shape {array.shape}"
            )
        return Targets(array.astype(np.float32), np.arange(array.shape[1]), array.shape[1])

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


class MultipleChoice(Objective):
    """The right choice of each row: one score per choice, and softmax over the choices of a row."""

    name = "multiple_choice"
    row = "choices"

    def read(self, y: ArrayLike, counts: Array) -> Targets:
        labels = np.asarray(y)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(
                "y must hold the position of the right choice of each row, got "
                f"{labels.dtype} of shape {labels.shape}"
            )
        if len(labels) == len(counts) and not ((labels >= 0) & (labels < counts)).all():
            position = int(np.flatnonzero((labels < 0) | (labels >= counts))[0])
            raise ValueError(
                f"y[{position}] must be the position of one of {counts[position]} choices, got "
                f"{labels[position]}"
            )
        return Targets(labels.astype(np.int64), None, 1)

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

    def decision(self, logits: Array, counts: Array) -> Any:
        scores = np.full((len(counts), max(counts, default=1)), -np.inf)
        scores[np.arange(scores.shape[1]) < counts[:, None]] = logits[:, 0]
        return scores


class TokenClassification(Objective):
    """One class per word: softmax and cross-entropy, averaged over the words of each row."""

    name = "token_classification"
    row = "words"

    def read(self, y: ArrayLike, counts: Array) -> Targets:
        labels, classes = _check_classes(check_sequences(y, counts))
        return Targets(np.split(labels, np.cumsum(counts)[:-1]), classes, len(classes))

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

    def decision(self, logits: Array, counts: Array) -> Any:
        return _by_row(logits, counts)

    def score(self, y: Any, predicted: Any, sample_weight: ArrayLike | None) -> float:
        counts = np.array([len(row) for row in predicted], dtype=np.intp)
        weights = None if sample_weight is None else np.repeat(sample_weight, counts)
        if not counts.sum():
            return float("nan")
        return super().score(check_sequences(y, counts), np.concatenate(predicted), weights)


_ALL = (Classification(), Regression(), MultiLabel(), MultipleChoice(), TokenClassification())
OBJECTIVES: dict[str, Objective] = {objective.name: objective for objective in _ALL}


def _check_classes(y: Any) -> tuple[NDArray[np.int64], Array]:
    labels, classes = check_labels(y)
    if len(classes) < 2:
        raise ValueError(f"y must have two classes or more, got {len(classes)} class")
    return labels, classes


def to_probabilities(scores: Array) -> Any:
    """Return the softmax of each row."""
    with np.errstate(under="ignore"):  # what rounds to zero is no error
        return softmax(scores, axis=1)


def _entropy(mass: Array) -> float:
    share = mass / mass.sum()
    return -float(xlogy(share, share).sum())


def _by_row(units: Array, counts: Array) -> list[Array]:
    return np.split(units, np.cumsum(counts)[:-1]) if len(counts) else []
