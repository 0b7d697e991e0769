"""Estimators in pipelines, searches and other tools of scikit-learn."""

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from helpers import make_encoder, run_python
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed import PrefixBank, PrefixEncoder, prefix_subsets

CPU = {"dtype": "float32", "device": "cpu"}


@pytest.fixture
def bank(tiny, random_prefix):
    prefixes = {name: random_prefix(tiny(), seed=k, scale=0.5) for k, name in enumerate("abc")}
    return PrefixBank(prefixes, **CPU)


@pytest.fixture
def target():
    rng = np.random.default_rng(0)
    labels = rng.choice(["good", "bad"], 40)
    words = {"good": ["joy", "gem"], "bad": ["bore", "mess"]}
    texts = [f"{rng.choice(words[label])} {rng.integers(99)}" for label in labels]
    return pd.Series(texts, index=rng.permutation(40)), labels


def pipeline(bank):
    return Pipeline(
        [("enc", bank), ("scale", StandardScaler()), ("clf", LogisticRegression(max_iter=500))]
    )


def test_a_pipeline_fits_and_predicts(bank, target):
    X, y = target
    pipe = pipeline(bank).fit(X, y)
    assert pipe.score(X, y) > 0.9
    assert list(pipe.predict_proba(list(X)).shape) == [40, 2]
    names = pipe[:-1].get_feature_names_out()
    assert list(names[:2]) == ["prefixbank0", "prefixbank1"]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_grid_search_chooses_among_subsets(bank, target, n_jobs):
    X, y = target
    subsets = prefix_subsets(bank, max_size=2)
    grid = {"enc__active": subsets, "enc__combine": ["concat", "mean"], "clf__C": [0.1, 1.0]}
    search = GridSearchCV(pipeline(bank), grid, cv=2, n_jobs=n_jobs, error_score="raise")
    search.fit(X, y)
    assert len(search.cv_results_["params"]) == 7 * 2 * 2
    chosen = search.best_estimator_["enc"]
    assert chosen.active in subsets
    assert [chosen[name] for name in chosen] == [bank[name] for name in bank]
    # The seven subsets are seven different representations.
    by_subset = pd.DataFrame(search.cv_results_)["mean_test_score"].groupby(
        pd.Series([str(p["enc__active"]) for p in search.cv_results_["params"]])
    )
    assert by_subset.mean().nunique() > 1


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_cross_validation_does_not_depend_on_n_jobs(bank, target, n_jobs):
    X, y = target
    expected = cross_val_score(pipeline(bank), X, y, cv=3)
    scores = cross_val_score(pipeline(bank), X, y, cv=3, n_jobs=n_jobs)
    np.testing.assert_array_equal(scores, expected)


def test_grid_search_tunes_an_encoder(tiny, target):
    X, y = target
    encoder = make_encoder(tiny(), max_length=32, max_steps=30, early_stopping=False)
    grid = {"prefix_length": [1, 3], "learning_rate": [0.03]}
    search = GridSearchCV(encoder, grid, cv=2, n_jobs=2, error_score="raise").fit(X, y)
    assert search.best_estimator_.prefix_.length == search.best_params_["prefix_length"]
    assert search.predict(X).shape == (40,)
    assert search.transform(X).shape == (40, 32)


def test_banks_work_in_a_column_transformer_and_a_feature_union(bank, target):
    X, _ = target
    frame = pd.DataFrame({"q": X, "a": X.str.upper(), "n": np.arange(40.0)})
    columns = ColumnTransformer(
        [
            ("text", bank, "q"),
            ("frame", sklearn.clone(bank), ["q"]),
            ("pair", sklearn.clone(bank), ["q", "a"]),
            ("rest", "passthrough", ["n"]),
        ]
    )
    vectors = columns.fit_transform(frame)
    assert vectors.shape == (40, 3 * 32 + 1)
    np.testing.assert_allclose(vectors[:, :32], bank.transform(X), atol=1e-6)
    np.testing.assert_array_equal(vectors[:, :32], vectors[:, 32:64])
    pairs = list(zip(frame["q"], frame["a"], strict=True))
    np.testing.assert_allclose(vectors[:, 64:96], bank.transform(pairs), atol=1e-5)
    assert columns.get_feature_names_out()[32] == "frame__prefixbank0"

    union = FeatureUnion([("all", bank), ("bare", sklearn.clone(bank).set_params(active=[]))])
    assert union.fit_transform(X).shape == (40, 64)
    as_frame = union.set_output(transform="pandas").fit_transform(X)
    assert list(as_frame.index) == list(X.index)
    assert as_frame.columns[32] == "bare__prefixbank0"


def test_metadata_routing_passes_sample_weight(tiny, target):
    X, y = target
    encoder = make_encoder(tiny(), max_length=32, max_steps=30, early_stopping=False)
    keep_first = np.r_[np.ones(30), np.zeros(10)]
    with sklearn.config_context(enable_metadata_routing=True):
        routed = Pipeline(
            [
                ("enc", sklearn.clone(encoder).set_fit_request(sample_weight=True)),
                ("clf", LogisticRegression().set_fit_request(sample_weight=True)),
            ]
        ).fit(X, y, sample_weight=keep_first)
    assert routed["enc"].prefix_ == encoder.fit(X[:30], y[:30]).prefix_


def test_a_frozen_encoder_stays_fitted(tiny, random_prefix, target):
    X, y = target
    encoder = PrefixEncoder.from_prefix(random_prefix(tiny()), **CPU)
    pipe = Pipeline([("enc", FrozenEstimator(encoder)), ("clf", LogisticRegression())])
    scores = cross_val_score(pipe, X, y, cv=2, error_score="raise")
    assert np.isfinite(scores).all()
    assert pipe.fit(X, y)["enc"].estimator.prefix_ == encoder.prefix_


def test_tags_describe_the_estimators(bank, tiny):
    for estimator, requires_fit in ((bank, False), (PrefixEncoder(tiny()), True)):
        tags = sklearn.utils.get_tags(estimator)
        assert tags.input_tags.string and not tags.input_tags.two_d_array
        assert tags.requires_fit == requires_fit
    assert sklearn.utils.get_tags(PrefixEncoder(tiny())).estimator_type == "classifier"
    assert sklearn.base.is_classifier(PrefixEncoder(tiny()))
    assert not sklearn.base.is_classifier(bank)


def test_a_saved_pipeline_predicts_in_another_process(bank, target, tmp_path):
    X, y = target
    pipe = pipeline(bank).fit(X, y)
    joblib.dump((pipe, list(X)), tmp_path / "model.joblib")
    code = (
        "import joblib, sys; pipe, X = joblib.load(sys.argv[1]);"
        "from prefixembed import release_backbones as loaded; print(loaded());"
        "print(*pipe.predict(X))"
    )
    n_loaded, predicted = run_python(code, tmp_path / "model.joblib")[0].splitlines()
    assert n_loaded == "0"
    assert predicted.split() == list(pipe.predict(X))


def test_html_representation_names_the_bank(bank):
    assert "PrefixBank" in bank._repr_html_()
    assert "PrefixBank" in repr(pipeline(bank))
