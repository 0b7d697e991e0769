import itertools
import pickle
import warnings
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone, is_classifier
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline

from prefixembed import (
    ChoiceRanker,
    Prefix,
    PrefixBank,
    PrefixSelector,
    VectorCache,
    prefix_subsets,
)
from prefixembed.reading import Reading


def bank_of(names):
    keys_values = np.zeros((1, 2, 1, 1, 1), dtype=np.float32)
    prefix = Prefix(keys_values, "tiny", "0" * 64, n_features=1, reading=Reading("mean", 64))
    return PrefixBank(dict.fromkeys(names, prefix))


@given(n=st.integers(0, 6), data=st.data())
def test_each_subset_is_listed_once_and_smaller_ones_first(n, data):
    names = [f"p{k}" for k in range(n)]
    bank = bank_of(names)
    low = data.draw(st.integers(0, n))
    high = data.draw(st.integers(low, n))
    subsets = prefix_subsets(bank, low, high)
    expected = {
        tuple(name for k, name in enumerate(names) if bits >> k & 1) for bits in range(2**n)
    }
    assert set(subsets) == {subset for subset in expected if low <= len(subset) <= high}
    assert len(subsets) == len(set(subsets))
    assert [len(subset) for subset in subsets] == sorted(len(subset) for subset in subsets)
    assert len(prefix_subsets(bank)) == 2**n


@pytest.mark.parametrize("sizes", [(-1, None), (2, 1), (0, 3), (3, None)])
def test_impossible_sizes_raise(sizes):
    with pytest.raises(ValueError, match="min_size"):
        prefix_subsets(bank_of("ab"), *sizes)


def test_too_many_subsets_raise_and_point_to_prefix_selector():
    bank = bank_of([f"p{k}" for k in range(13)])
    with pytest.raises(ValueError, match=r"13 prefixes have 8192 selections .*PrefixSelector"):
        prefix_subsets(bank)
    assert len(prefix_subsets(bank, max_size=2)) == 1 + 13 + 78
    assert len(prefix_subsets(bank, min_size=12)) == 14


# A table gives the score of each selection, so that the steps of the search are known.
NAMES = "abcd"
TEXTS, LABELS = ["a", "b"] * 4, [0, 1] * 4


class Scores:
    """Scorer that looks the active prefixes of a pipeline's bank up in a table."""

    def __init__(self, table, settings=None):
        self.table, self.settings = table, settings or {}
        self.asked = []

    def __call__(self, pipe, X, y):
        bank = pipe[0]
        self.asked.append(tuple(bank.active))
        return self.table[tuple(bank.active)] + self.settings.get((bank.combine, bank.weights), 0)


@pytest.fixture
def pipe(tiny, random_prefix):
    prefixes = {name: random_prefix(tiny(), seed=k) for k, name in enumerate(NAMES)}
    return make_pipeline(
        PrefixBank(prefixes, dtype="float32", device="cpu", cache=VectorCache()), DummyClassifier()
    )


def random_table(seed, levels=50):
    rng = np.random.default_rng(seed)
    subsets = [s for size in range(5) for s in itertools.combinations(NAMES, size)]
    return {subset: float(rng.integers(levels)) for subset in subsets}


def walk(table, forward, n, tol):
    """Search step by step, as simply as possible."""
    current = () if forward else tuple(NAMES)
    while len(current) != (n if n is not None else (4 if forward else 0)):
        near = [
            tuple(m for m in NAMES if (m in current) != (m == name))
            for name in NAMES
            if (name in current) != forward
        ]
        best = max(near, key=table.get)
        gain = table[best] - table[current]
        if n is None and not (gain > tol if forward else gain >= -tol):
            break
        current = best
    return current


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    ("n", "tol"), [(None, 0.0), (None, 5.0), (None, -3.0), (0, 0), (2, 0), (4, 0)]
)
@pytest.mark.parametrize("seed", range(3))
def test_search_equals_a_naive_one(pipe, direction, n, tol, seed):
    scores = Scores(random_table(seed))
    selector = PrefixSelector(
        pipe, direction=direction, n_prefixes=n, tol=tol, scoring=scores, cv=2
    ).fit(TEXTS, LABELS)
    expected = walk(scores.table, direction == "forward", n, tol)
    assert selector.active_ == expected == selector.best_estimator_[0].active
    assert selector.best_params_ == {"prefixbank__active": expected}
    assert selector.best_score_ == scores.table[expected]
    # Each selection is scored once in each of the two folds.
    assert set(Counter(scores.asked).values()) == {2}


