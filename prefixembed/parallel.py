"""Work for many processes: source tasks side by side, and vectors ahead of a grid search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any

import joblib
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import FeatureUnion, Pipeline

from prefixembed._embed.texts import check_sentences, is_pairs, split_pairs, vector_counts
from prefixembed._embed.transformer import TextTransformer
from prefixembed._fit.examples import check_tasks
from prefixembed._utils.parameters import checked
from prefixembed._utils.warnings import warn
from prefixembed.cache import Representation, VectorCache, open_cache
from prefixembed.encoder import PrefixEncoder


@checked(
    tasks=[Mapping],
    encoder=[PrefixEncoder, None],
    n_jobs=[Integral, None],
    verbose=["verbose"],
)
def fit_prefixes(
    tasks: Mapping[str, tuple[Any, ...]],
    encoder: PrefixEncoder | None = None,
    *,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> dict[str, PrefixEncoder]:
    """Learn the prefixes of several source tasks, side by side.

    Parameters
    ----------
    tasks : mapping of str to tuple
        Name of each source task to ``(X, y)`` or ``(X, y, sample_weight)``.
    encoder : PrefixEncoder, default=None
        Whose parameters each task is learned with; it is cloned and not changed itself. None
        for a default one.
    n_jobs : int, default=None
        Processes, as joblib has it. None is one, unless in a
        :func:`joblib.parallel_config` context. Each process loads a backbone of its own, and
        the CPU's cores are shared out among them.
    verbose : int, default=0
        How much joblib tells of its progress.

    Returns
    -------
    encoders : dict of str to PrefixEncoder
        Fitted, in the order of `tasks`; ready for a :class:`PrefixBank`. With an int as
        ``random_state``, they are those that fitting one by one gives: in every bit where a
        process has as many threads, and to rounding otherwise.

    Raises
    ------
    ValueError
        If a task is no such tuple, or a fit refuses its data.

    Examples
    --------
    >>> from prefixembed import PrefixBank, PrefixEncoder, fit_prefixes
    >>> from prefixembed.tasks import demo_backbone
    >>> texts = ["what a film", "dull and long", "a joy", "a bore"] * 8
    >>> tasks = {"stars": (texts, [1, 0, 1, 0] * 8), "long": (texts, [1, 1, 0, 0] * 8)}
    >>> encoder = PrefixEncoder(demo_backbone(), max_epochs=5, random_state=0)
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
    """Encode ahead, in this process, all that a grid search will ask for.

    Worth it before a search with ``n_jobs`` above 1 whose bank has the path of a file as its
    ``cache``: the workers find every vector there, and load no backbone. A search with
    ``n_jobs=1`` gains nothing, since it encodes each text once anyway.

    Parameters
    ----------
    search : estimator
        A search with a ``param_grid``, such as :class:`~sklearn.model_selection.GridSearchCV`; or
        what it searches over: a bank, a frozen encoder, a Pipeline that begins with one, or a
        FeatureUnion of them.
    X : array-like of str of shape (n_texts,) or (n_texts, 2)
        What ``search.fit`` will get.

    Returns
    -------
    n_representations : int
        How many there are: each text was encoded that many times at most.

    Raises
    ------
    ValueError
        If there is nothing in `search` that turns texts into vectors, its cache is None, or its
        candidates are drawn at random and not known ahead.

    Warns
    -----
    UserWarning
        If the search has workers that cannot see what is filled, or the cache is too small.

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
        raise ValueError(f"search must have a param_grid, and {type(search).__name__} has none")
    searched = search.estimator if is_search else search
    seen: set[tuple[Representation, str, VectorCache]] = set()
    needed: dict[VectorCache, int] = {}
    for candidate in ParameterGrid(search.param_grid if is_search else {}):
        own = {key: value for key, value in candidate.items() if _reaches_texts(searched, key)}
        candidate_estimator = clone(searched)
        candidate_estimator.set_params(**own)  # of a FrozenEstimator, it gives None
        for transformer in _text_transformers(candidate_estimator):
            if transformer.cache is None:
                raise ValueError(f"cache of {type(transformer).__name__} is None: nothing to fill")
            cache = open_cache(transformer.cache)
            key = transformer._representation(), transformer.output, cache
            if key in seen:
                continue
            seen.add(key)
            texts = check_sentences(X, transformer.output == "words")
            transformer.transform(texts)
            apart = key[0].pairs == "apart" and is_pairs(texts)
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
                f"encode the rest again: pass a VectorCache of max_bytes={enough} or more as cache"
            )
    return len(seen)


def _reaches_texts(estimator: Any, parameter: str) -> bool:
    """Tell whether a parameter belongs to what comes first in a Pipeline."""
    if not isinstance(estimator, Pipeline):
        return True
    step, _, rest = parameter.partition("__")
    name, first = estimator.steps[0]
    return step == name and (not rest or _reaches_texts(first, rest))


def _text_transformers(estimator: Any) -> Iterator[TextTransformer]:
    if isinstance(estimator, Pipeline):
        yield from _text_transformers(estimator.steps[0][1])
    elif isinstance(estimator, FeatureUnion):
        for _, part in estimator.transformer_list:
            yield from _text_transformers(part)
    elif isinstance(estimator, FrozenEstimator):
        yield from _text_transformers(estimator.estimator)
    elif isinstance(estimator, TextTransformer):
        if not hasattr(estimator, "prefix_") and isinstance(estimator, PrefixEncoder):
            raise ValueError(
                "search must not begin with a PrefixEncoder, which is fitted anew in every fold: "
                "put its prefix into a PrefixBank, or freeze it"
            )
        yield estimator
    else:
        raise ValueError(
            "search must begin with a PrefixBank or a frozen PrefixEncoder, in a Pipeline or a "
            f"FeatureUnion or by itself, got {type(estimator).__name__}"
        )
