"""Rank the choices of multiple-choice target tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin, _fit_context, clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from prefixembed._embed.texts import check_choices, choice_pairs
from prefixembed._fit.objectives import OBJECTIVES, to_log_probabilities, to_probabilities
from prefixembed._utils.docstrings import substitute
from prefixembed._utils.parameters import Implements

if TYPE_CHECKING:
    from typing_extensions import Self


@substitute
class ChoiceRanker(MetaEstimatorMixin, BaseEstimator):
    """Predict the correct choice of each row with a head on the vectors of its choices.

    Each choice is encoded as a pair with its context. The mean vector of a row is subtracted from
    the vectors of its choices, because it does not help to distinguish them. The head learns to
    classify choices as correct or wrong. The prediction for a row is the choice with the highest
    score.

    Read more in the :doc:`user guide </guide/choice>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    encoder : PrefixBank or other transformer
        Transformer of pairs of texts into vectors. It is cloned and fitted. To keep a fitted
        encoder as it is, wrap it in a :class:`~sklearn.frozen.FrozenEstimator`; a bank does not
        need that.
    head : classifier, default=None
        Classifier with ``decision_function`` or ``predict_proba``. It is cloned. None for
        ``LogisticRegression(max_iter=1000)``.

    Attributes
    ----------
    encoder_ : transformer
        Fitted clone of `encoder`.
    head_ : classifier
        Fitted clone of `head`.

    See Also
    --------
    PrefixEncoder : Learns a prefix from such a task with ``objective="multiple_choice"``.

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
        "encoder": [Implements(["fit", "transform"])],
        "head": [
            Implements(["fit", "decision_function"]),
            Implements(["fit", "predict_proba"]),
            None,
        ],
    }

    def __init__(self, encoder: Any, head: Any = None) -> None:
        self.encoder = encoder
        self.head = head

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Fit the head.

        Parameters
        ----------
        $choices
        $correct

        Returns
        -------
        self : ChoiceRanker
            Fitted estimator.

        Raises
        ------
        ValueError
            If a row or a position is invalid, or no row has more than one choice.
        """
        pairs, counts = choice_pairs(check_choices(X))
        correct = _OBJECTIVE.read(y, counts).values
        check_consistent_length(counts, correct)
        is_correct = np.zeros(len(pairs), dtype=np.int64)
        is_correct[np.cumsum(counts) - counts + correct] = 1
        if is_correct.all():
            raise ValueError(
                "X must have a row with at least two choices, otherwise there is nothing to rank"
            )
        self.encoder_ = clone(self.encoder).fit(pairs, is_correct)
        head = LogisticRegression(max_iter=1000) if self.head is None else clone(self.head)
        self.head_ = head.fit(self._vectors(pairs, counts), is_correct)
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Compute the score of each choice.

        Parameters
        ----------
        $choices

        Returns
        -------
        scores : ndarray of shape (n_rows, largest number of choices)
            Scores; minus infinity if a row has fewer choices.
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
        return _OBJECTIVE.decision(scores[:, None], counts)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Predict the probability that each choice is the correct one of its row.

        Parameters
        ----------
        $choices

        Returns
        -------
        probabilities : ndarray of shape (n_rows, largest number of choices)
            Softmax of the scores of each row; 0 if a row has fewer choices.
        """
        return to_probabilities(self.decision_function(X))

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Predict the logarithm of the probability that each choice is the correct one of its row.

        Parameters
        ----------
        $choices

        Returns
        -------
        logarithms : ndarray of shape (n_rows, largest number of choices)
            Of what :meth:`predict_proba` returns; minus infinity if a row has fewer choices.
        """
        return to_log_probabilities(self.decision_function(X))

    def predict(self, X: Any) -> NDArray[np.intp]:
        """Predict the correct choice of each row.

        Parameters
        ----------
        $choices

        Returns
        -------
        positions : ndarray of shape (n_rows,)
            Position of the choice with the highest score.
        """
        return self.decision_function(X).argmax(axis=1)

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the share of rows whose correct choice is predicted.

        Parameters
        ----------
        $choices
        $correct
        sample_weight : array-like of shape (n_rows,), default=None
            Weight of each row. None for equal weights.

        Returns
        -------
        score : float
            Accuracy.
        """
        return _OBJECTIVE.score(y, self.predict(X), sample_weight)

    def _vectors(self, pairs: Any, counts: NDArray[np.intp]) -> NDArray[Any]:
        vectors = np.asarray(self.encoder_.transform(pairs), dtype=np.float32)
        sums = np.add.reduceat(vectors, np.cumsum(counts) - counts)  # (row, feature)
        return vectors - np.repeat(sums / counts[:, None], counts, axis=0)


_OBJECTIVE = OBJECTIVES["multiple_choice"]