def test_floating_search_finds_what_greedy_search_does_not(pipe):
    # The best single prefix, a, misleads: b and c together are better than any pair with a.
    table = dict.fromkeys(random_table(0), 0.0)
    table |= {("a",): 5, ("b",): 1, ("c",): 1, ("a", "b"): 6, ("a", "c"): 5.5, ("b", "c"): 9}
    table |= {("a", "b", "c"): 7, ("a", "b", "d"): 1}
    greedy, floating = (
        PrefixSelector(pipe, floating=f, n_prefixes=3, scoring=Scores(table), cv=2)
        for f in (False, True)
    )
    greedy.fit(TEXTS, LABELS)
    floating.fit(TEXTS, LABELS)
    assert greedy.active_ == floating.active_ == ("a", "b", "c")
    seen = set(pd.DataFrame(floating.cv_results_)["param_prefixbank__active"])
    assert ("b", "c") in seen - set(greedy.cv_results_["param_prefixbank__active"])
    floating.set_params(n_prefixes=None).fit(TEXTS, LABELS)
    assert floating.active_ == ("b", "c")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_floating_search_ends_and_is_not_worse(pipe, direction, seed):
    table = random_table(seed, levels=6)
    plain, floating = (
        PrefixSelector(pipe, direction=direction, floating=f, scoring=Scores(table), cv=2)
        .fit(TEXTS, LABELS)
        .best_score_
        for f in (False, True)
    )
    assert floating >= plain


def test_combine_and_weights_are_tried_with_each_selection(pipe):
    table = dict.fromkeys(random_table(0), 0.0) | {("b",): 2, ("b", "c"): 3}
    settings = {("mean", 0.5): 0.7, ("mean", None): 0.5}
    selector = PrefixSelector(
        pipe, combine=["concat", "mean"], weights=[None, 0.5], scoring=Scores(table, settings), cv=2
    ).fit(TEXTS, LABELS)
    assert selector.active_ == ("b", "c")
    bank = selector.best_estimator_[0]
    assert (bank.combine, bank.weights, bank.active) == ("mean", 0.5, ("b", "c"))
    frame = pd.DataFrame(selector.cv_results_)
    assert len(frame) == 4 * (1 + 4 + 3 + 2)
    assert list(frame["step"].value_counts().sort_index()) == [4, 16, 12, 8]
    assert selector.best_score_ == pytest.approx(3.7)


def test_selector_behaves_like_a_search_of_scikit_learn(pipe, encoded):
    pipe.set_params(dummyclassifier=LogisticRegression())
    selector = PrefixSelector(pipe, cv=2, n_prefixes=2)
    assert clone(selector).get_params()["n_prefixes"] == 2
    selector.fit(TEXTS, LABELS)
    assert selector.score(TEXTS, LABELS) == 1.0
    assert selector.predict_proba(TEXTS).shape == (8, 2)
    assert list(selector.classes_) == [0, 1] and is_classifier(selector)
    n_subsets = len(set(selector.cv_results_["param_prefixbank__active"]))
    # Two different texts are encoded once per selection.
    assert len(encoded) == 2 * n_subsets == 2 * (1 + 4 + 3)
    scores = cross_val_score(selector, TEXTS, LABELS, cv=2)
    assert len(encoded) <= 2 * (1 + 4 + 6) and len(scores) == 2
    again = pickle.loads(pickle.dumps(selector))
    np.testing.assert_array_equal(again.predict(TEXTS), selector.predict(TEXTS))


