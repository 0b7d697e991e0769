"""The kind of texts that a head accepts."""

import numpy as np
import pandas as pd
import pytest
from helpers import TASKS, choices, make_encoder, make_multitask, reviews, tags
from sklearn.model_selection import cross_val_predict

from prefixembed import PrefixEncoder
from prefixembed._fit.labels import check_labels
from prefixembed._fit.objectives import OBJECTIVES
from prefixembed._fit.predictions import check_same_kind
from prefixembed.head import Head

pytestmark = pytest.mark.filterwarnings("ignore:the training loss is stuck at chance")

SINGLE = ["a joy", "a bore"]
PAIRS = [("a film", "of joy"), ("a film", "a bore")]
CALLS = ["predict", "predict_proba", "predict_log_proba", "decision_function"]
OF_CLASSES = CALLS[1:]


@pytest.fixture(scope="module")
def of_texts(tiny):
    return make_encoder(tiny()).fit(*reviews(24))


@pytest.fixture(scope="module", params=["joint", "apart"])
def of_pairs(tiny, request):
    texts, classes = reviews(24)
    return make_encoder(tiny(), pairs=request.param).fit([(text, text) for text in texts], classes)


def containers(rows):
    arrays = np.array(rows, dtype=object)
    frame = pd.Series(rows) if arrays.ndim == 1 else pd.DataFrame(rows)
    return [rows, tuple(rows), arrays, frame, iter(rows), (row for row in rows)]


@pytest.mark.parametrize("call", CALLS)
def test_head_fitted_on_texts_refuses_pairs(of_texts, call):
    for X in containers(PAIRS):
        with pytest.raises(ValueError, match=r"was fitted on single texts, got pairs of texts"):
            getattr(of_texts, call)(X)
    with pytest.raises(ValueError, match=r"this PrefixEncoder was fitted on single texts"):
        of_texts.score(PAIRS, ["good", "bad"])
    for X in containers(SINGLE):
        assert len(getattr(of_texts, call)(X)) == 2


@pytest.mark.parametrize("call", CALLS)
def test_head_fitted_on_pairs_refuses_texts(of_pairs, call):
    for X in containers(SINGLE):
        with pytest.raises(ValueError, match=r"was fitted on pairs of texts, got single texts"):
            getattr(of_pairs, call)(X)
    for X in containers(PAIRS):
        assert len(getattr(of_pairs, call)(X)) == 2


def test_no_rows_are_accepted_by_each_head(of_texts, of_pairs):
    for encoder in (of_texts, of_pairs):
        for call in CALLS:
            for X in ([], iter([]), np.empty((0, 2), dtype=object)):
                assert len(getattr(encoder, call)(X)) == 0


def test_vectors_of_the_other_kind_are_not_refused(of_texts, of_pairs):
    assert len(of_texts.transform(PAIRS)) == len(of_pairs.transform(SINGLE)) == 2


def test_choices_are_pairs_and_sentences_in_words_are_not(tiny):
    for objective, data in (("multiple_choice", choices), ("token_classification", tags)):
        encoder = make_encoder(tiny(), objective=objective, max_steps=3).fit(*data(24))
        assert encoder.prefix_.of_pairs == (objective == "multiple_choice")
        assert len(encoder.predict(data(6, seed=1)[0])) == 6


def test_rule_survives_a_file(of_pairs, tmp_path):
    of_pairs.prefix_.save(tmp_path / "a.safetensors")
    prefix = type(of_pairs.prefix_).load(tmp_path / "a.safetensors")
    encoder = PrefixEncoder.from_prefix(prefix, dtype="float32", device="cpu")
    with pytest.raises(ValueError, match="was fitted on pairs of texts"):
        encoder.predict(SINGLE)


def test_prefix_without_a_head_has_no_predictions(tiny, random_prefix):
    encoder = PrefixEncoder.from_prefix(random_prefix(tiny(), head=None), device="cpu")
    with pytest.raises(ValueError, match="has no head"):
        encoder.predict(SINGLE)


def test_kinds_are_compared():
    for texts, of_pairs in ((SINGLE, False), (PAIRS, True), ([], True), ([], False)):
        check_same_kind(texts, of_pairs, "task 'a'")
    with pytest.raises(ValueError, match="task 'a' was fitted on single texts, got pairs of texts"):
        check_same_kind(PAIRS, False, "task 'a'")


