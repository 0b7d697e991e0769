"""Learn several prefixes in parallel, and fill a cache before a parallel grid search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any

import joblib
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import FeatureUnion, Pipeline

from prefixembed._embed.texts import Text, check_sentences, is_pairs, split_pairs, vector_counts
from prefixembed._embed.transformer import TextTransformer
from prefixembed._fit.examples import check_tasks
from prefixembed._utils.parameters import checked
from prefixembed._utils.warnings import warn
from prefixembed.bank import PrefixBank
from prefixembed.cache import VectorCache, open_cache
from prefixembed.encoder import PrefixEncoder


@checked(
    tasks=[Mapping], encoder=[PrefixEncoder, None], n_jobs=[Integral, None], verbose=["verbose"]
)
def fit_prefixes(
    tasks: Mapping[str, tuple[Any, ...]],
    encoder: PrefixEncoder | None = None,
    *,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> dict[str, PrefixEncoder]:
    """Learn the prefixes of several source tasks in parallel.

    Read more in the :doc:`user guide </guide/parallel>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    tasks : mapping of str to tuple
        Data of each source task by name, as ``(X, y)`` or ``(X, y, sample_weight)``.
    encoder : PrefixEncoder, default=None
        Encoder that is cloned and fitted for each task. None for ``PrefixEncoder()``.
    n_jobs : int, default=None
        Number of processes; see :class:`joblib.Parallel`. None for 1, unless in a
        :func:`joblib.parallel_config` context. Each process loads its own backbone, and the
        processes share the CPU cores.
    verbose : int, default=0
        How much progress joblib prints; see :class:`joblib.Parallel`.

    Returns
    -------
    encoders : dict of str to PrefixEncoder
        Fitted encoders in the order of `tasks`, as :class:`PrefixBank` takes them. With an int as
        ``random_state``, they equal encoders that are fitted one after the other. They are equal
        bit for bit if each process has the same number of threads, and up to rounding otherwise.

    Raises
    ------
    ValueError
        If the data of a task is invalid.

    See Also
    --------
    fill_cache : Encodes texts before a parallel grid search.

    Examples
    --------
    >>> from prefixembed import PrefixBank, PrefixEncoder, fit_prefixes
    >>> from prefixembed.tasks import demo_backbone
    >>> texts = ["what a film", "dull and long", "a joy", "a bore"] * 8
    >>> tasks = {"stars": (texts, [1, 0, 1, 0] * 8), "long": (texts, [1, 1, 0, 0] * 8)}
    >>> encoder = PrefixEncoder(demo_backbone(), max_steps=5, random_state=0)
    >>> PrefixBank(fit_prefixes(tasks, encoder)).transform(["a fine film"]).shape
    (1, 384)
    """
    check_tasks(tasks)
    encoder = PrefixEncoder() if encoder is None else encoder
    fits = joblib.Parallel(n_jobs=n_jobs, verbose=verbose)(
        joblib.delayed(clone(encoder).fit)(*task) for task in tasks.values()
    )
    return dict(zip(tasks, fits, strict=True))


def fill_cache(search: Any, X: Any) -> int:
    """Encode all texts that a grid search will need, before it starts.

    Use it before a search with ``n_jobs`` above 1, and with the path of a file as ``cache`` of the
    bank. The workers then find every vector in the file and do not load the backbone. A search
    with ``n_jobs=1`` does not become faster, since it encodes each text once anyway.

    Read more in the :doc:`user guide </guide/parallel>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    search : estimator
        A search with a ``param_grid``, such as :class:`~sklearn.model_selection.GridSearchCV`, or
        an estimator without a search:

        - a :class:`PrefixBank`;
        - a fitted :class:`PrefixEncoder` or :class:`MultiTaskEncoder` in a
          :class:`~sklearn.frozen.FrozenEstimator`;
        - a :class:`~sklearn.pipeline.Pipeline` that begins with one of these;
        - a :class:`~sklearn.pipeline.FeatureUnion` of them.
    X : array-like of str of shape (n_texts,) or (n_texts, 2)
        Texts, or pairs of texts, that ``search.fit`` will get.

    Returns
    -------
    n_representations : int
        Number of different representations among the candidates. Each text is encoded at most
        once for each of them. Candidates whose vectors are the same, for example since only
        `combine` differs and there is one prefix, count once.

    Raises
    ------
    ValueError
        If `search` does not begin with a transformer of texts, its ``cache`` is None, or it has no
        ``param_grid``, because it draws its candidates at random.

    Warns
    -----
    UserWarning
        If the workers of the search cannot see the cache, or it is too small for all vectors.

    See Also
    --------
    prefix_subsets : Selections of prefixes for a grid search.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import Pipeline
    >>> from prefixembed import PrefixBank, fill_cache
    >>> from prefixembed.tasks import demo_backbone
    >>> texts, labels = ["a joy", "a bore", "fun", "dull"] * 4, [1, 0, 1, 0] * 4
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "vectors.db")
    ...     bank = PrefixBank({}, backbone=demo_backbone(), cache=path)
    ...     pipe = Pipeline([("enc", bank), ("clf", LogisticRegression())])
    ...     grid = {"enc__pooling": ["mean", "cls"], "clf__C": [0.1, 1.0]}
    ...     search = GridSearchCV(pipe, grid, cv=2, n_jobs=2)
    ...     fill_cache(search, texts)
    2
    """
    is_search = hasattr(search, "estimator") and not isinstance(search, FrozenEstimator)
    if is_search and not hasattr(search, "param_grid"):
        raise ValueError(
            f"search must have a param_grid, but {type(search).__name__} does not have one"
        )
    searched = search.estimator if is_search else search
    read: dict[bool, list[Text]] = {}  # X as texts or pairs, and as sentences in words
    seen: set[tuple[bytes, bool, VectorCache]] = set()
    needed: dict[VectorCache, int] = {}
    for candidate in ParameterGrid(search.param_grid if is_search else {}):
        own = {key: value for key, value in candidate.items() if _reaches_texts(searched, key)}
        estimator = clone(searched)
        estimator.set_params(**own)  # set_params of a FrozenEstimator returns None
        for transformer in _text_transformers(estimator):
            bank = transformer.as_bank()
            if bank.cache is None:
                raise ValueError(
                    f"cache of {type(transformer).__name__} is None: there is nothing to fill"
                )
            cache = open_cache(bank.cache)
            words = bank.output == "words"
            if words not in read:
                read[words] = check_sentences(X, words)
            texts = read[words]
            apart = is_pairs(texts) and bank.combination().pairs_reading().pairs == "apart"
            # Equal keys of a cache, not equal representations, mean that nothing is encoded twice.
            probe = ("", "") if is_pairs(texts) and not apart else ""
            (key,) = bank.representation().keys([probe])
            if (key, words, cache) in seen:
                continue
            seen.add((key, words, cache))
            bank.transform(texts)
            distinct = list(dict.fromkeys(split_pairs(texts) if apart else texts))
            needed[cache] = needed.get(cache, 0) + int(vector_counts(distinct).sum())
    has_workers = is_search and search.n_jobs not in (None, 1)
    if has_workers and any(cache.path is None for cache in needed):
        warn("workers cannot see a cache in memory: set cache to the path of a file")
    for cache, n_vectors in needed.items():
        held = cache.stats()
        if held.n_vectors < n_vectors:
            enough = cache.max_bytes * n_vectors // max(1, held.n_vectors)
            warn(
                f"{cache} holds {held.n_vectors} of {n_vectors} vectors, and the search will "
                f"encode the rest again: set cache to a VectorCache of max_bytes={enough} or more"
            )
    return len(seen)


def _reaches_texts(estimator: Any, parameter: str) -> bool:
    """Return whether a parameter belongs to the first step of a Pipeline."""
    if not isinstance(estimator, Pipeline):
        return True
    step, _, rest = parameter.partition("__")
    name, first = estimator.steps[0]
    return step == name and (not rest or _reaches_texts(first, rest))


def _text_transformers(estimator: Any, frozen: bool = False) -> Iterator[TextTransformer]:
    """Yield the transformers that read the texts that an estimator gets."""
    if isinstance(estimator, FrozenEstimator):
        yield from _text_transformers(estimator.estimator, frozen=True)
    elif isinstance(estimator, Pipeline):
        yield from _text_transformers(estimator.steps[0][1], frozen)
    elif isinstance(estimator, FeatureUnion):
        for _, part in estimator.transformer_list:
            yield from _text_transformers(part, frozen)
    elif not isinstance(estimator, TextTransformer):
        raise ValueError(
            "search must begin with a PrefixBank or a frozen encoder, by itself or in a Pipeline "
            f"or FeatureUnion, got {type(estimator).__name__}"
        )
    elif isinstance(estimator, PrefixBank) or frozen:
        yield estimator
    else:
        name = type(estimator).__name__
        raise ValueError(
            f"search must not begin with a {name}, which is fitted again in each fold: freeze it "
            "with FrozenEstimator, or put the prefixes of fitted encoders into a PrefixBank"
        )
