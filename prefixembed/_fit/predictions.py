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


def _has_classes(encoder: Any) -> bool:
    # A wrong value is for `fit` to refuse: looking for a method must not fail.
    return not (isinstance(encoder.objective, str) and encoder.objective == "regression")


def _may_have_classes(encoder: Any) -> bool:
    heads = getattr(encoder, "heads_", {}).values()
    return not heads or any(head.objective != "regression" for head in heads)


@substitute
class SourceHeadMixin(ClassifierMixin):
    """Predictions of an encoder for its source task, by the head of its prefix."""

    objective: str
    prefix_: Prefix
    #: Returns the float32 vectors of rows; the class that this is mixed into provides it.
    _vectors: Callable[..., NDArray[np.float32]]

    @available_if(_has_classes)
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

    @available_if(_has_classes)
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

    @available_if(_has_classes)
    def predict_log_proba(self, X: Any) -> Any:
        """Return the logarithms of the probabilities of the classes of the source task.

        Parameters
        ----------
        $rows

        Returns
        -------
        logarithms : ndarray of shape (n_texts, n_classes)
            Of what :meth:`predict_proba` returns; finite also where a probability rounds to zero.
        """
        head, logits, counts = self._logits(X)
        return OBJECTIVES[head.objective].log_probabilities(logits, counts)

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
        if not _has_classes(self):
            tags.estimator_type = "regressor"
            tags.classifier_tags, tags.regressor_tags = None, RegressorTags()
        elif not isinstance(self.objective, str):
            pass  # `fit` refuses it
        elif self.objective in ("multiple_choice", "token_classification"):
            # Rows have no label that folds could be stratified by.
            tags.estimator_type, tags.classifier_tags = None, None
        elif self.objective == "multilabel":
            tags.classifier_tags = ClassifierTags(multi_class=False, multi_label=True)
        return tags


@substitute
class TaskHeadsMixin:
    """Predictions of an encoder for each of its source tasks, by their heads."""

    heads_: dict[str, Head]
    of_pairs_: dict[str, bool]
    #: Returns the float32 vectors of rows; the class that this is mixed into provides it.
    _vectors: Callable[..., NDArray[np.float32]]

    def predict(self, X: Any, task: str | None = None) -> Any:
        """Predict the labels of a source task.

        Parameters
        ----------
        $rows
        $task

        Returns
        -------
        labels : ndarray of shape (n_texts,)
            As :meth:`PrefixEncoder.predict` returns them.

        Raises
        ------
        ValueError
            If there is no such task, or it was learned on the other kind of texts.
        """
        head, logits, counts = self._logits(X, task)
        return OBJECTIVES[head.objective].predict(logits, head.classes, counts)

    @available_if(_may_have_classes)
    def predict_proba(self, X: Any, task: str | None = None) -> Any:
        """Return the probability of each class of a source task.

        Parameters
        ----------
        $rows
        $task

        Returns
        -------
        probabilities : ndarray of shape (n_texts, n_classes)
            As :meth:`PrefixEncoder.predict_proba` returns them.

        Raises
        ------
        $errors_of_classes
        """
        head, logits, counts = self._logits(X, task)
        return OBJECTIVES[head.objective].probabilities(logits, counts)

    @available_if(_may_have_classes)
    def predict_log_proba(self, X: Any, task: str | None = None) -> Any:
        """Return the logarithm of the probability of each class of a source task.

        Parameters
        ----------
        $rows
        $task

        Returns
        -------
        logarithms : ndarray of shape (n_texts, n_classes)
            As :meth:`PrefixEncoder.predict_log_proba` returns them.

        Raises
        ------
        $errors_of_classes
        """
        head, logits, counts = self._logits(X, task)
        return OBJECTIVES[head.objective].log_probabilities(logits, counts)

    @available_if(_may_have_classes)
    def decision_function(self, X: Any, task: str | None = None) -> Any:
        """Return the scores of the classes of a source task.

        Parameters
        ----------
        $rows
        $task

        Returns
        -------
        scores : ndarray of shape (n_texts,) or (n_texts, n_classes)
            As :meth:`PrefixEncoder.decision_function` returns them.

        Raises
        ------
        $errors_of_classes
        """
        head, logits, counts = self._logits(X, task)
        return OBJECTIVES[head.objective].decision(logits, counts)

    def score(
        self,
        X: Any,
        y: Any,
        task: str | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Return the score of the predictions for a source task.

        Parameters
        ----------
        $rows
        y : array-like of shape (n_texts,)
            Labels.
        $task
        $sample_weight

        Returns
        -------
        score : float
            As :meth:`PrefixEncoder.score` returns it.

        Raises
        ------
        ValueError
            If there is no such task, or it was learned on the other kind of texts.
        """
        head, logits, counts = self._logits(X, task)
        objective = OBJECTIVES[head.objective]
        predicted = objective.predict(logits, head.classes, counts)
        return objective.score(y, predicted, sample_weight)

    def _logits(
        self, X: Any, task: str | None
    ) -> tuple[Head, NDArray[np.float64], NDArray[np.intp]]:
        check_is_fitted(self)
        if task is None and len(self.heads_) == 1:
            (task,) = self.heads_
        if task not in self.heads_:
            raise ValueError(f"task must be one of {list(self.heads_)}, got {task!r}")
        head, of_pairs = self.heads_[task], self.of_pairs_[task]
        rows, words, counts = read_units(head, X, of_pairs, f"task {task!r}")
        return head, *score_units(head, self._vectors(rows, words), counts)