def test_workers_select_the_same_prefixes(tiny, random_prefix, tmp_path):
    prefixes = {name: random_prefix(tiny(), seed=k) for k, name in enumerate("ab")}
    bank = PrefixBank(prefixes, dtype="float32", device="cpu", cache=tmp_path / "vectors.db")
    selectors = [
        PrefixSelector(make_pipeline(bank, LogisticRegression()), cv=2, n_jobs=n).fit(TEXTS, LABELS)
        for n in (None, 2)
    ]
    assert selectors[0].active_ == selectors[1].active_


def test_prefixes_of_a_choice_ranker_can_be_selected(tiny, random_prefix):
    bank = PrefixBank({"a": random_prefix(tiny())}, dtype="float32", device="cpu", cache=None)
    rows = [("a", ["b", "c"]), ("d", ["e", "f", "g"])] * 4
    selector = PrefixSelector(ChoiceRanker(bank), direction="backward", cv=2).fit(rows, [0, 1] * 4)
    assert selector.best_params_["encoder__active"] == selector.active_


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_prefixes": 5}, "n_prefixes must be at most 4, .* got 5"),
        ({"estimator": LogisticRegression()}, "exactly one PrefixBank .* LogisticRegression has 0"),
        ({"combine": []}, "combine.*is empty|non-empty"),
        ({"scoring": lambda e, X, y: {"a": 1, "b": 2}}, "scoring must give a single score"),
        ({"direction": "sideways"}, "'direction' parameter of PrefixSelector"),
    ],
)
def test_invalid_parameters_raise(pipe, params, message):
    with pytest.raises(ValueError, match=message):
        PrefixSelector(pipe, cv=2).set_params(**params).fit(TEXTS, LABELS)


def test_selections_whose_fit_fails_are_not_selected(pipe):
    def scoring(pipe, X, y):
        return np.nan if "a" in pipe[0].active else len(pipe[0].active)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        selector = PrefixSelector(pipe, scoring=scoring, cv=2).fit(TEXTS, LABELS)
    assert selector.active_ == ("b", "c", "d")


def test_folds_that_change_between_steps_raise(pipe):
    selector = PrefixSelector(pipe, cv=KFold(2, shuffle=True))
    with pytest.raises(ValueError, match="cv must give the same folds each time"):
        selector.fit(TEXTS, LABELS)
    selector.set_params(cv=KFold(2, shuffle=True, random_state=0)).fit(TEXTS, LABELS)


def test_search_goes_on_if_the_fit_of_the_start_fails(pipe):
    table = dict.fromkeys(random_table(0), 0.0) | {(): np.nan, ("a",): 0.6, ("a", "b"): 0.9}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        selector = PrefixSelector(pipe, scoring=Scores(table), cv=2).fit(TEXTS, LABELS)
    assert selector.active_ == ("a", "b")


@pytest.mark.parametrize("seed", range(4))
def test_a_prefix_that_does_not_raise_the_score_is_not_added(pipe, seed):
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.standard_normal(2))
    table = {s: high if "a" in s else low for s in random_table(0)}
    assert PrefixSelector(pipe, scoring=Scores(table), cv=2).fit(TEXTS, LABELS).active_ == ("a",)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("seed", range(8))
def test_floating_search_returns_the_best_of_its_size_that_it_tried(pipe, direction, n, seed):
    scores = Scores(random_table(seed, levels=1000))
    selector = PrefixSelector(
        pipe, direction=direction, floating=True, n_prefixes=n, scoring=scores, cv=2
    ).fit(TEXTS, LABELS)
    of_size = [scores.table[subset] for subset in set(scores.asked) if len(subset) == n]
    assert selector.best_score_ == max(of_size)
