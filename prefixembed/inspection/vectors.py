"""Vectors: how alike the effects of prefixes are, and a map of texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.utils import Bunch
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.validation import check_consistent_length

from prefixembed._embed.texts import check_texts
from prefixembed._utils.docstrings import substitute
from prefixembed._utils.parameters import checked
from prefixembed.bank import PrefixBank
from prefixembed.inspection.arguments import active_names, check_some_texts, comparable_copy


@substitute
@checked(bank=[PrefixBank], X="no_validation")
def prefix_similarity(bank: PrefixBank, X: Any) -> Bunch:
    """Compare prefixes by their effect on the vectors of texts.

    The effect of a prefix on a text is the vector with that prefix alone minus the vector of the
    bare backbone.

    Read more in the :doc:`user guide </guide/inspection>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    $inspected_bank
    $X
        A few hundred are enough.

    Returns
    -------
    result : Bunch
        With these attributes:

        - ``names`` : list of str, the active prefixes
        - ``similarity`` : ndarray of shape (n_prefixes, n_prefixes), mean over texts of the cosine
          similarity of the effects of two prefixes
        - ``effect`` : ndarray of shape (n_prefixes,), mean over texts of the norm of the effect
          divided by the norm of the bare vector

    Raises
    ------
    ValueError
        If the bank has no active prefix, or `X` contains no text.

    See Also
    --------
    prefixembed.inspection.PrefixSimilarityDisplay : Plots the result.

    Examples
    --------
    >>> from prefixembed import PrefixBank, PrefixEncoder
    >>> from prefixembed.inspection import prefix_similarity
    >>> from prefixembed.tasks import demo_backbone
    >>> texts, labels = ["what a film", "dull and long", "a joy", "a bore"] * 8, [1, 0, 1, 0] * 8
    >>> encoder = PrefixEncoder(demo_backbone(), max_steps=5, random_state=0).fit(texts, labels)
    >>> prefix_similarity(PrefixBank({"stars": encoder}), texts[:4]).similarity
    array([[1.]])
    """
    names = active_names(bank)
    texts = check_some_texts(X)
    copy = comparable_copy(bank, texts)
    bare = copy.set_params(active=[]).transform(texts).astype(np.float64)
    effects = np.stack(
        [copy.set_params(active=[name]).transform(texts) - bare for name in names]
    )  # (prefix, text, feature)
    norms = np.linalg.norm(effects, axis=-1, keepdims=True)
    directions = np.divide(effects, norms, out=np.zeros_like(effects), where=norms > 0)
    similarity = np.einsum("ptf,qtf->pq", directions, directions) / len(texts)
    effect = (norms[..., 0] / np.linalg.norm(bare, axis=-1)).mean(axis=1)
    return Bunch(names=names, similarity=similarity.clip(-1, 1).round(12), effect=effect)


@substitute
@checked(
    bank=[HasMethods(["transform"])],
    X="no_validation",
    y="no_validation",
    projector=[HasMethods(["fit_transform"]), None],
)
def embedding_map(bank: Any, X: Any, y: ArrayLike | None = None, projector: Any = None) -> Bunch:
    """Project the vectors of texts to two dimensions.

    Read more in the :doc:`user guide </guide/inspection>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    bank : PrefixBank or PrefixEncoder
        Turns texts into vectors. Any transformer of texts that is fitted, or needs no fit, will
        do.
    $X
        At least three.
    y : array-like of shape (n_texts,), default=None
        Labels by which :class:`~prefixembed.inspection.EmbeddingMapDisplay` colours the points.
    projector : transformer, default=None
        Projects vectors to two features, such as :class:`sklearn.manifold.TSNE`. It is cloned.
        None for the first two principal components.

    Returns
    -------
    result : Bunch
        With these attributes:

        - ``points`` : ndarray of shape (n_texts, 2), the projected vectors
        - ``labels`` : ndarray of shape (n_texts,) or None, the labels

    Raises
    ------
    ValueError
        If `X` and `y` differ in length, or the projector does not return two features.

    See Also
    --------
    prefixembed.inspection.EmbeddingMapDisplay : Plots the result.

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
        raise ValueError(f"projector must return two features per text, got shape {points.shape}")
    return Bunch(points=points, labels=labels)
