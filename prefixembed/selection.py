"""Which prefixes: selections of a bank for a grid search, and a search that grows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.metrics import get_scorer_names
from sklearn.model_selection import ParameterGrid
from sklearn.model_selection._search import BaseSearchCV
from sklearn.model_selection._split import _yields_constant_splits
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from prefixembed._utils.parameters import Count, checked
from prefixembed.bank import PrefixBank

_MOST_SUBSETS = 4096

Subset = tuple[str, ...]


@checked(bank=[PrefixBank], min_size=[Count(0)], max_size=[Count(0), None])
def prefix_subsets(
    bank: PrefixBank, min_size: int = 0, max_size: int | None = None
) -> list[tuple[str, ...]]:
    """List selections of a bank's prefixes, to be tried as its ``active`` parameter.

    Parameters
    ----------
    bank : PrefixBank
        With n prefixes, active or not.
    min_size : int, default=0
        Smallest selection; 0 is the bare backbone, and ``len(bank) - 1`` the bank with one
        prefix left out.
    max_size : int, default=None
        Largest selection; None for all of them.

    Returns
    -------
    subsets : list of tuple of str
        Smaller ones first; ``2 ** n`` of them where sizes are not limited.

    Raises
    ------
    ValueError
        If sizes are not ``0 <= min_size <= max_size <= n``, or there are more than 4,096
        selections.

    See Also
    --------
    PrefixSelector : Grows a selection where there are too many to try them all.

    Examples
    --------
    >>> from prefixembed import PrefixBank, prefix_subsets
    >>> bank = PrefixBank({"a": None, "b": None, "c": None})
    >>> prefix_subsets(bank, max_size=1)
    [(), ('a',), ('b',), ('c',)]
    >>> prefix_subsets(bank, min_size=len(bank) - 1)
    [('a', 'b'), ('a', 'c'), ('b', 'c'), ('a', 'b', 'c')]
    """
    names = list(bank)
    largest = len(names) if max_size is None else max_size
    if not 0 <= min_size <= largest <= len(names):
        raise ValueError(
            f"sizes must be 0 <= min_size <= max_size <= {len(names)}, "
            f"got min_size={min_size} and max_size={max_size}"
        )
    sizes = range(min_size, largest + 1)
    n_subsets = sum(math.comb(len(names), size) for size in sizes)
    if n_subsets > _MOST_SUBSETS:
        raise ValueError(
            f"{len(names)} prefixes have {n_subsets} selections of min_size={min_size} to "
            f"max_size={largest}, more than {_MOST_SUBSETS}: PrefixSelector tries some n ** 2 / 2"
        )
    return [subset for size in sizes for subset in combinations(names, size)]


class PrefixSelector(BaseSearchCV):
    """Choose the prefixes of a bank for a target task, one after the other.

    Forward, from the bare backbone: the prefix is added that raises the score of
    cross-validation most. Backward, from the whole bank: the one is switched off whose absence
    raises it most. n prefixes need some ``n ** 2 / 2`` selections to be tried in place of
    ``2 ** n``; through the bank's cache, each encodes each text once.

    Parameters
    ----------
    estimator : estimator
        A Pipeline, or whatever has one :class:`PrefixBank` among its parameters.
    direction : {"forward", "backward"}, default="forward"
        From where to where.
    floating : bool, default=False
        Take a step back, as often as that gives a better selection of its size than any before
        [1]_.
    n_prefixes : int, default=None
        How many to choose. None for as many as are worth it, by `tol`.
    tol : float, default=0.0
        What a prefix must be worth: it is added if the score rises by more, and switched off if it
        falls by no more.
    combine : list of str, default=None
        Values of the bank's ``combine`` to try with every selection. None for the bank's own.
    weights : list, default=None
        Values of the bank's ``weights`` to try with every selection. None for the bank's own.
    scoring : str, callable or None, default=None
        One score, as scikit-learn has them. None for the estimator's own.
    cv : int, splitter, iterable or None, default=None
        As scikit-learn has it.
    n_jobs : int, default=None
        Processes. Above one, give the bank the path of a file as cache: workers see no other.
    error_score : "raise" or float, default=nan
        Score of a fit that fails.
    verbose : int, default=0
        How much to tell.

    Attributes
    ----------
    active_ : tuple of str
        The prefixes that were chosen, in the bank's order.
    best_estimator_ : estimator
        With the chosen selection, fitted on all texts.
    best_score_ : float
        Mean score over folds of the chosen selection. It chose, so it flatters.
    best_params_, best_index_, cv_results_, n_splits_, scorer_, refit_time_
        As in :class:`~sklearn.model_selection.GridSearchCV`; ``pandas.DataFrame(cv_results_)`` has
        a row a candidate, with its ``step``.

    See Also
    --------
    prefix_subsets : All selections, for a grid search.

    Notes
    -----
    Predictions, ``score`` and ``transform`` are those of ``best_estimator_``.

    References
    ----------
    .. [1] P. Pudil et al., "Floating search methods in feature selection", Pattern Recognition
       Letters 15, 1994.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from prefixembed import PrefixBank, PrefixEncoder, PrefixSelector
    >>> from prefixembed.tasks import demo_backbone
    >>> texts = ["what a film", "dull and long", "a joy", "a bore"] * 8
    >>> encoder = PrefixEncoder(demo_backbone(), max_epochs=5, random_state=0)
    >>> bank = PrefixBank({"stars": encoder.fit(texts, [1, 0, 1, 0] * 8)})
    >>> selector = PrefixSelector(make_pipeline(bank, LogisticRegression()), cv=2)
    >>> selector.fit(texts, [1, 0, 1, 0] * 8).predict(["a joy"])
    array([1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{
            name: constraint
            for name, constraint in BaseSearchCV._parameter_constraints.items()
            if name not in ("refit", "pre_dispatch", "return_train_score")
        },
        "estimator": [HasMethods(["fit"])],
        "scoring": [StrOptions(set(get_scorer_names())), callable, None],
        "direction": [StrOptions({"forward", "backward"})],
        "floating": ["boolean"],
        "n_prefixes": [Count(0), None],
        "tol": [Interval(Real, None, None, closed="neither")],
        "combine": [list, tuple, None],
        "weights": [list, tuple, None],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        direction: str = "forward",
        floating: bool = False,
        n_prefixes: int | None = None,
        tol: float = 0.0,
        combine: Sequence[str] | None = None,
        weights: Sequence[Any] | None = None,
        scoring: Any = None,
        cv: Any = None,
        n_jobs: int | None = None,
        error_score: Any = np.nan,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            estimator, scoring=scoring, cv=cv, n_jobs=n_jobs, error_score=error_score,
            verbose=verbose, return_train_score=False,
        )  # fmt: skip
        self.direction = direction
        self.floating = floating
        self.n_prefixes = n_prefixes
        self.tol = tol
        self.combine = combine
        self.weights = weights

    def _run_search(self, evaluate_candidates: Callable[..., dict[str, Any]]) -> None:
        name, bank = find_bank(self.estimator)
        names = list(bank)
        if not _yields_constant_splits(self._checked_cv_orig):
            raise ValueError(
                f"cv must give the same folds each time, got {self.cv!r}: selections of different "
                "steps are compared; pass a splitter with an int as random_state"
            )
        if self.n_prefixes is not None and self.n_prefixes > len(names):
            raise ValueError(
                f"n_prefixes must be at most {len(names)}, the prefixes of the bank, got "
                f"{self.n_prefixes}"
            )
        tried = {"combine": self.combine, "weights": self.weights}
        tried = {f"{name}__{key}": values for key, values in tried.items() if values is not None}
        settings = list(ParameterGrid(tried))
        scores: dict[Subset, float] = {}
        rows: dict[Subset, int] = {}
        n_steps = 0

        def score(subsets: Iterable[Subset]) -> dict[Subset, float]:
            nonlocal n_steps
            subsets = list(subsets)
            new = [subset for subset in subsets if subset not in scores]
            if new:
                candidates = [{f"{name}__active": s, **some} for s in new for some in settings]
                more = {"step": [n_steps] * len(candidates)}
                results = evaluate_candidates(candidates, more_results=more)
                n_steps += 1
                if "mean_test_score" not in results:
                    raise ValueError(f"scoring must give one score, got {self.scoring!r}")
                found = np.nan_to_num(results["mean_test_score"], nan=-np.inf)
                for k, subset in enumerate(new):
                    first = len(found) - len(candidates) + k * len(settings)
                    rows[subset] = first + int(np.argmax(found[first : first + len(settings)]))
                    scores[subset] = float(found[rows[subset]])
            return {subset: scores[subset] for subset in subsets}

        self.active_ = self._walk(names, score)
        self._chosen = rows[self.active_]

    def _walk(
        self, names: list[str], score: Callable[[Iterable[Subset]], dict[Subset, float]]
    ) -> Subset:
        forward = self.direction == "forward"
        current: Subset = () if forward else tuple(names)
        values = score([current])
        best = {len(current): current}  # by size
        end = self.n_prefixes
        if end is None:
            end = len(names) if forward else 0

        def best_neighbour(larger: bool) -> Subset | None:
            found = score(_neighbours(names, current, larger))
            values.update(found)
            return max(found, key=found.__getitem__, default=None)

        while len(current) < end if forward else len(current) > end:
            reached = best_neighbour(forward)
            assert reached is not None
            gain = _gain(values[current], values[reached])
            worth = gain > self.tol if forward else gain >= -self.tol
            if self.n_prefixes is None and not worth:
                break
            # Where steps back have found a better one of that size before, that is gone on from.
            current = max(best.get(len(reached), reached), reached, key=values.__getitem__)
            best[len(current)] = current
            while self.floating and (back := best_neighbour(not forward)) is not None:
                known = best.get(len(back))
                if known is not None and not values[back] > values[known]:
                    break
                current = best[len(back)] = back
        return current

    def _select_best_index(self, refit: Any, refit_metric: str, results: dict[str, Any]) -> int:
        # What was walked to: the tolerance may prefer it to what scores highest.
        return self._chosen


def _neighbours(names: list[str], current: Subset, larger: bool) -> list[Subset]:
    inside = set(current)
    changed = [name for name in names if (name in inside) != larger]
    return [tuple(n for n in names if n in inside ^ {name}) for name in changed]


def _gain(before: float, after: float) -> float:
    # A fit that failed scores minus infinity.
    if before == -math.inf:
        return 0.0 if after == -math.inf else math.inf
    return after - before


def find_bank(estimator: Any) -> tuple[str, PrefixBank]:
    """Give the one bank among an estimator's parameters, and the name that it has there.

    Parameters
    ----------
    estimator : estimator
        A Pipeline, a ChoiceRanker, or what else has one.

    Returns
    -------
    name : str
        As ``set_params`` takes it.
    bank : PrefixBank
        The bank.

    Raises
    ------
    ValueError
        If there is none, or more than one.
    """
    banks = {
        name: value
        for name, value in estimator.get_params(deep=True).items()
        if isinstance(value, PrefixBank)
    }
    if len(banks) != 1:
        raise ValueError(
            f"estimator must have one PrefixBank among its parameters, and "
            f"{type(estimator).__name__} has {len(banks)}: {list(banks)}"
        )
    return next(iter(banks.items()))
