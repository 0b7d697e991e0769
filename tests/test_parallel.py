import dataclasses
import warnings

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed import (
    MultiTaskEncoder,
    PrefixBank,
    PrefixEncoder,
    VectorCache,
    fill_cache,
    fit_prefixes,
    prefix_subsets,
)

CPU = {"dtype": "float32", "device": "cpu"}
TEXTS = [f"{word} {k}" for k in range(12) for word in ("joy", "bore")]
LABELS = ["good", "bad"] * 12


@pytest.fixture
def encoder(tiny):
    return PrefixEncoder(
        tiny(), max_length=32, max_steps=18, batch_size=8, learning_rate=0.03,
        early_stopping=False, random_state=0, **CPU,
    )  # fmt: skip


@pytest.fixture
def bank(tiny, random_prefix, tmp_path):
    prefixes = {name: random_prefix(tiny(), seed=k) for k, name in enumerate("ab")}
    return PrefixBank(prefixes, cache=tmp_path / "c.db", **CPU)


def pipeline(bank):
    return Pipeline(
        [("enc", bank), ("scale", StandardScaler()), ("clf", LogisticRegression(max_iter=50))]
    )


def n_threads():
    return torch.get_num_threads()


def test_workers_share_the_cpu_cores():
    per_worker = joblib.Parallel(n_jobs=2)(joblib.delayed(n_threads)() for _ in range(2))
    assert set(per_worker) == {max(1, joblib.cpu_count() // 2)}


@pytest.mark.filterwarnings("ignore:the training loss is stuck")
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_parallel_fits_equal_sequential_ones(encoder, n_jobs):
    tasks = {
        "stars": (TEXTS, LABELS),
        "few": (TEXTS[:9], LABELS[:9]),
        "weighted": (TEXTS, LABELS, np.r_[np.ones(20), np.zeros(4)]),
    }
    fitted = fit_prefixes(tasks, encoder, n_jobs=n_jobs)
    before = torch.get_num_threads()
    torch.set_num_threads(before if n_jobs == 1 else max(1, joblib.cpu_count() // n_jobs))
    try:
        expected = {name: clone(encoder).fit(*task).prefix_ for name, task in tasks.items()}
    finally:
        torch.set_num_threads(before)
    assert {name: one.prefix_ for name, one in fitted.items()} == expected
    assert list(fitted) == list(tasks)
    assert len({one.prefix_.digest for one in fitted.values()}) == 3
    assert not hasattr(encoder, "prefix_")
    assert fitted["few"].history_["step"] == list(range(1, 19))


@pytest.mark.parametrize("task", [(TEXTS,), [TEXTS, LABELS], TEXTS, (1, 2, 3, 4)])
def test_an_invalid_task_raises_with_its_name(encoder, task):
    with pytest.raises(ValueError, match=r"tasks\['odd'\] must be a tuple \(X, y\)"):
        fit_prefixes({"odd": task}, encoder)


def test_the_error_of_a_fit_is_raised(encoder):
    with pytest.raises(ValueError, match=r"X\[1\] must be a str"):
        fit_prefixes({"bad": (["a", None], [0, 1])}, encoder, n_jobs=2)
    assert fit_prefixes({}, encoder) == {}


def test_a_search_encodes_nothing_after_fill_cache(bank, encoded, fresh_backbones):
    grid = {"enc__active": prefix_subsets(bank), "clf__C": [0.1, 1.0], "scale": ["passthrough"]}
    search = GridSearchCV(pipeline(bank), grid, cv=2, n_jobs=2, error_score="raise")
    assert fill_cache(search, TEXTS) == 4
    assert len(encoded) == 4 * len(TEXTS)
    assert fill_cache(search, TEXTS) == 4
    search.fit(TEXTS, LABELS)
    search.predict(TEXTS)
    assert len(encoded) == 4 * len(TEXTS)


def test_workers_load_no_backbone_after_fill_cache(bank, tmp_path):
    fill_cache(bank, TEXTS)
    moved = clone(bank)
    # The prefixes name a backbone that does not exist: loading it would raise an error.
    moved.prefixes = {
        name: dataclasses.replace(prefix, backbone="nowhere/at-all")
        for name, prefix in bank.items()
    }
    search = GridSearchCV(
        pipeline(moved), {"clf__C": [0.1, 1.0]}, cv=2, n_jobs=2, error_score="raise"
    )
    assert search.fit(TEXTS, LABELS).score(TEXTS, LABELS) > 0.8


def test_banks_pipelines_and_unions_can_be_filled(bank, encoded):
    assert fill_cache(bank, TEXTS) == 1
    union = FeatureUnion([("all", bank), ("bare", clone(bank).set_params(active=[]))])
    assert fill_cache(union, TEXTS) == 2
    assert fill_cache(Pipeline([("both", union), ("clf", LogisticRegression())]), TEXTS) == 2
    assert len(encoded) == 2 * len(TEXTS)
    whole = GridSearchCV(pipeline(bank), {"enc": [bank, clone(bank).set_params(active=["a"])]})
    assert fill_cache(whole, TEXTS) == 2


@pytest.mark.filterwarnings("ignore:the training loss is stuck")
@pytest.mark.parametrize("kind", [PrefixEncoder, MultiTaskEncoder])
def test_frozen_encoders_can_be_filled(encoder, encoded, tmp_path, kind):
    if kind is PrefixEncoder:
        encoder.set_params(cache=tmp_path / "c.db").fit(TEXTS, LABELS)
    else:
        params = {name: encoder.get_params()[name] for name in ("backbone", "max_length", *CPU)}
        encoder = kind(**params, max_steps=1, random_state=0, cache=tmp_path / "c.db")
        encoder.fit({"good": (TEXTS, LABELS)})
    frozen = FrozenEstimator(encoder)
    encoded.clear()
    assert fill_cache(frozen, TEXTS) == 1
    assert fill_cache(Pipeline([("enc", frozen), ("clf", LogisticRegression())]), TEXTS) == 1
    assert len(encoded) == len(TEXTS)
    encoder.transform(TEXTS)
    assert len(encoded) == len(TEXTS)


def test_an_encoder_among_the_candidates_must_be_frozen(bank, encoder):
    # The search clones candidates, so that an encoder is fitted again in every fold.
    search = GridSearchCV(pipeline(bank), {"enc": [encoder.fit(TEXTS, LABELS)]})
    with pytest.raises(ValueError, match="PrefixEncoder, which is fitted again"):
        fill_cache(search, TEXTS)


@pytest.mark.parametrize("pairs", ["joint", "apart"])
def test_distinct_vectors_of_pairs_are_counted(bank, encoded, pairs):
    X = [("a", "b"), ("b", "a"), ("a", "c")]
    cache = VectorCache()
    fill_cache(bank.set_params(pairs=pairs, cache=cache), X)
    assert cache.stats().n_vectors == len(encoded) == 3


# Values of each parameter that may, or may not, change vectors.
VALUES = {
    "active": [[], ["a"], ["b"], ["a", "b"], ["b", "a"]],
    "combine": ["concat", "mean"],
    "weights": [None, 1.0, 2.0, {"b": 1.0}],
    "pairs": ["auto", "joint", "apart"],
    "pooling": ["auto", "mean"],
    "prompt": [None, ""],
    "max_length": [None, 64],
    "dtype": ["auto", "float32"],
    "device": ["auto", "cpu"],
    "batch_tokens": ["auto", 16],
    "on_truncate": ["warn", "window"],
    "output_dtype": ["float32", "int8"],
}


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_what_is_counted_is_what_is_encoded(tiny, random_prefix, data):
    prefixes = {name: random_prefix(tiny(), seed=k) for k, name in enumerate("ab")}
    bank = PrefixBank(prefixes, active=data.draw(st.sampled_from(VALUES["active"])),
                      cache=VectorCache(), **CPU)  # fmt: skip
    X = data.draw(st.sampled_from([TEXTS[:3], [("a", "b"), ("c", "a")]]))
    if isinstance(X[0], tuple):
        bank.set_params(pairs="apart")
    names = data.draw(
        st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=3, unique=True)
    )
    grid = {f"enc__{name}": VALUES[name] for name in names}
    if isinstance(X[0], tuple):  # joint pairs cannot be read in windows
        grid.pop("enc__on_truncate", None)
    search = GridSearchCV(pipeline(bank), grid)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        n_counted = fill_cache(search, X)
    stats = bank.cache.stats()
    n_sequences = len(set(sum(X, ()) if isinstance(X[0], tuple) else X))
    if "pairs" not in names or not isinstance(X[0], tuple):
        assert stats.n_vectors == stats.misses == n_counted * n_sequences
    else:
        assert stats.n_vectors == stats.misses


def test_estimators_without_known_candidates_raise(bank, encoder):
    with pytest.raises(ValueError, match="got LogisticRegression"):
        fill_cache(LogisticRegression(), TEXTS)
    with pytest.raises(ValueError, match="got ColumnTransformer"):
        fill_cache(ColumnTransformer([("a", bank, "text")]), TEXTS)
    with pytest.raises(ValueError, match="cache of PrefixBank is None"):
        fill_cache(clone(bank).set_params(cache=None), TEXTS)
    with pytest.raises(ValueError, match="PrefixEncoder, which is fitted again"):
        fill_cache(encoder, TEXTS)
    drawn = RandomizedSearchCV(pipeline(bank), {"enc__pooling": ["mean", "cls"]})
    with pytest.raises(ValueError, match="RandomizedSearchCV does not have one"):
        fill_cache(drawn, TEXTS)
    with pytest.raises(ValueError, match="an iterator can be read once"):
        fill_cache(bank, iter(TEXTS))


def test_a_cache_that_is_too_small_warns(bank):
    small = VectorCache(max_bytes=10_000)
    search = GridSearchCV(
        pipeline(bank.set_params(cache=small)), {"enc__active": prefix_subsets(bank)}
    )
    with pytest.warns(UserWarning, match=r"holds 23 of 96 vectors.* max_bytes=4\d+"):
        fill_cache(search, TEXTS)
    enough = VectorCache(max_bytes=10_000 * 96 // 23)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill_cache(search.set_params(estimator__enc__cache=enough), TEXTS)


def test_workers_that_cannot_see_the_cache_warn(bank):
    grid = {"clf__C": [1.0]}
    search = GridSearchCV(pipeline(bank.set_params(cache=VectorCache())), grid, n_jobs=2)
    with pytest.warns(UserWarning, match="workers cannot see a cache in memory"):
        fill_cache(search, TEXTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill_cache(search.set_params(n_jobs=None), TEXTS)


def test_frozen_encoders_with_equal_parameters_are_all_filled(tiny):
    texts = ["a joy", "a bore", "fun", "dull"] * 4
    cache = VectorCache()
    recipe = PrefixEncoder(
        tiny(), max_steps=2, max_length=64, random_state=0, dtype="float32", device="cpu",
        cache=cache, early_stopping=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits = fit_prefixes({"a": (texts, [1, 0] * 8), "b": (texts, [1, 1, 0, 0] * 4)}, recipe)
    union = FeatureUnion([(name, FrozenEstimator(fit)) for name, fit in fits.items()])
    assert fill_cache(union, texts) == 2
    assert cache.stats().n_vectors == 8
