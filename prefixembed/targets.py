"""Many predictions from one text: the heads of any number of target tasks on one bank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin, _fit_context, clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from prefixembed._embed.texts import Text, check_texts, is_pairs
from prefixembed._fit.examples import check_tasks
from prefixembed.bank import PrefixBank

if TYPE_CHECKING:
    from typing_extensions import Self


class TargetHeads(MetaEstimatorMixin, BaseEstimator):
    """Cheap heads for many target tasks, which all read the vectors of one bank.

    A text is encoded once, whatever the number of target tasks [1]_; or once for each different
    selection of prefixes, where targets have selections of their own. A target task is added or
    removed by touching its head alone.

    Parameters
    ----------
    bank : PrefixBank
        What turns texts into vectors. It is cloned.
    head : estimator, default=None
        What each target task learns, unless `heads` says otherwise: a classifier or a regressor;
        it is cloned. None for ``LogisticRegression(max_iter=1000)``.
    heads : dict of str to estimator, default=None
        Heads of some target tasks, by name.
    active : dict of str to sequence of str, default=None
        The prefixes that some target tasks are to have, by name. None, and targets that are not
        named, for those that are active in the bank.

    Attributes
    ----------
    bank_ : PrefixBank
        A clone of `bank`.
    heads_ : dict of str to estimator
        The fitted head of each target task.
    active_ : dict of str to tuple of str
        The prefixes of each.

    See Also
    --------
    MultiTaskEncoder : Learns several source tasks together, in one backbone.
    PrefixSelector : Chooses the prefixes of a target task.

    Notes
    -----
    Heads are on vectors of float32. For one that scales or reduces them first, pass a Pipeline.

    References
    ----------
    .. [1] K.-H. Huang et al., "Learning Easily Updated General Purpose Text
       Representations with Adaptable Task-Specific Prefixes", arXiv 2305.13499, 2023.

    Examples
    --------
    >>> from prefixembed import PrefixBank, TargetHeads
    >>> from prefixembed.tasks import demo_backbone
    >>> texts = ["what a film", "dull and long", "a joy", "a bore"] * 4
    >>> targets = {"good": (texts, ["yes", "no"] * 8), "long": (texts, [1, 1, 0, 0] * 4)}
    >>> many = TargetHeads(PrefixBank({}, backbone=demo_backbone())).fit(targets)
    >>> many.predict(["a joy", "dull and long"])
    array([['yes', 0],
           ['no', 1]], dtype=object)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "bank": [PrefixBank],
        "head": [HasMethods(["fit", "predict"]), None],
        "heads": [dict, None],
        "active": [dict, None],
    }

    # `targets` is what is learned from, or which ones are asked for, and no metadata to route.
    __metadata_request__fit: ClassVar[dict[str, str]] = {"targets": UNUSED}
    __metadata_request__predict: ClassVar[dict[str, str]] = {"targets": UNUSED}
    __metadata_request__predict_proba: ClassVar[dict[str, str]] = {"targets": UNUSED}
    __metadata_request__score: ClassVar[dict[str, str]] = {"targets": UNUSED}

    def __init__(
        self,
        bank: PrefixBank,
        head: Any = None,
        *,
        heads: dict[str, Any] | None = None,
        active: dict[str, Any] | None = None,
    ) -> None:
        self.bank = bank
        self.head = head
        self.heads = heads
        self.active = active

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, targets: Mapping[str, tuple[Any, ...]], y: Any = None) -> Self:
        """Learn the head of every target task.

        Parameters
        ----------
        targets : mapping of str to tuple
            Name of each target task to ``(X, y)`` or ``(X, y, sample_weight)``. Texts that
            several share are encoded once.
        y : Ignored
            Labels are in `targets`.

        Returns
        -------
        self : TargetHeads
            Fitted.

        Raises
        ------
        ValueError
            If a target is no such tuple, lengths differ, X holds what is no text, or `heads` or
            `active` name what is no target task or no prefix.
        """
        check_tasks(targets, "targets")
        for parameter, named in (("heads", self.heads), ("active", self.active)):
            if unknown := sorted(set(named or {}) - set(targets), key=str):
                raise ValueError(f"{parameter} has {unknown}, and targets are {list(targets)}")
        if self.bank.output != "texts":
            raise ValueError(f"bank must have output='texts', got {self.bank.output!r}")
        bank = clone(self.bank).set_params(output_dtype="float32").set_output(transform="default")
        heads, active = self._learn(bank, targets, self.heads or {}, self.active or {})
        self.bank_: PrefixBank = bank
        self.heads_: dict[str, Any] = heads
        self.active_: dict[str, tuple[str, ...]] = active
        return self

    def add_target(
        self,
        name: str,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        head: Any = None,
        active: Any = None,
    ) -> Self:
        """Learn one more target task, or one anew; the others are not touched.

        Parameters
        ----------
        name : str
            Of the target task.
        X : array-like of str of shape (n_texts,) or (n_texts, 2)
            Texts, or pairs of texts.
        y : array-like of shape (n_texts,)
            Labels.
        sample_weight : array-like of shape (n_texts,), default=None
            Weights of texts, for a head that takes them.
        head : estimator, default=None
            What to learn. None for what `heads` or `head` say.
        active : sequence of str, default=None
            The prefixes to use. None for what `active` says, or those of the bank.

        Returns
        -------
        self : TargetHeads
            With the head.

        Raises
        ------
        ValueError
            As :meth:`fit`.
        """
        check_is_fitted(self)
        heads = {**(self.heads or {}), **({} if head is None else {name: head})}
        actives = {**(self.active or {}), **({} if active is None else {name: active})}
        target = (X, y) if sample_weight is None else (X, y, sample_weight)
        learned, active = self._learn(self.bank_, {name: target}, heads, actives)
        self.heads_.update(learned)
        self.active_.update(active)
        return self

    def remove_target(self, name: str) -> Self:
        """Forget the head of a target task.

        Parameters
        ----------
        name : str
            Of the target task.

        Returns
        -------
        self : TargetHeads
            Without it.

        Raises
        ------
        ValueError
            If there is none of that name.
        """
        self._check_names([name])
        del self.heads_[name], self.active_[name]
        return self

    def predict(self, X: Any, targets: Iterable[str] | None = None) -> NDArray[Any]:
        """Predict every target task for every text.

        Parameters
        ----------
        X : array-like of str of shape (n_texts,) or (n_texts, 2)
            Texts, or pairs of texts.
        targets : iterable of str, default=None
            Which target tasks. None for all, in the order of ``heads_``.

        Returns
        -------
        labels : ndarray of shape (n_texts, n_targets)
            A column a target task; of dtype object where they are not of one type.

        Raises
        ------
        ValueError
            If X holds what is no text, or there is no such target task.
        """
        names = self._check_names(targets)
        if not names:
            return np.empty((len(check_texts(X)), 0), dtype=object)
        vectors = _encode(self.bank_, dict.fromkeys(names, check_texts(X)), self.active_)
        columns = [self.heads_[name].predict(vectors[name]) for name in names]
        kinds = {(column.dtype.kind, column.ndim) for column in columns}
        if len(kinds) == 1 and columns[0].ndim == 1:
            return np.column_stack(columns)
        table = np.empty((len(columns[0]), len(columns)), dtype=object)
        for k, column in enumerate(columns):
            table[:, k] = column if column.ndim == 1 else list(column)
        return table

    def predict_proba(self, X: Any, targets: Iterable[str] | None = None) -> dict[str, Any]:
        """Give the probability of each class of every target task.

        Parameters
        ----------
        X : array-like of str of shape (n_texts,) or (n_texts, 2)
            Texts, or pairs of texts.
        targets : iterable of str, default=None
            Which target tasks. None for all.

        Returns
        -------
        probabilities : dict of str to ndarray of shape (n_texts, n_classes)
            By target task, in the order of ``heads_[name].classes_``.

        Raises
        ------
        ValueError
            If X holds what is no text, there is no such target task, or its head gives no
            probabilities.
        """
        names = self._check_names(targets)
        if without := [n for n in names if not hasattr(self.heads_[n], "predict_proba")]:
            raise ValueError(f"heads of {without} give no probabilities")
        vectors = _encode(self.bank_, dict.fromkeys(names, check_texts(X)), self.active_)
        return {name: self.heads_[name].predict_proba(vectors[name]) for name in names}

    def score(self, targets: Mapping[str, tuple[Any, ...]], y: Any = None) -> float:
        """Give the mean over target tasks of what each head's own ``score`` gives.

        Parameters
        ----------
        targets : mapping of str to tuple
            Name of some target tasks to ``(X, y)`` or ``(X, y, sample_weight)``.
        y : Ignored
            Labels are in `targets`.

        Returns
        -------
        score : float
            Mean accuracy of classifiers. See :meth:`scores` for each.

        Raises
        ------
        ValueError
            If a target is no such tuple, or there is no such target task.
        """
        return float(np.mean(list(self.scores(targets).values())))

    def scores(self, targets: Mapping[str, tuple[Any, ...]]) -> dict[str, float]:
        """Give the score of each target task by its own head.

        Parameters
        ----------
        targets : mapping of str to tuple
            Name of some target tasks to ``(X, y)`` or ``(X, y, sample_weight)``.

        Returns
        -------
        scores : dict of str to float
            In the order of `targets`.

        Raises
        ------
        ValueError
            If a target is no such tuple, or there is no such target task.
        """
        names = self._check_names(check_tasks(targets, "targets"))
        if not names:
            raise ValueError("targets must have one target task or more, got none")
        texts = _read({name: targets[name][0] for name in names})
        vectors = _encode(self.bank_, texts, self.active_)
        scores = {}
        for name in names:
            _, y, *weights = targets[name]
            weighted = {"sample_weight": weights[0]} if weights else {}
            scores[name] = float(self.heads_[name].score(vectors[name], y, **weighted))
        return scores

    def _learn(
        self,
        bank: PrefixBank,
        targets: Mapping[str, tuple[Any, ...]],
        heads: Mapping[str, Any],
        active: Mapping[str, Any],
    ) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
        """Give the heads of some target tasks, and their prefixes; nothing is changed."""
        default = LogisticRegression(max_iter=1000) if self.head is None else self.head
        actives = {name: _selection(bank, name, active.get(name)) for name in targets}
        texts = _read({name: target[0] for name, target in targets.items()})
        for name, (_, y, *_) in targets.items():
            check_consistent_length(texts[name], y)
            head = heads.get(name, default)
            if not hasattr(head, "fit"):
                raise ValueError(f"heads[{name!r}] is no estimator: {head!r}")
        vectors = _encode(bank, texts, actives)
        learned = {}
        for name, (_, y, *weights) in targets.items():
            head = clone(heads.get(name, default))
            weighted = {_weight_name(head): weights[0]} if weights else {}
            learned[name] = head.fit(vectors[name], y, **weighted)
        return learned, actives

    def _check_names(self, names: Iterable[str] | None) -> list[str]:
        check_is_fitted(self)
        wanted = list(self.heads_) if names is None else list(names)
        if unknown := [name for name in wanted if name not in self.heads_]:
            raise ValueError(f"targets has {unknown}, and target tasks are {list(self.heads_)}")
        return wanted

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "heads_")


