"""Labelled rows of a source task: checked, tokenized, and split for training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_consistent_length
from torch import Tensor

from prefixembed._embed.batches import expand
from prefixembed._embed.encoding import check_readable
from prefixembed._embed.texts import Text, check_rows, show
from prefixembed._embed.tokens import Tokens, tokenize
from prefixembed._fit.labels import MIN_VALIDATED, check_weights, relative_weights
from prefixembed._fit.objectives import OBJECTIVES, Objective, Targets
from prefixembed._utils.properties import cached_property
from prefixembed._utils.warnings import warn
from prefixembed.backbone import Backbone
from prefixembed.reading import Reading

_SCALES = tuple(np.logspace(-2, 1, 37).tolist())  # of logits; one of them is 1
_N_NAMED = 3  # classes that a warning names


@dataclass(frozen=True)
class LabelledRows:
    """Checked rows and labels of a source task, as if there were no rows of weight zero."""

    texts: list[Text]  # one text or pair per row, or one pair per choice
    counts: NDArray[np.intp]  # units of each row that the head scores: texts, choices or words
    objective: Objective
    targets: Targets
    weights: NDArray[np.float32]  # of each row in the loss, 1 on average


def check_tasks(
    tasks: Mapping[str, tuple[Any, ...]], what: str = "tasks"
) -> Mapping[str, tuple[Any, ...]]:
    """Check that tasks are a mapping of names to ``(X, y)`` or ``(X, y, sample_weight)``."""
    if not isinstance(tasks, Mapping):
        raise ValueError(f"{what} must be a dict of names to tuples (X, y), got {show(tasks)}")
    for name, task in tasks.items():
        if not isinstance(task, tuple) or len(task) not in (2, 3):
            raise ValueError(
                f"{what}[{name!r}] must be a tuple (X, y) or (X, y, sample_weight), got "
                f"{type(task).__name__}" + (f" of {len(task)}" if isinstance(task, tuple) else "")
            )
    return tasks


def read_rows(
    objective: str,
    X: Any,
    y: ArrayLike,
    sample_weight: ArrayLike | None = None,
    class_weight: dict[Any, float] | str | None = None,
) -> LabelledRows:
    """Check the data of :meth:`PrefixEncoder.fit <prefixembed.PrefixEncoder.fit>`.

    This needs no backbone. Rows whose weight is zero, or that have nothing to score, are left out.
    """
    kind = OBJECTIVES[objective]
    texts, counts = check_rows(X, kind.row)
    targets = kind.read(y, counts)
    check_consistent_length(counts, targets.values)
    if class_weight is not None and objective != "classification":
        raise ValueError(f"class_weight is for objective='classification', got {objective!r}")
    labels = targets.values if class_weight is not None else np.zeros(len(counts), dtype=np.int64)
    classes = np.zeros(1) if targets.classes is None else targets.classes
    weights = check_weights(sample_weight, class_weight, labels, classes)
    # In a sentence without words, there is nothing to learn from or to validate on.
    kept = np.flatnonzero((weights > 0) & (counts > 0))
    ends = _text_ends(kind, counts)
    texts = [texts[k] for k in expand(kept, ends)]
    counts, weights = counts[kept], relative_weights(weights[kept])
    targets = kind.keep(targets, kept)
    if len(kept):
        targets = kind.scaled(targets, weights)
    if not len(kept) or kind.chance(targets.values, counts, weights) <= 0:
        raise ValueError(
            "y must have two classes or more whose weight is not zero: there is nothing to learn "
            "where every row has the same answer"
        )
    return LabelledRows(texts, counts, kind, targets, weights.astype(np.float32))


@dataclass(frozen=True)
class Examples:
    """Labelled rows of one source task, tokenized and split."""

    tokens: Tokens  # of all texts
    counts: NDArray[np.intp]  # this and the next three: as in LabelledRows
    objective: Objective
    targets: Targets
    weights: NDArray[np.float32]
    train: NDArray[np.intp]  # positions of rows
    valid: NDArray[np.intp]  # may be empty

    @cached_property
    def _text_ends(self) -> NDArray[np.intp]:
        return _text_ends(self.objective, self.counts)

    @cached_property
    def n_texts(self) -> NDArray[np.intp]:
        """Number of texts of each row: one, or one per choice."""
        return np.diff(self._text_ends, prepend=0)

    @cached_property
    def longest(self) -> NDArray[np.intp]:
        """Number of tokens of the longest text of each row."""
        starts = self._text_ends - self.n_texts
        return np.maximum.reduceat(self.tokens.lengths, starts)

    def texts(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the positions of the texts of some rows, row by row."""
        return expand(rows, self._text_ends)

    def losses(self, logits: Tensor, rows: NDArray[np.intp]) -> Tensor:
        """Return the weighted loss of each of some rows, given the logits of their units."""
        values = self.objective.flat(self.objective.take(self.targets.values, rows))
        truth = torch.from_numpy(values).to(logits.device)
        weights = torch.from_numpy(self.weights[rows]).to(logits.device)
        return self.objective.losses(logits, truth, self.counts[rows]) * weights  # (row,)

    def best_scale(self, logits: Tensor, rows: NDArray[np.intp]) -> float:
        """Return the factor on logits with the lowest loss on some rows; 1 for numbers.

        A head that is trained on few texts is much too sure of itself. That says nothing about the
        vectors it reads, on which other heads are fitted.
        """
        if not self.objective.has_scale:
            return 1.0
        return min(_SCALES, key=lambda scale: float(self.losses(scale * logits, rows).sum()))

    def chance(self, rows: NDArray[np.intp]) -> float:
        """Return the loss on some rows of the best prediction that does not depend on the text."""
        values = self.objective.take(self.targets.values, rows)
        return self.objective.chance(values, self.counts[rows], self.weights[rows])


