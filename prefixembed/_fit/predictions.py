"""Predictions of a source task by its own head."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils import ClassifierTags, RegressorTags, Tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from prefixembed._embed.texts import Text, check_rows, check_texts, is_pairs
from prefixembed._fit.objectives import OBJECTIVES
from prefixembed._model.modes import own_modes
from prefixembed._utils.docstrings import substitute
from prefixembed.head import Head

if TYPE_CHECKING:
    from prefixembed.prefix import Prefix

_KINDS = {False: "single texts", True: "pairs of texts"}


def check_same_kind(texts: Sequence[Text], of_pairs: bool, name: str) -> None:
    """Check that a head is given texts of the kind that it was fitted on.

    `name` is what the error message calls the owner of the head.
    """
    if len(texts) and is_pairs(texts) != of_pairs:
        raise ValueError(f"{name} was fitted on {_KINDS[of_pairs]}, got {_KINDS[not of_pairs]}")


def read_units(
    head: Head, X: Any, of_pairs: bool, name: str
) -> tuple[Any, bool, NDArray[np.intp] | None]:
    """Return rows to embed, whether they are sentences in words, and the units of each row.

    Where rows are texts, an iterator is accepted, and the number of units is None: one each.
    """
    row = OBJECTIVES[head.objective].row
    if row == "text" and isinstance(X, Iterator):
        first = list(itertools.islice(X, 1))
        check_same_kind(check_texts(first), of_pairs, name)
        return itertools.chain(first, X), False, None
    texts, counts = check_rows(X, row)
    check_same_kind(texts, of_pairs, name)
    return texts, row == "words", counts


@own_modes(gradients=False)
def score_units(
    head: Head, vectors: NDArray[np.float32], counts: NDArray[np.intp] | None
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return logits of shape (unit, output), and the number of units of each row."""
    counts = np.ones(len(vectors), dtype=np.intp) if counts is None else counts
    if not len(vectors):
        return np.zeros((0, len(head.bias))), counts
    return head.decision_function(vectors), counts


def _is_not_regression(encoder: Any) -> bool:
    return bool(encoder.objective != "regression")


@substitute
class SourceHeadMixin(ClassifierMixin):
    """Predictions of an encoder for its source task, by the head of its prefix."""

    objective: str
    prefix_: Prefix
    #: Returns the float32 vectors of rows; the class that this is mixed into provides it.
    _vectors: Callable[..., NDArray[np.float32]]

    @available_if(_is_not_regression)
    def decision_function(self, X: Any) -> Any:
        """Return the scores of the classes of the source task.

        Parameters
        ----------
        $rows

        Returns
        -------
        scores : ndarray of shape (n_texts,) or (n_texts, n_classes)
            Depending on the objective:

            - two classes: the logit of the second class minus that of the first;
            - more classes, or several labels: one logit per class;
            - multiple choice: one column per choice, minus infinity where a row has fewer;
            - token classification: a list of one array of shape (n_words, n_classes) per
              sentence.
        """
        head, logits, counts = self._logits(X)
        return OBJECTIVES[head.objective].decision(logits, counts)

    @available_if(_is_not_regression)
    def predict_proba(self, X: Any) -> Any:
        """Return the probabilities of the classes of the source task.

        Parameters
        ----------
        $rows

        Returns
        -------
        probabilities : ndarray of shape (n_texts, n_classes)
            In the order of ``classes_``. For multiple choice, one column per choice, zero where a
            row has fewer. For token classification, a list of one array of shape (n_words,
            n_classes) per sentence.
        """
        head, logits, counts = self._logits(X)
        return OBJECTIVES[head.objective].probabilities(logits, counts)

    def predict(self, X: Any) -> Any:
        """Predict the labels of the source task.

        Parameters
        ----------
        $rows

        Returns
        -------
        labels : ndarray of shape (n_texts,)
            In the type of the labels that :meth:`fit` was given. Shape (n_texts, n_labels) for
            multilabel, and a list of one array per sentence for token classification.
        """
        head, logits, counts = self._logits(X)
        return OBJECTIVES[head.objective].predict(logits, head.classes, counts)

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the score of the predictions for the source task.

        Parameters
        ----------
        $rows
        y : array-like of shape (n_texts,)
            Labels, as for :meth:`fit`.
        $sample_weight

        Returns
        -------
        score : float
            The accuracy: of whole sets of labels for multilabel, and of words for token
            classification. For regression, the coefficient of determination.
        """
        head, logits, counts = self._logits(X)
        objective = OBJECTIVES[head.objective]
        predicted = objective.predict(logits, head.classes, counts)
        return objective.score(y, predicted, sample_weight)

    def _logits(self, X: Any) -> tuple[Head, NDArray[np.float64], NDArray[np.intp]]:
        check_is_fitted(self)
        head = self.prefix_.head
        if head is None:
            raise ValueError(
                f"{self.prefix_!r} has no head: it can transform texts, but not predict"
            )
        name = f"this {type(self).__name__}"
        rows, words, counts = read_units(head, X, self.prefix_.of_pairs, name)
        return head, *score_units(head, self._vectors(rows, words), counts)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        if self.objective == "regression":
            tags.estimator_type = "regressor"
            tags.classifier_tags, tags.regressor_tags = None, RegressorTags()
        elif self.objective in ("multiple_choice", "token_classification"):
            # Rows have no label that folds could be stratified by.
            tags.estimator_type, tags.classifier_tags = None, None
        elif self.objective == "multilabel":
            tags.classifier_tags = ClassifierTags(multi_class=False, multi_label=True)
        return tags
