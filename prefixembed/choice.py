"""Target tasks of multiple choice: a head that ranks the choices of each row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, MetaEstimatorMixin, _fit_context, clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from prefixembed._embed.texts import check_choices, choice_pairs
from prefixembed._fit.objectives import OBJECTIVES

if TYPE_CHECKING:
    from typing_extensions import Self


class ChoiceRanker(MetaEstimatorMixin, BaseEstimator):
    """Pick the right one of each row's choices by a cheap head on their vectors.

    Each choice is read as a pair with its context. What all choices of a row have in common says
    nothing of which is right: the mean over the row is taken off their vectors. The head
    learns to tell right choices from wrong ones, and a row's prediction is the choice that it
    scores highest.

    Parameters
    ----------
    encoder : PrefixBank or other transformer
        Turns pairs of texts into vectors. It is cloned: where it is to be kept as it is
        fitted, freeze it with :class:`~sklearn.frozen.FrozenEstimator`. A bank needs no fit.
    head : classifier, default=None
        Any classifier with a ``decision_function`` or ``predict_proba``. None for
        ``LogisticRegression(max_iter=1000)``.

    Attributes
    ----------
    encoder_ : transformer
        A clone of `encoder`.
    head_ : classifier
        A clone of `head`, fitted.

    See Also
    --------
    PrefixEncoder : With ``objective="multiple_choice"``, learns a prefix from such a task.

    Examples
    --------
    >>> from prefixembed import ChoiceRanker, PrefixBank
    >>> from prefixembed.tasks import demo_backbone
    >>> rows = [("It rained.", ["She got wet.", "She got tan."]),
    ...         ("The sun shone.", ["She got wet.", "She got tan."])] * 4
    >>> ranker = ChoiceRanker(PrefixBank({}, backbone=demo_backbone())).fit(rows, [0, 1] * 4)
    >>> ranker.predict([("It poured all day.", ["She got tan.", "She got wet."])])
    array([1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "encoder": [HasMethods(["fit", "transform"])],
        "head": [HasMethods(["fit", "predict"]), None],
    }

    def __init__(self, encoder: Any, head: Any = None) -> None:
        self.encoder = encoder
        self.head = head

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Learn to tell right choices from wrong ones.

        Parameters
        ----------
        X : sequence of (str, sequence of str)
            Rows of a context and its choices; rows may differ in how many.
        y : array-like of shape (n_rows,)
            Position of the right choice of each row.

        Returns
        -------
        self : ChoiceRanker
            Fitted.

        Raises
        ------
        ValueError
            If X holds what is no such row, or y what is no position of a choice.
        """
        pairs, counts = choice_pairs(check_choices(X))
        right = _OBJECTIVE.read(y, counts).values
        check_consistent_length(counts, right)
        is_right = np.zeros(len(pairs), dtype=np.int64)
        is_right[np.cumsum(counts) - counts + right] = 1
        if is_right.all():
            raise ValueError("X must have a row of two choices or more: there is nothing to rank")
        self.encoder_ = clone(self.encoder).fit(pairs, is_right)
        head = LogisticRegression(max_iter=1000) if self.head is None else clone(self.head)
        self.head_ = head.fit(self._vectors(pairs, counts), is_right)
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Score each choice.

        Parameters
        ----------
        X : sequence of (str, sequence of str)
            Rows of a context and its choices.

        Returns
        -------
        scores : ndarray of shape (n_rows, largest number of choices)
            Minus infinity where a row has fewer.
        """
        check_is_fitted(self)
        pairs, counts = choice_pairs(check_choices(X))
        if not pairs:
            return _OBJECTIVE.decision(np.zeros((0, 1)), counts)
        vectors = self._vectors(pairs, counts)
        if hasattr(self.head_, "decision_function"):
            scores = self.head_.decision_function(vectors)
        else:
            scores = np.log(np.maximum(self.head_.predict_proba(vectors)[:, 1], 1e-300))
        decision: NDArray[np.float64] = _OBJECTIVE.decision(scores[:, None], counts)
        return decision

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Give the probability that a choice is the right one of its row.

        Parameters
        ----------
        X : sequence of (str, sequence of str)
            Rows of a context and its choices.

        Returns
        -------
        probabilities : ndarray of shape (n_rows, largest number of choices)
            Zero where a row has fewer; a softmax over the scores of each row.
        """
        probabilities: NDArray[np.float64] = softmax(self.decision_function(X), axis=1)
        return probabilities

    def predict(self, X: Any) -> NDArray[np.intp]:
        """Pick a choice of each row.

        Parameters
        ----------
        X : sequence of (str, sequence of str)
            Rows of a context and its choices.

        Returns
        -------
        positions : ndarray of shape (n_rows,)
            Of the choice that is scored highest.
        """
        return self.decision_function(X).argmax(axis=1)

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Give the share of rows whose right choice is picked.

        Parameters
        ----------
        X : sequence of (str, sequence of str)
            Rows of a context and its choices.
        y : array-like of shape (n_rows,)
            Position of the right choice of each row.
        sample_weight : array-like of shape (n_rows,), default=None
            Weights of rows.

        Returns
        -------
        score : float
            Accuracy.
        """
        return float(accuracy_score(y, self.predict(X), sample_weight=sample_weight))

    def _vectors(self, pairs: Any, counts: NDArray[np.intp]) -> NDArray[Any]:
        vectors = np.asarray(self.encoder_.transform(pairs), dtype=np.float32)
        sums = np.add.reduceat(vectors, np.cumsum(counts) - counts)  # (row, feature)
        centred: NDArray[Any] = vectors - np.repeat(sums / counts[:, None], counts, axis=0)
        return centred


_OBJECTIVE = OBJECTIVES["multiple_choice"]