def prepare(
    rows: LabelledRows,
    backbone: Backbone,
    reading: Reading,
    validation_fraction: float | None,
    rng: np.random.Generator,
) -> Examples:
    """Tokenize rows, and set a share of them aside for validation, unless it is None."""
    backbone.check_reading(reading)
    check_readable(reading, rows.texts)
    n_rows = len(rows.counts)
    train, valid = np.arange(n_rows), np.arange(0)
    if validation_fraction is not None:
        train, valid = rows.objective.split(rows.targets.values, validation_fraction, rng)
        if not len(valid):
            warn(
                f"{n_rows} texts are too few to set validation_fraction={validation_fraction} of "
                "each class aside: no early stopping"
            )
        elif rows.objective.name == "classification":
            _report_unvalidated(rows.targets, valid)
    tokens = tokenize(backbone, rows.texts, reading)
    return Examples(tokens, rows.counts, rows.objective, rows.targets, rows.weights, train, valid)


def _report_unvalidated(targets: Targets, valid: NDArray[np.intp]) -> None:
    """Warn if some classes are too small to be validated."""
    assert targets.classes is not None
    n_classes = len(targets.classes)
    sizes = np.bincount(targets.values, minlength=n_classes)
    n_valid = np.bincount(targets.values[valid], minlength=n_classes)
    left_out = np.flatnonzero(n_valid == 0)
    if not len(left_out):
        return
    smallest = left_out[np.argsort(sizes[left_out], kind="stable")][:_N_NAMED]
    names = ", ".join(map(repr, targets.classes[smallest].tolist()))
    names += " and others" if len(left_out) > len(smallest) else ""
    warn(
        f"{len(left_out)} of {n_classes} classes have fewer than {MIN_VALIDATED} texts and are not "
        f"validated: {names}"
    )


def _text_ends(objective: Objective, counts: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the position after the last text of each row."""
    return np.cumsum(counts) if objective.row == "choices" else np.arange(1, len(counts) + 1)