@pytest.mark.parametrize("objective", TASKS)
def test_methods_of_classes_are_there_exactly_where_there_are_classes(tiny, objective):
    X, y = TASKS[objective](24)
    single = make_encoder(tiny(), objective=objective, max_steps=3)
    kinds = {"a": objective}
    several = make_multitask(tiny(), objectives=kinds, max_steps=3)
    has_classes = objective != "regression"
    assert [hasattr(single, name) for name in OF_CLASSES] == [has_classes] * 3
    single.fit(X, y)
    several.fit({"a": (X, y)})
    for encoder in (single, several):
        assert [hasattr(encoder, name) for name in OF_CLASSES] == [has_classes] * 3
        if not has_classes:
            continue
        for p, log_p in zip(encoder.predict_proba(X), encoder.predict_log_proba(X), strict=True):
            np.testing.assert_allclose(np.exp(log_p), p, rtol=1e-6)
        assert len(encoder.decision_function(X)) == len(X)
    if has_classes:
        several.heads_["number"] = Head("regression", None, np.ones((1, 32)), np.ones(1))
        several.of_pairs_["number"] = False
        for name in OF_CLASSES:
            with pytest.raises(ValueError, match="a regression has no probabilities"):
                getattr(several, name)(SINGLE, "number")


def test_logarithms_of_probabilities_are_finite_where_they_round_to_zero():
    counts = np.array([1, 1])
    logits = np.array([[0.0, 2000.0], [-2000.0, 0.0]])
    for name in ("classification", "multilabel"):
        objective = OBJECTIVES[name]
        assert (objective.probabilities(logits, counts) == 0).any()
        assert np.isfinite(objective.log_probabilities(logits, counts)).all()
    words = OBJECTIVES["token_classification"].log_probabilities(logits, counts)
    assert np.isfinite(words).all()
    choices = OBJECTIVES["multiple_choice"].log_probabilities(logits[:, :1], np.array([2]))
    assert choices.tolist() == [[0, -2000]]


@pytest.mark.parametrize("method", CALLS)
def test_cross_validated_predictions_of_each_method(tiny, method):
    X, y = reviews(24)
    encoder = make_encoder(tiny(), max_steps=3)
    found = cross_val_predict(encoder, X, y, cv=2, method=method)
    assert len(found) == 24


CONTAINERS = {
    "list": list,
    "object": lambda y: np.array(y, dtype=object),
    "series": pd.Series,
    "pandas": lambda y: pd.Series(y).convert_dtypes(),
    "pyarrow": lambda y: pd.Series(y).convert_dtypes(dtype_backend="pyarrow"),
    "category": lambda y: pd.Series(y, dtype="category"),
    "masked": np.ma.array,
}


@pytest.mark.parametrize("names", [["bad", "good"], [3, 7], [False, True], [1.0, 2.0]])
def test_score_takes_labels_in_each_form_that_fit_takes(tiny, names):
    X, y = reviews(24)
    y = np.array(names)[(y == "good").astype(int)].tolist()
    encoder = make_encoder(tiny(), max_steps=3).fit(X, y)
    expected = np.mean(encoder.predict(X) == y)
    for name, container in CONTAINERS.items():
        labels = container(y)
        assert check_labels(labels)[1].tolist() == names, name
        assert encoder.score(X, labels) == expected, name
        assert encoder.score(X, labels, [1] * 24) == expected, name
    with pytest.raises(ValueError, match=r"y\[2\] is masked"):
        encoder.score(X, np.ma.array(y, mask=[0, 0, 1] + [0] * 21))
    with pytest.raises(ValueError, match=r"sample_weight\[2\] is masked"):
        encoder.score(X, y, np.ma.array(np.ones(24), mask=[0, 0, 1] + [0] * 21))


@pytest.mark.parametrize("objective", sorted(set(TASKS) - {"classification"}))
def test_scores_of_other_objectives_take_frames_and_series(tiny, objective):
    X, y = TASKS[objective](24)
    encoder = make_encoder(tiny(), objective=objective, max_steps=3).fit(X, y)
    expected = encoder.score(X, y)
    forms = [list(y), pd.Series(list(y))]
    if objective == "multilabel":
        forms = [pd.DataFrame(y).astype(dtype) for dtype in ("Int64", "boolean", bool)]
    elif objective != "token_classification":
        forms += [np.array(y, dtype=object), pd.Series(y).convert_dtypes()]
    for form in forms:
        assert encoder.score(X, form) == expected
        assert encoder.score(X, form, np.full(24, 0.5)) == pytest.approx(expected)
