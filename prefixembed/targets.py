"""Predict many target tasks from one vector per text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin, _fit_context, clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from prefixembed._embed.texts import Text, check_texts, is_pairs
from prefixembed._fit.examples import check_tasks
from prefixembed._fit.target_scores import TargetScoresMixin
from prefixembed._utils.docstrings import substitute
from prefixembed._utils.masks import unmasked
from prefixembed._utils.parameters import Implements
from prefixembed._utils.warnings import warn
from prefixembed.bank import PrefixBank

if TYPE_CHECKING:
    from typing_extensions import Self


@substitute
class TargetHeads(TargetScoresMixin, MetaEstimatorMixin, BaseEstimator):
    """Fit one head per target task on the vectors of a shared bank.

    Each text is encoded once, however many target tasks there are [1]_. If target tasks use
    different prefixes, each text is encoded once per selection of prefixes. Adding or removing a
    target task does not affect the heads of the others.

    Read more in the :doc:`user guide </guide/targets>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    bank : PrefixBank
        Bank that turns texts into vectors. It is cloned.
    head : estimator, default=None
        Classifier or regressor that is cloned and fitted for each target task that is not in
        `heads`. None for ``LogisticRegression(max_iter=1000)``.
    heads : dict of str to estimator, default=None
        Heads of individual target tasks, by name. None to use `head` for all.
    selections : dict of str to sequence of str, default=None
        Prefixes that individual target tasks use, by name of the task. Target tasks that are not
        named use the active prefixes of `bank`. None for the active prefixes in all of them.

    Attributes
    ----------
    bank_ : PrefixBank
        Clone of `bank`.
    heads_ : dict of str to estimator
        Fitted head of each target task.
    selections_ : dict of str to tuple of str
        Names of the prefixes that each target task uses.
    digests_ : dict of str to str
        Digest of everything that decided the vectors that each head was fitted on, except the
        dtype that the backbone computed in.

    See Also
    --------
    MultiTaskEncoder : Fine-tunes one backbone on several source tasks.
    PrefixSelector : Selects the prefixes for a target task.

    Notes
    -----
    Heads are fitted on float32 vectors as the bank returns them. To scale or reduce them first,
    pass a :class:`~sklearn.pipeline.Pipeline` as head.

    The prefixes and parameters of ``bank_`` may be changed after fitting. Heads whose vectors
    change with them still predict, but with a warning that names the target tasks to fit again
    with :meth:`add_target`.

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
        "head": [Implements(["fit", "predict"]), None],
        "heads": [dict, None],
        "selections": [dict, None],
    }

    # `targets` holds data or names of targets, which are not metadata to be routed.
    __metadata_request__fit: ClassVar[dict[str, str]] = {"targets": UNUSED}
    __metadata_request__predict: ClassVar[dict[str, str]] = {"targets": UNUSED}
    __metadata_request__score: ClassVar[dict[str, str]] = {"targets": UNUSED}

    # Digests that a warning has told of, by target.
    _warned: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        bank: PrefixBank,
        head: Any = None,
        *,
        heads: dict[str, Any] | None = None,
        selections: dict[str, Any] | None = None,
    ) -> None:
        self.bank = bank
        self.head = head
        self.heads = heads
        self.selections = selections

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, targets: Mapping[str, tuple[Any, ...]], y: Any = None) -> Self:
        """Fit the head of each target task.

        Parameters
        ----------
        $target_tasks
            A text that several target tasks share is encoded once.
        $y_ignored

        Returns
        -------
        $self

        Raises
        ------
        ValueError
            If the data of a target task is invalid, or `heads` or `selections` name an unknown
            target task or prefix.
        """
        check_tasks(targets, "targets")
        for parameter, named in (("heads", self.heads), ("selections", self.selections)):
            if unknown := sorted(set(named or {}) - set(targets), key=str):
                raise ValueError(
                    f"{parameter} has {unknown}, which targets does not have: {list(targets)}"
                )
        if self.bank.output != "texts":
            raise ValueError(f"bank must have output='texts', got {self.bank.output!r}")
        bank = clone(self.bank)
        learned = self._learn(bank, targets, self.heads or {}, self.selections or {})
        self.bank_: PrefixBank = bank
        self.heads_, self.selections_, self.digests_ = learned
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
        """Add a target task, or fit an existing one again; the others do not change.

        Parameters
        ----------
        $target_name
        $X
        $target_labels
        $sample_weight
            Only for heads that accept weights.
        head : estimator, default=None
            Head to clone and fit. None for the one in `heads`, or else `head` of the constructor.
        active : sequence of str, default=None
            Prefixes to use. None for those in `selections`, or else the active prefixes of
            ``bank_``.

        Returns
        -------
        $self

        Raises
        ------
        ValueError
            If the data is invalid or `active` names an unknown prefix. Existing heads are kept.
        """
        check_is_fitted(self)
        heads = {**(self.heads or {}), **({} if head is None else {name: head})}
        selections = {**(self.selections or {}), **({} if active is None else {name: active})}
        target = (X, y) if sample_weight is None else (X, y, sample_weight)
        learned, selected, digests = self._learn(self.bank_, {name: target}, heads, selections)
        self.heads_.update(learned)
        self.selections_.update(selected)
        self.digests_.update(digests)
        return self

    def remove_target(self, name: str) -> Self:
        """Remove a target task.

        Parameters
        ----------
        $target_name

        Returns
        -------
        $self

        Raises
        ------
        ValueError
            If there is no target task of that name.
        """
        self._check_names([name])
        del self.heads_[name], self.selections_[name], self.digests_[name]
        return self

    def predict(self, X: Any, targets: Iterable[str] | None = None) -> NDArray[Any]:
        """Predict the label of each text in each target task.

        Parameters
        ----------
        $X
        $target_names

        Returns
        -------
        labels : ndarray of shape (n_texts, n_targets)
            Predicted labels, one column per target task. The dtype is object if target tasks have
            labels of different types.

        Raises
        ------
        ValueError
            If `X` is invalid or there is no such target task.
        """
        names = self._check_names(targets)
        if not names:
            return np.empty((len(check_texts(X)), 0), dtype=object)
        vectors = self._encode(dict.fromkeys(names, check_texts(X)))
        columns = [self.heads_[name].predict(vectors[name]) for name in names]
        kinds = {(column.dtype.kind, column.ndim) for column in columns}
        if len(kinds) == 1 and columns[0].ndim == 1:
            return np.column_stack(columns)
        table = np.empty((len(columns[0]), len(columns)), dtype=object)
        for k, column in enumerate(columns):
            table[:, k] = column if column.ndim == 1 else list(column)
        return table

    def score(self, targets: Mapping[str, tuple[Any, ...]], y: Any = None) -> float:
        """Return the mean over target tasks of the score of each head.

        Parameters
        ----------
        $target_tasks
        $y_ignored

        Returns
        -------
        score : float
            Mean of :meth:`scores`: for classifiers, the mean accuracy.

        Raises
        ------
        ValueError
            If the data of a target task is invalid or there is no such target task.
        """
        return float(np.mean(list(self.scores(targets).values())))

    def scores(self, targets: Mapping[str, tuple[Any, ...]]) -> dict[str, float]:
        """Return the score of each target task, as computed by its head.

        Parameters
        ----------
        $target_tasks

        Returns
        -------
        scores : dict of str to float
            Scores by target task, in the order of `targets`.

        Raises
        ------
        ValueError
            If the data of a target task is invalid or there is no such target task.
        """
        names = self._check_names(check_tasks(targets, "targets"))
        if not names:
            raise ValueError("targets must have at least one target task, got none")
        vectors = self._encode(_check_all_texts({name: targets[name][0] for name in names}))
        scores = {}
        for name in names:
            y, *weights = _labels(name, targets[name])
            weighted = {"sample_weight": weights[0]} if weights else {}
            scores[name] = float(self.heads_[name].score(vectors[name], y, **weighted))
        return scores

    def _learn(
        self,
        bank: PrefixBank,
        targets: Mapping[str, tuple[Any, ...]],
        heads: Mapping[str, Any],
        selections: Mapping[str, Any],
    ) -> tuple[dict[str, Any], dict[str, tuple[str, ...]], dict[str, str]]:
        """Return heads, prefixes and digests of target tasks; the estimator does not change."""
        default = LogisticRegression(max_iter=1000) if self.head is None else self.head
        selected = {name: _check_selection(bank, name, selections.get(name)) for name in targets}
        texts = _check_all_texts({name: target[0] for name, target in targets.items()})
        labels = {name: _labels(name, target) for name, target in targets.items()}
        for name, (y, *_) in labels.items():
            check_consistent_length(texts[name], y)
            head = heads.get(name, default)
            if not hasattr(head, "fit") or isinstance(head, type):
                raise ValueError(f"heads[{name!r}] must be an estimator, got {head!r}")
        vectors, digests = _encode(bank, texts, selected)
        learned = {}
        for name, (y, *weights) in labels.items():
            head = clone(heads.get(name, default))
            weighted = {_weight_name(head): weights[0]} if weights else {}
            learned[name] = head.fit(vectors[name], y, **weighted)
        return learned, selected, digests

    def _encode(self, texts: Mapping[str, list[Text]]) -> dict[str, NDArray[np.float32]]:
        """Encode the texts of target tasks, and warn if their heads know other vectors."""
        vectors, digests = _encode(self.bank_, texts, self.selections_)
        changed = {name: digests[name] for name in texts if digests[name] != self.digests_[name]}
        outdated = [name for name, digest in changed.items() if self._warned.get(name) != digest]
        self._warned = {**self._warned, **changed}
        if outdated:
            warn(
                f"bank_ has changed since the heads of {outdated} were fitted, and their vectors "
                "with it: fit these targets again with add_target"
            )
        return vectors

    def _check_names(self, names: Iterable[str] | None) -> list[str]:
        check_is_fitted(self)
        wanted = list(self.heads_) if names is None else list(names)
        if unknown := [name for name in wanted if name not in self.heads_]:
            raise ValueError(f"targets has {unknown}, which are not fitted: {list(self.heads_)}")
        return wanted

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "heads_")


def _check_all_texts(X: Mapping[str, Any]) -> dict[str, list[Text]]:
    """Check texts by name; an object under several names is checked once and stays one list."""
    known: dict[int, list[Text]] = {}
    for texts in X.values():
        if id(texts) not in known:
            known[id(texts)] = check_texts(texts)
    return {name: known[id(texts)] for name, texts in X.items()}


def _encode(
    bank: PrefixBank, texts: Mapping[str, list[Text]], selections: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """Return the vectors of each target task, and the digest of what made them."""
    groups: dict[tuple[frozenset[str], bool], dict[str, list[Text]]] = {}
    for name, some in texts.items():
        groups.setdefault((frozenset(selections[name]), is_pairs(some)), {})[name] = some
    vectors: dict[str, NDArray[np.float32]] = {}
    digests: dict[str, str] = {}
    for (prefixes, _), members in groups.items():
        selected = clone(bank).set_output(transform="default")
        selected.set_params(active=[n for n in bank if n in prefixes], output_dtype="float32")
        # Rounding does not make a head outdated: another device may compute in another dtype.
        digest = replace(selected.representation(), dtype="").digest
        distinct: dict[int, list[Text]] = {id(some): some for some in members.values()}
        encoded = np.split(
            selected.transform([text for some in distinct.values() for text in some]),
            np.cumsum([len(some) for some in distinct.values()])[:-1],
        )
        by_list = dict(zip(distinct, encoded, strict=True))
        vectors |= {name: by_list[id(some)] for name, some in members.items()}
        digests |= dict.fromkeys(members, digest)
    return vectors, digests


def _check_selection(bank: PrefixBank, name: str, active: Any) -> tuple[str, ...]:
    known = list(bank)
    if active is None:
        active = known if bank.active is None else bank.active
    is_sequence = isinstance(active, Iterable) and not isinstance(active, (str, bytes))
    if not is_sequence or any(prefix not in known for prefix in active):
        raise ValueError(f"selections[{name!r}] must be names from {known}, got {active!r}")
    return tuple(active)


def _labels(name: str, target: tuple[Any, ...]) -> list[Any]:
    """Return the labels and, if there are any, the weights of a target task."""
    parts = zip(("y", "sample_weight"), target[1:], strict=False)
    return [unmasked(values, f"{part} of targets[{name!r}]") for part, values in parts]


def _weight_name(head: Any) -> str:
    """Return the name of the weights in the head's ``fit``; a Pipeline passes them to a step."""
    if isinstance(head, Pipeline):
        step, last = head.steps[-1]
        return f"{step}__{_weight_name(last)}"
    return "sample_weight"
