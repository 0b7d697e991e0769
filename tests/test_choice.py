import joblib
import numpy as np
import pandas as pd
import pytest
from helpers import choices
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils._param_validation import InvalidParameterError

from prefixembed import ChoiceRanker, PrefixBank, PrefixEncoder


def bank_of(folder, **params):
    settings = {"backbone": folder, "dtype": "float32", "device": "cpu", "max_length": 64}
    return PrefixBank({}, **(settings | params))


def test_choices_are_ranked_on_the_real_backbone(minilm, tmp_path):
    ranker = ChoiceRanker(bank_of(minilm)).fit(*choices(60))
    rows, right = choices(40, seed=1)
    assert ranker.score(rows, right) > 0.9
    p = ranker.predict_proba(rows)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(p.argmax(axis=1), ranker.predict(rows))
    again = joblib.load(joblib.dump(ranker, tmp_path / "a")[0])
    np.testing.assert_array_equal(again.predict(rows), ranker.predict(rows))


def test_scores_are_those_of_the_head_on_centred_vectors(tiny):
    bank = bank_of(tiny())
    ranker = ChoiceRanker(bank).fit(*choices(30))
    rows, _ = choices(10, seed=1)
    rows.append(("alone", ["one"]))
    scores = ranker.decision_function(rows)
    for (context, some), row in zip(rows, scores, strict=True):
        vectors = bank.transform([(context, choice) for choice in some]).astype(np.float64)
        expected = ranker.head_.decision_function(vectors - vectors.mean(axis=0))
        np.testing.assert_allclose(row[: len(some)], expected, atol=1e-4)
        assert (row[len(some) :] == -np.inf).all()
    assert ranker.predict([]).shape == (0,)
    p, log_p = ranker.predict_proba(rows), ranker.predict_log_proba(rows)
    np.testing.assert_allclose(np.exp(log_p), p, rtol=1e-12)
    assert (log_p[-1] == [0, *[-np.inf] * (log_p.shape[1] - 1)]).all()


@pytest.mark.parametrize(
    "head",
    [
        RidgeClassifier(),
        DecisionTreeClassifier(random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression()),
    ],
)
def test_any_classifier_can_be_the_head(minilm, head):
    ranker = ChoiceRanker(bank_of(minilm), head).fit(*choices(60))
    assert ranker.score(*choices(40, seed=1)) > 0.6
    assert not hasattr(head, "classes_")


def test_parameters_of_encoder_and_head_can_be_searched(tiny, random_prefix, encoded):
    bank = PrefixBank({"a": random_prefix(tiny())}, dtype="float32", device="cpu", max_length=64)
    grid = {"encoder__active": [[], ["a"]], "head__C": [0.1, 1.0]}
    ranker = ChoiceRanker(bank, LogisticRegression())
    search = GridSearchCV(ranker, grid, cv=3, error_score="raise").fit(*choices(30))
    assert len(search.cv_results_["params"]) == 4
    assert search.best_score_ > 0.5


def test_a_frozen_encoder_is_not_fitted_again(tiny):
    encoder = PrefixEncoder(
        tiny("bert"), objective="multiple_choice", max_steps=140, learning_rate=0.05, batch_size=8,
        max_length=64, random_state=0, dtype="float32", device="cpu",
    ).fit(*choices())  # fmt: skip
    ranker = ChoiceRanker(FrozenEstimator(encoder)).fit(*choices(30))
    assert ranker.encoder_.estimator is encoder
    assert ranker.score(*choices(30, seed=1)) > 0.7


def test_invalid_rows_raise(tiny):
    ranker = ChoiceRanker(bank_of(tiny()))
    with pytest.raises(NotFittedError):
        clone(ranker).predict([("a", ["b"])])
    with pytest.raises(ValueError, match=r"y\[0\] must be the position of one of 2 choices, got 2"):
        ranker.fit([("a", ["b", "c"])], [2])
    with pytest.raises(ValueError, match="nothing to rank"):
        ranker.fit([("a", ["b"])], [0])
    with pytest.raises(ValueError, match="inconsistent numbers"):
        ranker.fit([("a", ["b", "c"])], [0, 1])
    with pytest.raises(ValueError, match=r"y\[1\] is masked"):
        ranker.fit([("a", ["b", "c"])] * 2, np.ma.array([0, 1], mask=[0, 1]))
    for head in (LinearRegression(), LogisticRegression):
        with pytest.raises(InvalidParameterError, match="'head' parameter"):
            ranker.set_params(head=head).fit([("a", ["b", "c"])], [0])
    with pytest.raises(ValueError, match="'encoder' parameter"):
        ChoiceRanker("bank").fit([("a", ["b", "c"])], [0])


def test_score_takes_positions_in_each_form(tiny):
    rows, right = choices(20)
    ranker = ChoiceRanker(bank_of(tiny())).fit(rows, np.array(right, dtype=object))
    expected = ranker.score(rows, right)
    for y in (list(right), pd.Series(right, dtype="Int64"), np.array(right, dtype=object)):
        assert ranker.score(rows, y) == expected
        assert ranker.score(rows, y, np.full(20, 2)) == pytest.approx(expected)
