"""Keys of vectors, names of caches, and estimators that use caches."""

import dataclasses
import json
import pickle

import joblib
import numpy as np
import pytest
from conftest import PAIRS, TEXTS
from helpers import run_python
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import Pipeline

from prefixembed import (
    PrefixBank,
    PrefixEncoder,
    VectorCache,
    prefix_subsets,
    release_backbones,
)
from prefixembed.cache import Representation, open_cache
from prefixembed.reading import Reading

CPU = {"dtype": "float32", "device": "cpu"}
BASE = Representation("f", (("a", 1.0), ("b", 1.0)), "concat", Reading("mean", 64), "float32")


# Keys


@given(st.lists(st.one_of(st.text(st.characters()), st.tuples(st.text(), st.text())), unique=True))
@settings(max_examples=80, deadline=None)
def test_different_texts_have_different_keys(texts):
    keys = BASE.keys(texts)
    assert len(set(keys)) == len(texts)
    assert keys == dataclasses.replace(BASE).keys(texts)


def test_pairs_split_at_different_places_have_different_keys():
    texts = ["ab", ("ab", ""), ("a", "b"), ("", "ab"), "pair2:ab", ("a", "b:"), ("a:", "b")]
    assert len(set(BASE.keys(texts))) == len(texts)


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "g"},
        {"prefixes": (("a", 1.0), ("c", 1.0))},
        {"prefixes": (("a", 1.0),)},
        {"prefixes": ()},
        {"prefixes": (("a", 1.0), ("b", 0.5))},
        {"prefixes": (("a", 0.5), ("b", 1.0))},
        {"combine": "mean"},
        {"reading": Reading("cls", 64)},
        {"reading": Reading("mean", 63)},
        {"reading": Reading("mean", 64, pooled_layers=2)},
        {"reading": Reading("mean", 64, prompt="p")},
        {"reading": Reading("mean", 64, windows=True)},
        {"reading": Reading("mean", 64, first_position=2)},
        {"dtype": "bfloat16"},
    ],
)
def test_each_field_of_a_representation_changes_keys(change):
    changed = dataclasses.replace(BASE, **change)
    assert changed.keys(["x"]) != BASE.keys(["x"])
    assert changed.digest != BASE.digest


def test_order_of_prefixes_does_not_change_keys():
    reordered = dataclasses.replace(BASE, prefixes=BASE.prefixes[::-1])
    assert reordered.keys(["x"]) == BASE.keys(["x"]) and reordered.digest == BASE.digest


def test_combine_does_not_change_keys_of_a_single_prefix():
    one = dataclasses.replace(BASE, prefixes=BASE.prefixes[:1])
    assert dataclasses.replace(one, combine="mean").keys(["x"]) == one.keys(["x"])


def test_pairs_parameter_does_not_change_keys_of_single_texts():
    apart = dataclasses.replace(BASE, reading=Reading("mean", 64, pairs="apart"))
    assert apart.keys(["x"]) == BASE.keys(["x"])
    assert pickle.loads(pickle.dumps(apart)).keys(["x"]) == BASE.keys(["x"])


# Names


def test_path_of_a_folder_is_refused(tmp_path, tiny):
    with pytest.raises(ValueError, match="cache must be the path of a file, got the folder"):
        PrefixBank({}, backbone=tiny(), cache=tmp_path, **CPU).transform(["a"])


def test_equal_names_open_the_same_cache(tmp_path):
    assert open_cache("memory") is open_cache()
    assert open_cache("memory").path is None
    by_str, by_path = open_cache(str(tmp_path / "c.db")), open_cache(tmp_path / "c.db")
    assert by_str is by_path and by_str is not open_cache()
    assert open_cache(by_str) is by_str
    assert "c.db" in repr(by_str)


