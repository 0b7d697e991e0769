"""Select the prefixes of a bank for a target task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
from sklearn.metrics import get_scorer_names
from sklearn.model_selection import ParameterGrid
from sklearn.model_selection._search import BaseSearchCV
from sklearn.model_selection._split import _yields_constant_splits
from sklearn.utils._param_validation import StrOptions

from prefixembed._utils.parameters import Count, Implements, Number, checked
from prefixembed.bank import PrefixBank

_MAX_SUBSETS = 4096

Subset = tuple[str, ...]


@checked(bank=[PrefixBank], min_size=[Count(0)], max_size=[Count(0), None])
def prefix_subsets(
    bank: PrefixBank, min_size: int = 0, max_size: int | None = None
) -> list[tuple[str, ...]]:
    """List selections of a bank's prefixes, for a grid search over its ``active`` parameter.

    Read more in the :doc:`user guide </guide/selection>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    bank : PrefixBank
        Bank with n prefixes, active or not.
    min_size : int, default=0
        Smallest number of prefixes in a selection. 0 includes the bare backbone;
        ``len(bank) - 1`` lists the selections that leave out at most one prefix.
    max_size : int, default=None
        Largest number of prefixes in a selection. None for all n.

    Returns
    -------
    subsets : list of tuple of str
        Selections, smaller ones first. There are ``2 ** n`` of them if sizes are not limited.

    Raises
    ------
    ValueError
        If ``0 <= min_size <= max_size <= n`` does not hold, or there are more than 4,096
        selections.

    See Also
    --------
    PrefixSelector : Searches step by step if there are too many selections to try them all.

    Examples
    --------
    >>> from prefixembed import PrefixBank, PrefixEncoder, prefix_subsets
    >>> from prefixembed.tasks import demo_backbone
    >>> texts = ["what a film", "dull and long", "a joy", "a bore"] * 8
    >>> encoder = PrefixEncoder(demo_backbone(), max_steps=5, random_state=0)
    >>> prefix = encoder.fit(texts, [1, 0, 1, 0] * 8).prefix_
    >>> bank = PrefixBank({"a": prefix, "b": prefix, "c": prefix})
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
    if n_subsets > _MAX_SUBSETS:
        raise ValueError(
            f"{len(names)} prefixes have {n_subsets} selections of min_size={min_size} to "
            f"max_size={largest}, which is more than {_MAX_SUBSETS}: use PrefixSelector, which "
            "tries about n ** 2 / 2 of them"
        )
    return [subset for size in sizes for subset in combinations(names, size)]


class PrefixSelector(BaseSearchCV):
    """Select the prefixes of a bank for a target task by stepwise search.

    Each step adds or removes the prefix that improves the cross-validated score most. n prefixes
    need about ``n ** 2 / 2`` selections instead of ``2 ** n``. With the bank's cache, each text
    is encoded once per selection.

    Read more in the :doc:`user guide </guide/selection>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    estimator : estimator
        Pipeline or other estimator with exactly one :class:`PrefixBank` among its parameters.
    direction : {"forward", "backward"}, default="forward"
        ``"forward"`` starts from the bare backbone and adds prefixes; ``"backward"`` starts from
        the whole bank and removes them.
    floating : bool, default=False
        Whether each step is followed by steps in the opposite direction, as long as they give the
        best selection of its size so far [1]_.
    n_prefixes : int, default=None
        Number of prefixes to select. None to stop when the score no longer improves, as `tol`
        defines it.
    tol : float, default=0.0
        Smallest contribution of a prefix, if `n_prefixes` is None. A prefix is added if the score
        rises by more than `tol`, and removed if the score falls by at most `tol`.
    combine : list of str, default=None
        Values of the bank's ``combine`` to try with each selection. None for the bank's own value.
    weights : list, default=None
        Values of the bank's ``weights`` to try with each selection. None for the bank's own value.
    scoring : str, callable or None, default=None
        A single score; see :class:`~sklearn.model_selection.GridSearchCV`. None for the
        ``score`` method of the estimator.
    cv : int, splitter, iterable or None, default=None
        Cross-validation splitter; see :class:`~sklearn.model_selection.GridSearchCV`. It must
        give the same folds each time.
    n_jobs : int, default=None
        Number of processes. None for 1, unless in a :func:`joblib.parallel_config` context. With
        more than 1, set the bank's ``cache`` to the path of a file, since workers do not see a
        cache in memory.
    error_score : "raise" or float, default=nan
        Score of a fit that fails. ``"raise"`` raises the error.
    verbose : int, default=0
        How many messages to print; see :class:`~sklearn.model_selection.GridSearchCV`.

    Attributes
    ----------
    active_ : tuple of str
        Names of the selected prefixes, in the bank's order.
    best_estimator_ : estimator
        Estimator with the selected prefixes, fitted on all texts.
    best_score_ : float
        Mean cross-validated score of the selected prefixes. It is optimistic, since it was used
        to select them.
    best_params_, best_index_, cv_results_, n_splits_, scorer_, refit_time_
        As in :class:`~sklearn.model_selection.GridSearchCV`. ``cv_results_`` has one row per
        candidate, and the number of its step as ``step``.

    See Also
    --------
    prefix_subsets : Lists all selections for a grid search.
    prefixembed.inspection.prefix_ablation : Scores each prefix alone and left out, with intervals.

    Notes
    -----
    The first step compares the means of ``gain`` (forward) or ``contribution`` (backward) of
    :func:`~prefixembed.inspection.prefix_ablation` with the same bank, head and folds. Selections
    read texts as their own prefixes do, and the ablation as the whole bank does: set the reading
    of the bank, such as its ``max_length``, if they differ.

    Methods such as ``predict``, ``score`` and ``transform`` use ``best_estimator_``.

    References
    ----------
    .. [1] Pudil, P., et al., "Floating search methods in feature selection", Pattern Recognition
       Letters 15, 1994.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from prefixembed import PrefixBank, PrefixEncoder, PrefixSelector
    >>> from prefixembed.tasks import demo_backbone
    >>> texts = ["what a film", "dull and long", "a joy", "a bore"] * 8
    >>> encoder = PrefixEncoder(demo_backbone(), max_steps=5, random_state=0)
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
        "estimator": [Implements(["fit"])],
        "scoring": [StrOptions(set(get_scorer_names())), callable, None],
        "direction": [StrOptions({"forward", "backward"})],
        "floating": ["boolean"],
        "n_prefixes": [Count(0), None],
        "tol": [Number(None, None, closed="neither")],
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
        name, bank = _find_bank(self.estimator)
        names = list(bank)
        if not _yields_constant_splits(self._checked_cv_orig):
            raise ValueError(
                f"cv must give the same folds each time, got {self.cv!r}, because selections from "
                "different steps are compared: pass a splitter with an int as random_state"
            )
        if self.n_prefixes is not None and self.n_prefixes > len(names):
            raise ValueError(
                f"n_prefixes must be at most {len(names)}, the number of prefixes in the bank, "
                f"got {self.n_prefixes}"
            )
        grid = {f"{name}__combine": self.combine, f"{name}__weights": self.weights}
        settings = list(ParameterGrid({k: v for k, v in grid.items() if v is not None}))
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
                    raise ValueError(f"scoring must give a single score, got {self.scoring!r}")
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
        best = {len(current): current}  # best selection of each size so far
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
            is_worth_it = gain > self.tol if forward else gain >= -self.tol
            if self.n_prefixes is None and not is_worth_it:
                break
            # Floating steps may have found a better selection of this size before.
            current = max(best.get(len(reached), reached), reached, key=values.__getitem__)
            best[len(current)] = current
            while self.floating and (back := best_neighbour(not forward)) is not None:
                known = best.get(len(back))
                if known is not None and not values[back] > values[known]:
                    break
                current = best[len(back)] = back
        return current

    def _select_best_index(self, refit: Any, refit_metric: str, results: dict[str, Any]) -> int:
        # The end of the walk: because of `tol`, it need not have the highest score of all.
        return self._chosen


def _neighbours(names: list[str], current: Subset, larger: bool) -> list[Subset]:
    inside = set(current)
    changed = [name for name in names if (name in inside) != larger]
    return [tuple(n for n in names if n in inside ^ {name}) for name in changed]


def _gain(before: float, after: float) -> float:
    # A failed fit has a score of minus infinity.
    if before == -math.inf:
        return 0.0 if after == -math.inf else math.inf
    return after - before


def _find_bank(estimator: Any) -> tuple[str, PrefixBank]:
    """Return the only bank among an estimator's parameters, after the name of its parameter."""
    banks = {
        name: value
        for name, value in estimator.get_params(deep=True).items()
        if isinstance(value, PrefixBank)
    }
    if len(banks) != 1:
        raise ValueError(
            f"estimator must have exactly one PrefixBank among its parameters, but "
            f"{type(estimator).__name__} has {len(banks)}: {list(banks)}"
        )
    return next(iter(banks.items()))