def _read(X: Mapping[str, Any]) -> dict[str, list[Text]]:
    """Check texts by name; what several names share is checked once, and stays one list."""
    known: dict[int, list[Text]] = {}
    for texts in X.values():
        if id(texts) not in known:
            known[id(texts)] = check_texts(texts)
    return {name: known[id(texts)] for name, texts in X.items()}


def _encode(
    bank: PrefixBank, texts: Mapping[str, list[Text]], active: Mapping[str, tuple[str, ...]]
) -> dict[str, NDArray[np.float32]]:
    """Encode the texts of target tasks, all those that have a representation at once."""
    groups: dict[tuple[frozenset[str], bool], dict[str, list[Text]]] = {}
    for name, some in texts.items():
        groups.setdefault((frozenset(active[name]), is_pairs(some)), {})[name] = some
    vectors: dict[str, NDArray[np.float32]] = {}
    for (prefixes, _), members in groups.items():
        active_bank = clone(bank).set_params(active=[n for n in bank if n in prefixes])
        distinct: dict[int, list[Text]] = {id(some): some for some in members.values()}
        encoded = np.split(
            active_bank.transform([text for some in distinct.values() for text in some]),
            np.cumsum([len(some) for some in distinct.values()])[:-1],
        )
        by_list = dict(zip(distinct, encoded, strict=True))
        vectors |= {name: by_list[id(some)] for name, some in members.items()}
    return vectors


def _selection(bank: PrefixBank, name: str, active: Any) -> tuple[str, ...]:
    known = list(bank)
    if active is None:
        active = known if bank.active is None else bank.active
    if isinstance(active, str) or any(prefix not in known for prefix in active):
        raise ValueError(f"active[{name!r}] must be names of {known}, got {active!r}")
    return tuple(active)


def _weight_name(head: Any) -> str:
    """Name the weights of texts as the head's fit takes them: a Pipeline, for its last step."""
    if isinstance(head, Pipeline):
        step, last = head.steps[-1]
        return f"{step}__{_weight_name(last)}"
    return "sample_weight"