@pytest.mark.parametrize("name", ["none", "None", "NONE"])
def test_string_none_is_refused(tmp_path, tiny, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    bank = PrefixBank({}, backbone=tiny(), cache=name, **CPU)
    encoder = PrefixEncoder(tiny(), cache=name, **CPU)
    for opening in (
        lambda: open_cache(name),
        lambda: bank.transform(["a"]),
        lambda: bank.fit(["a"]),
        lambda: encoder.fit(["a", "b"], [0, 1]),
    ):
        with pytest.raises(ValueError, match=f"got '{name}'; pass None, without quotes"):
            opening()
    assert not list(tmp_path.iterdir())


# Estimators


@pytest.fixture
def bank(tiny, random_prefix):
    prefixes = {name: random_prefix(tiny(), seed=k, scale=0.5) for k, name in enumerate("abc")}
    return PrefixBank(prefixes, cache=VectorCache(), **CPU)


@pytest.mark.parametrize("X", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_each_text_is_encoded_once(bank, encoded, X):
    vectors = bank.fit_transform(X)
    n = len(encoded)
    assert n == len(X)
    copied = clone(bank).transform(X[::-1])
    np.testing.assert_array_equal(copied, vectors[::-1])
    more = bank.transform([*X, *X, X[0]])
    np.testing.assert_array_equal(more[: len(X)], vectors)
    assert len(encoded) == n
    # Order and names of prefixes do not matter.
    reordered = PrefixBank(
        {n * 2: p for n, p in reversed(bank.items())}, **(CPU | {"cache": bank.cache})
    )
    np.testing.assert_array_equal(reordered.transform(X), vectors)
    assert len(encoded) == n
    assert np.abs(bank.set_params(cache=None).transform(X) - vectors).max() < 1e-5
    assert len(encoded) == 2 * n


@pytest.mark.parametrize(
    "change",
    [
        {"active": ["a", "b"]},
        {"active": []},
        {"weights": 0.5},
        {"weights": {"b": 0.5}},
        {"combine": "mean"},
        {"pooling": "cls"},
        {"pooled_layers": 2},
        {"max_length": 32},
        {"dtype": "bfloat16"},
    ],
)
def test_changed_parameter_misses_the_cache(bank, encoded, change):
    bank.transform(["one text"])
    changed = clone(bank).set_params(**change)
    vector = changed.transform(["one text"])
    assert len(encoded) == 2
    np.testing.assert_array_equal(changed.set_params(cache=None).transform(["one text"]), vector)
    bank.transform(["one text"])
    assert len(encoded) == 3


def test_replaced_prefix_misses_the_cache(bank, encoded, tiny, random_prefix):
    before = bank.transform(["one text"])
    bank.add("a", random_prefix(tiny(), seed=99))
    assert np.abs(bank.transform(["one text"]) - before).max() > 1e-3
    assert len(encoded) == 2


def test_another_backbone_misses_the_cache(tiny, encoded):
    cache = VectorCache()
    for family in ("bert", "electra"):
        PrefixBank({}, backbone=tiny(family), cache=cache, max_length=32, **CPU).transform(["x"])
    assert len(encoded) == 2


def test_encoder_and_its_bank_share_vectors(tiny, random_prefix, encoded):
    cache = VectorCache()
    encoder = PrefixEncoder.from_prefix(random_prefix(tiny()), cache=cache, **CPU)
    vectors = encoder.transform(TEXTS)
    encoder.predict(TEXTS)
    np.testing.assert_array_equal(PrefixBank({"a": encoder}, cache=cache, **CPU).transform(TEXTS),
                                  vectors)  # fmt: skip
    assert len(encoded) == len(TEXTS)
    small = encoder.set_params(output_dtype="int8").transform(TEXTS)
    assert small.dtype == np.int8 and len(encoded) == len(TEXTS)


def test_cached_vectors_need_no_backbone(bank):
    expected = bank.transform(TEXTS)
    release_backbones()
    np.testing.assert_array_equal(clone(bank).transform(TEXTS), expected)
    assert release_backbones() == 0


def test_default_cache_is_shared_by_all_estimators(bank, tiny, monkeypatch, encoded):
    monkeypatch.setattr("prefixembed.cache._opened", {})
    one = PrefixBank(bank.prefixes, **CPU)
    one.transform(TEXTS)
    pickle.loads(pickle.dumps(one)).transform(TEXTS)
    assert len(encoded) == len(TEXTS)
    assert open_cache().stats().hits == len(TEXTS)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_grid_search_encodes_each_text_once_per_subset(bank, encoded, kind, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=40)
    texts = [f"{['bore', 'joy'][label]} number {k}" for k, label in enumerate(labels)]
    bank.set_params(cache=VectorCache(tmp_path / "c.db") if kind == "disk" else VectorCache())
    subsets = prefix_subsets(bank)
    assert len(subsets) == 8
    pipe = Pipeline([("enc", bank), ("clf", LogisticRegression(max_iter=50))])
    grid = {"enc__active": subsets, "clf__C": list(np.logspace(-4, 0, 10))}
    folds = KFold(5, shuffle=True, random_state=0)
    search = GridSearchCV(pipe, grid, cv=folds, error_score="raise").fit(texts, labels)
    assert len(encoded) == 8 * 40
    search.predict(texts)
    search.predict_proba(texts[::-1])
    assert len(encoded) == 8 * 40
    search.predict([*texts, "a new one"])
    assert len(encoded) == 8 * 40 + 1
    # Scores do not depend on the cache.
    few = {"enc__active": subsets[:3], "clf__C": [0.1]}
    with_cache = clone(search).set_params(param_grid=few).fit(texts, labels)
    without = clone(with_cache).set_params(estimator__enc__cache=None).fit(texts, labels)
    np.testing.assert_allclose(
        with_cache.cv_results_["mean_test_score"], without.cv_results_["mean_test_score"]
    )


OTHER_PROCESS = """
import json, sys, joblib
from prefixembed._embed import encoding
n = []
real = encoding._embed_batch
encoding._embed_batch = lambda *a: n.extend(a[2]) or real(*a)
pipe, texts = joblib.load(sys.argv[1])
vectors = pipe.transform(texts)
from prefixembed import release_backbones
print(json.dumps([len(n), release_backbones(), float(vectors.sum())]))
"""


def test_another_process_uses_the_vectors_on_disk(bank, tmp_path):
    bank.set_params(cache=str(tmp_path / "c.db"))
    vectors = bank.transform(TEXTS)
    joblib.dump((bank, TEXTS), tmp_path / "bank.joblib")
    out, _ = run_python(OTHER_PROCESS, tmp_path / "bank.joblib")
    n_encoded, n_loaded, total = json.loads(out.splitlines()[-1])
    assert (n_encoded, n_loaded) == (0, 0)
    assert total == pytest.approx(float(vectors.sum()), rel=1e-6)
