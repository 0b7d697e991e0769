"""What a fitted encoder's own head says: predictions of its source task."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils import ClassifierTags, RegressorTags, Tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from prefixembed._embed.texts import check_rows
from prefixembed._fit.objectives import OBJECTIVES

if TYPE_CHECKING:
    from prefixembed.prefix import Prefix


def _objective_is_not(name: str) -> Callable[[Any], bool]:
    return lambda encoder: encoder.objective != name


class SourceHeadMixin(ClassifierMixin):
    """Predictions by the head of a prefix, whatever its objective."""

    objective: str
    prefix_: Prefix

    @available_if(_objective_is_not("regression"))
    def decision_function(self, X: Any) -> Any:
        """Score the classes of the source task.

        Parameters
        ----------
        X : array-like of str of shape (n_texts,) or (n_texts, 2)
            Texts, or pairs of texts; or what else :meth:`fit` took.

        Returns
        -------
        scores : ndarray of shape (n_texts,) or (n_texts, n_classes)
            Logits of the head; of two classes, how far the second is ahead. For multiple
            choice one column a choice, minus infinity where a row has fewer; for token
            classification a list of one array of shape (n_words, n_classes) a sentence.
        """
        logits, counts = self._logits(X)
        return OBJECTIVES[self.prefix_.objective].decision(logits, counts)

    @available_if(_objective_is_not("regression"))
    def predict_proba(self, X: Any) -> Any:
        """Give the probability of each class of the source task.

        Parameters
        ----------
        X : array-like of str of shape (n_texts,) or (n_texts, 2)
            Texts, or pairs of texts; or what else :meth:`fit` took.

        Returns
        -------
        probabilities : ndarray of shape (n_texts, n_classes)
            In the order of ``classes_``. For multiple choice one column a choice, zero where a
            row has fewer; for token classification a list of one array of shape (n_words,
            n_classes) a sentence.
        """
        logits, counts = self._logits(X)
        return OBJECTIVES[self.prefix_.objective].probabilities(logits, counts)

    def predict(self, X: Any) -> Any:
        """Predict what the source task asks for.

        Parameters
        ----------
        X : array-like of str of shape (n_texts,) or (n_texts, 2)
            Texts, or pairs of texts; or what else :meth:`fit` took.

        Returns
        -------
        labels : ndarray of shape (n_texts,)
            Of the type that y had: of shape (n_texts, n_labels) where a text has several
            labels, and a list of one array a sentence for token classification.
        """
        logits, counts = self._logits(X)
        prefix = self.prefix_
        return OBJECTIVES[prefix.objective].predict(logits, prefix.classes, counts)

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Compare predictions with labels.

        Parameters
        ----------
        X : array-like of str of shape (n_texts,) or (n_texts, 2)
            Texts, or pairs of texts; or what else :meth:`fit` took.
        y : array-like of shape (n_texts,)
            Labels, as :meth:`fit` takes them.
        sample_weight : array-like of shape (n_texts,), default=None
            Weights of texts.

        Returns
        -------
        score : float
            Accuracy: of whole sets of labels where a text has several, of words for token
            classification. The coefficient of determination for regression.
        """
        predicted = self.predict(X)
        return OBJECTIVES[self.prefix_.objective].score(y, predicted, sample_weight)

    def _logits(self, X: Any) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Score every unit of each row, and tell how many units each has."""
        check_is_fitted(self)
        row = OBJECTIVES[self.prefix_.objective].row
        counts: NDArray[np.intp] | None = None
        if row != "text":
            X, counts = check_rows(X, row)
        vectors = self._vectors(X, words=row == "words")
        if counts is None:
            counts = np.ones(len(vectors), dtype=np.intp)
        return self.prefix_.decision_function(vectors), counts

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        if self.objective == "regression":
            tags.estimator_type = "regressor"
            tags.classifier_tags, tags.regressor_tags = None, RegressorTags()
        elif self.objective in ("multiple_choice", "token_classification"):
            # Their rows have no label that folds could be stratified by.
            tags.estimator_type, tags.classifier_tags = None, None
        elif self.objective == "multilabel":
            tags.classifier_tags = ClassifierTags(multi_class=False, multi_label=True)
        return tags
