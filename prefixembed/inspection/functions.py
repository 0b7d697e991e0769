"""What prefixes do: to a target task's score, to attention, to vectors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student
from sklearn.base import clone, is_classifier
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer_names
from sklearn.model_selection import check_cv, cross_val_score
from sklearn.utils import Bunch
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_consistent_length

from prefixembed._embed.batching import tokenize
from prefixembed._embed.encoding import report_truncated
from prefixembed._embed.texts import Text, check_texts
from prefixembed._utils.parameters import checked
from prefixembed.bank import PrefixBank
from prefixembed.inspection.attention import measure_shares

__all__ = [
    "attention_share",
    "embedding_map",
    "prefix_ablation",
    "prefix_similarity",
]


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
    """Score a target task with each prefix alone, and with each left out.

    Parameters
    ----------
    bank : PrefixBank
        Whose active prefixes are looked at, combined as it says.
    X : array-like of str of shape (n_texts,) or (n_texts, 2)
        Texts of the target task.
    y : array-like of shape (n_texts,)
        Labels.
    head : estimator, default=None
        What is trained on vectors. None for ``LogisticRegression(max_iter=1000)``.
    cv : int, splitter, iterable or None, default=None
        As scikit-learn has it; all representations get the same folds.
    scoring : str, callable or None, default=None
        One score. None for the head's own.
    confidence_level : float, default=0.95
        Of the intervals.
    n_jobs : int, default=None
        Processes for the heads.

    Returns
    -------
    result : Bunch
        - ``names`` : list of str, the active prefixes
        - ``all``, ``none`` : ndarray of shape (n_folds,), scores of the bank and of the bare
          backbone
        - ``alone``, ``without`` : ndarray of shape (n_prefixes, n_folds), scores with one prefix
          and with all others
        - ``gain`` : ndarray of shape (n_prefixes, 3), mean of ``alone - none`` and its interval
        - ``contribution`` : ndarray of shape (n_prefixes, 3), mean of ``all - without`` and its
          interval
        - ``harmful`` : bool ndarray of shape (n_prefixes,), whether the interval of the
          contribution lies below zero: negative transfer
        - ``seconds`` : dict of str to float or list of float, time to encode `X` in each of the
          representations, nothing taken from a cache

    Raises
    ------
    ValueError
        If the bank has no active prefix, or X and y are not what they should be.

    Notes
    -----
    Folds share training texts, so their scores are not independent: intervals are those of the
    corrected resampled t-test [1]_. Where all folds move by the same, and not by zero, there is no
    interval: its ends are NaN, and nothing is called harmful.

    References
    ----------
    .. [1] C. Nadeau and Y. Bengio, "Inference for the generalization error", Machine Learning 52,
       2003.

    Examples
    --------
    >>> from prefixembed import PrefixBank, PrefixEncoder
    >>> from prefixembed.inspection import prefix_ablation
    >>> from prefixembed.tasks import demo_backbone
    >>> texts, labels = ["what a film", "dull and long", "a joy", "a bore"] * 8, [1, 0, 1, 0] * 8
    >>> encoder = PrefixEncoder(demo_backbone(), max_epochs=5, random_state=0).fit(texts, labels)
    >>> result = prefix_ablation(PrefixBank({"stars": encoder}), texts, labels, cv=2)
    >>> result.names, result.alone.shape
    (['stars'], (1, 2))
    """
    names = _active(bank)
    texts = check_texts(X)
    check_consistent_length(texts, y)
    head = LogisticRegression(max_iter=1000) if head is None else head
    splitter = check_cv(cv, y, classifier=is_classifier(head))
    folds = list(splitter.split(np.zeros(len(texts)), y))
    if len(folds) < 2:
        raise ValueError(f"cv must give two folds or more, got {len(folds)}: {cv!r}")
    plain = clone(bank).set_params(cache=None, output_dtype="float32")
    plain.set_output(transform="default")
    plain.transform(texts[:1])  # loads the backbone, which is no cost of a representation
    known: dict[frozenset[str], tuple[NDArray[np.float64], float]] = {}

    def score(active: Sequence[str]) -> tuple[NDArray[np.float64], float]:
        key = frozenset(active)
        if key not in known:
            started = time.perf_counter()
            vectors = plain.set_params(active=list(active)).transform(texts)
            seconds = time.perf_counter() - started
            scores = cross_val_score(
                head, vectors, y, cv=folds, scoring=scoring, n_jobs=n_jobs, error_score="raise"
            )
            known[key] = scores, seconds
        return known[key]

    none, everything = score([]), score(names)
    alone = [score([name]) for name in names]
    without = [score([other for other in names if other != name]) for name in names]
    sizes = [len(test) / len(train) for train, test in folds]

    def interval(differences: NDArray[np.float64]) -> NDArray[np.float64]:
        return _interval(differences, float(np.mean(sizes)), confidence_level)

    gain = np.array([interval(scores - none[0]) for scores, _ in alone])
    contribution = np.array([interval(everything[0] - scores) for scores, _ in without])
    return Bunch(
        names=names,
        all=everything[0],
        none=none[0],
        alone=np.array([scores for scores, _ in alone]),
        without=np.array([scores for scores, _ in without]),
        gain=gain,
        contribution=contribution,
        harmful=contribution[:, 2] < 0,
        seconds={
            "all": everything[1],
            "none": none[1],
            "alone": [seconds for _, seconds in alone],
            "without": [seconds for _, seconds in without],
        },
    )


def _interval(
    differences: NDArray[np.float64], test_to_train: float, level: float
) -> NDArray[np.float64]:
    """Give mean, lower and upper end, with the variance that shared training texts add."""
    n = len(differences)
    mean = differences.mean()
    error = np.sqrt(differences.var(ddof=1) * (1 / n + test_to_train))
    reach = error * student.ppf((1 + level) / 2, n - 1)
    if np.ptp(differences) == 0:
        # Folds that all move alike, as few texts may, do not tell how far the mean may lie off.
        reach = 0.0 if mean == 0 else np.nan
    return np.array([mean, mean - reach, mean + reach])


@checked(bank=[PrefixBank], X="no_validation")
def attention_share(bank: PrefixBank, X: Any) -> Bunch:
    """Measure the share of attention that goes to each prefix, by layer and head.

    Parameters
    ----------
    bank : PrefixBank
        Whose active prefixes are looked at, combined and weighted as it says.
    X : array-like of str of shape (n_texts,) or (n_texts, 2)
        Texts; some hundred say enough.

    Returns
    -------
    result : Bunch
        - ``names`` : list of str, the active prefixes
        - ``shares`` : ndarray of shape (n_layers, n_heads, n_prefixes), mean over texts of the mean
          over their tokens. What is missing to one goes to tokens. With ``combine="mean"`` each
          prefix has its part of the mean over prefixes. Heads are those of keys; where several
          heads of queries share one (decoders), it is their mean.

    Raises
    ------
    ValueError
        If the bank has no active prefix, X has no text, or a text is to be cut and the bank's
        `on_truncate` is ``"raise"``. Of what is longer than `max_length` the beginning is read,
        also where the bank has windows.

    Examples
    --------
    >>> from prefixembed import PrefixBank, PrefixEncoder
    >>> from prefixembed.inspection import attention_share
    >>> from prefixembed.tasks import demo_backbone
    >>> texts, labels = ["what a film", "dull and long", "a joy", "a bore"] * 8, [1, 0, 1, 0] * 8
    >>> encoder = PrefixEncoder(demo_backbone(), max_epochs=5, random_state=0).fit(texts, labels)
    >>> attention_share(PrefixBank({"stars": encoder}), texts[:4]).shares.shape
    (6, 12, 1)
    """
    names = _active(bank)
    texts = _some(check_texts(X))
    known = bank._representation()
    backbone = bank._load_checked()
    prefixes = bank._check()
    parts = [
        torch.tensor(prefixes[name].keys_values, device=backbone.device, dtype=torch.float32)
        for name in names
    ]
    tokens = tokenize(backbone.tokenizer(known.max_length), texts, known.pairs, known.prompt)
    n_cut = int(tokens.truncated.sum())
    report_truncated(n_cut, len(texts), known.max_length, bank.on_truncate)
    shares = measure_shares(
        backbone, tokens, parts, [bank._weight(name) for name in names], bank.combine,
        known.first_position,
    )  # fmt: skip
    return Bunch(names=names, shares=shares)


@checked(bank=[PrefixBank], X="no_validation")
def prefix_similarity(bank: PrefixBank, X: Any) -> Bunch:
    """Compare prefixes by what each does to the vectors of texts.

    Parameters
    ----------
    bank : PrefixBank
        Whose active prefixes are compared, each alone.
    X : array-like of str of shape (n_texts,) or (n_texts, 2)
        Texts; some hundred say enough.

    Returns
    -------
    result : Bunch
        - ``names`` : list of str, the active prefixes
        - ``similarity`` : ndarray of shape (n_prefixes, n_prefixes), mean over texts of the cosine
          between the moves of the vector, away from that of the bare backbone, which two prefixes
          cause
        - ``effect`` : ndarray of shape (n_prefixes,), mean length of the move, as a share of the
          length of the bare vector

    Raises
    ------
    ValueError
        If the bank has no active prefix, or X has no text.

    Examples
    --------
    >>> from prefixembed import PrefixBank, PrefixEncoder
    >>> from prefixembed.inspection import prefix_similarity
    >>> from prefixembed.tasks import demo_backbone
    >>> texts, labels = ["what a film", "dull and long", "a joy", "a bore"] * 8, [1, 0, 1, 0] * 8
    >>> encoder = PrefixEncoder(demo_backbone(), max_epochs=5, random_state=0).fit(texts, labels)
    >>> prefix_similarity(PrefixBank({"stars": encoder}), texts[:4]).similarity
    array([[1.]])
    """
    names = _active(bank)
    texts = _some(check_texts(X))
    plain = clone(bank).set_output(transform="default").set_params(output_dtype="float32")
    bare = plain.set_params(active=[]).transform(texts).astype(np.float64)
    moves = np.stack(
        [plain.set_params(active=[name]).transform(texts) - bare for name in names]
    )  # (prefix, text, feature)
    lengths = np.linalg.norm(moves, axis=-1, keepdims=True)
    directions = np.divide(moves, lengths, out=np.zeros_like(moves), where=lengths > 0)
    similarity = np.einsum("ptf,qtf->pq", directions, directions) / len(texts)
    effect = (lengths[..., 0] / np.linalg.norm(bare, axis=-1)).mean(axis=1)
    return Bunch(names=names, similarity=similarity.clip(-1, 1).round(12), effect=effect)


@checked(
    bank=[HasMethods(["transform"])],
    X="no_validation",
    y="no_validation",
    projector=[HasMethods(["fit_transform"]), None],
)
def embedding_map(bank: Any, X: Any, y: ArrayLike | None = None, projector: Any = None) -> Bunch:
    """Lay vectors out in two dimensions.

    Parameters
    ----------
    bank : PrefixBank or PrefixEncoder
        Or another transformer of texts that needs no fit.
    X : array-like of str of shape (n_texts,) or (n_texts, 2)
        Three texts or more.
    y : array-like of shape (n_texts,), default=None
        Labels, to colour by.
    projector : transformer, default=None
        From vectors to two features, such as :class:`sklearn.manifold.TSNE`; it is cloned. None for
        the first two principal components.

    Returns
    -------
    result : Bunch
        - ``points`` : ndarray of shape (n_texts, 2)
        - ``labels`` : ndarray of shape (n_texts,) or None

    Raises
    ------
    ValueError
        If X and y differ in length, or the projector gives another number of features.

    Examples
    --------
    >>> from prefixembed import PrefixBank
    >>> from prefixembed.inspection import embedding_map
    >>> from prefixembed.tasks import demo_backbone
    >>> bank = PrefixBank({}, backbone=demo_backbone())
    >>> embedding_map(bank, ["a film", "a book", "a play"], ["a", "b", "b"]).points.shape
    (3, 2)
    """
    texts = check_texts(X)
    labels = None if y is None else np.asarray(y)
    if labels is not None:
        check_consistent_length(texts, labels)
    vectors = np.asarray(bank.transform(texts))
    projector = PCA(2, random_state=0) if projector is None else clone(projector)
    points = np.asarray(projector.fit_transform(vectors))
    if points.shape != (len(texts), 2):
        raise ValueError(f"projector must give two features a text, got shape {points.shape}")
    return Bunch(points=points, labels=labels)


def _active(bank: PrefixBank) -> list[str]:
    bank._validate_params()
    if bank.output != "texts":
        raise ValueError(f"bank must have output='texts', got {bank.output!r}")
    names = bank._active_names(bank._check())
    if not names:
        raise ValueError("bank must have an active prefix, got active=[]")
    return names


def _some(texts: list[Text]) -> list[Text]:
    if not texts:
        raise ValueError("X must have a text or more, got none")
    return texts
