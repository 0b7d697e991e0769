"""Ablation: what each prefix adds to the score of a target task."""

from __future__ import annotations

import time
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student
from sklearn.base import is_classifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer_names
from sklearn.model_selection import check_cv, cross_val_score
from sklearn.utils import Bunch
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_consistent_length

from prefixembed._embed.texts import check_texts
from prefixembed._utils.docstrings import substitute
from prefixembed._utils.parameters import checked
from prefixembed.bank import PrefixBank
from prefixembed.inspection.arguments import active_names, comparable_copy

_MIN_FOLDS = 3  # two differences have a spread that says next to nothing
_ROUNDING = 1e-12  # relative to scores: differences of scores that differ by less are equal


@substitute
@checked(
    bank=[PrefixBank],
    X="no_validation",
    y="no_validation",
    head=[HasMethods(["fit", "predict"]), None],
    cv=["cv_object"],
    scoring=[StrOptions(set(get_scorer_names())), callable, None],
    confidence_level=[Interval(Real, 0, 1, closed="neither")],
    n_jobs=[Integral, None],
)
def prefix_ablation(
    bank: PrefixBank,
    X: Any,
    y: ArrayLike,
    head: Any = None,
    *,
    cv: Any = None,
    scoring: Any = None,
    confidence_level: float = 0.95,
    n_jobs: int | None = None,
) -> Bunch:
    """Score a target task with each prefix alone, and with each prefix left out.

    Read more in the :doc:`user guide </guide/inspection>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    $inspected_bank
        Its way of combining, its weights and its reading of texts apply to every selection.
    $X
    $target_labels
    $target_head
    cv : int, cross-validation generator or iterable, default=None
        Cross-validation splitter; see :class:`sklearn.model_selection.GridSearchCV`. All
        selections are scored on the same folds.
    scoring : str or callable, default=None
        Name of a scorer, or a callable ``scorer(estimator, X, y)``. None for the ``score`` method
        of the head.
    confidence_level : float, default=0.95
        Confidence level of the intervals.
    n_jobs : int, default=None
        Number of processes that train heads.

    Returns
    -------
    result : Bunch
        With these attributes:

        - ``names`` : list of str, the active prefixes
        - ``all`` : ndarray of shape (n_folds,), scores of the whole bank
        - ``none`` : ndarray of shape (n_folds,), scores of the bare backbone
        - ``alone`` : ndarray of shape (n_prefixes, n_folds), scores with a single prefix
        - ``without`` : ndarray of shape (n_prefixes, n_folds), scores with all prefixes but one
        - ``gain`` : ndarray of shape (n_prefixes, 3), mean of ``alone - none`` and the lower and
          upper end of its interval
        - ``contribution`` : ndarray of shape (n_prefixes, 3), mean of ``all - without`` and the
          lower and upper end of its interval
        - ``harmful`` : bool ndarray of shape (n_prefixes,), whether the interval of the
          contribution lies below zero (negative transfer); False where there is no interval
        - ``seconds`` : dict with the keys ``"all"``, ``"none"``, ``"alone"`` and ``"without"``,
          time to encode `X` with each selection. The cache is not used

    Raises
    ------
    ValueError
        If the bank has no active prefix, `X` and `y` do not fit each other, or `cv` yields fewer
        than two folds.

    See Also
    --------
    prefixembed.inspection.PrefixAblationDisplay : Plots the result.

    Notes
    -----
    Folds share training texts, so their scores are not independent. The intervals are those of
    the corrected resampled t-test [1]_. There is none, and its ends are NaN, if `cv` has fewer
    than three folds, or all folds differ by the same amount: that is no sign of certainty.

    ``gain`` and ``contribution`` hold what :class:`~prefixembed.PrefixSelector` looks at in its
    first step, forward and backward, if it has the same bank, head and folds and all prefixes
    read texts alike. The selector goes by the means, and looks again after each step.

    References
    ----------
    .. [1] Nadeau, C., and Bengio, Y., "Inference for the generalization error", Machine Learning
       52, 2003.

    Examples
    --------
    >>> from prefixembed import PrefixBank, PrefixEncoder
    >>> from prefixembed.inspection import prefix_ablation
    >>> from prefixembed.tasks import demo_backbone
    >>> texts, labels = ["what a film", "dull and long", "a joy", "a bore"] * 8, [1, 0, 1, 0] * 8
    >>> encoder = PrefixEncoder(demo_backbone(), max_steps=5, random_state=0).fit(texts, labels)
    >>> result = prefix_ablation(PrefixBank({"stars": encoder}), texts, labels, cv=2)
    >>> result.names, result.alone.shape
    (['stars'], (1, 2))
    """
    names = active_names(bank)
    texts = check_texts(X)
    check_consistent_length(texts, y)
    head = LogisticRegression(max_iter=1000) if head is None else head
    splitter = check_cv(cv, y, classifier=is_classifier(head))
    folds = list(splitter.split(np.zeros(len(texts)), y))
    if len(folds) < 2:
        raise ValueError(f"cv must yield at least two folds, got {len(folds)} from {cv!r}")
    copy = comparable_copy(bank, texts).set_params(cache=None)
    copy.transform(texts[:1])  # so that no selection is charged for loading the backbone
    known: dict[frozenset[str], tuple[NDArray[np.float64], float]] = {}

    def score(active: Sequence[str]) -> tuple[NDArray[np.float64], float]:
        key = frozenset(active)
        if key not in known:
            started = time.perf_counter()
            vectors = copy.set_params(active=list(active)).transform(texts)
            seconds = time.perf_counter() - started
            scores = cross_val_score(
                head, vectors, y, cv=folds, scoring=scoring, n_jobs=n_jobs, error_score="raise"
            )
            known[key] = scores, seconds
        return known[key]

    none, whole = score([]), score(names)
    alone = [score([name]) for name in names]
    without = [score([other for other in names if other != name]) for name in names]
    test_to_train = float(np.mean([len(test) / len(train) for train, test in folds]))

    def interval(after: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
        return _interval(after, before, test_to_train, confidence_level)

    contribution = np.array([interval(whole[0], scores) for scores, _ in without])
    return Bunch(
        names=names,
        all=whole[0],
        none=none[0],
        alone=np.array([scores for scores, _ in alone]),
        without=np.array([scores for scores, _ in without]),
        gain=np.array([interval(scores, none[0]) for scores, _ in alone]),
        contribution=contribution,
        harmful=contribution[:, 2] < 0,
        seconds={
            "all": whole[1],
            "none": none[1],
            "alone": [seconds for _, seconds in alone],
            "without": [seconds for _, seconds in without],
        },
    )


def _interval(
    after: NDArray[np.float64], before: NDArray[np.float64], test_to_train: float, level: float
) -> NDArray[np.float64]:
    """Return the mean difference over folds and the lower and upper end of its interval.

    The ends are NaN if there is no interval.
    """
    differences = after - before
    n, mean = len(differences), differences.mean()
    rounding = _ROUNDING * max(np.abs(after).max(), np.abs(before).max())
    if n < _MIN_FOLDS or np.ptp(differences) <= rounding:
        # With few texts, all folds may differ by the same amount. That is no sign of certainty.
        return np.array([mean, np.nan, np.nan])
    # The second term is the variance that shared training texts add.
    error = np.sqrt(differences.var(ddof=1) * (1 / n + test_to_train))
    reach = error * student.ppf((1 + level) / 2, n - 1)
    return np.array([mean, mean - reach, mean + reach])
