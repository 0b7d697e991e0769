"""The kind of texts that a head accepts."""

import numpy as np
import pandas as pd
import pytest
from helpers import choices, make_encoder, reviews, tags

from prefixembed import PrefixEncoder
from prefixembed._fit.predictions import check_same_kind

pytestmark = pytest.mark.filterwarnings("ignore:the training loss is stuck at chance")

SINGLE = ["a joy", "a bore"]
PAIRS = [("a film", "of joy"), ("a film", "a bore")]
CALLS = ["predict", "predict_proba", "decision_function"]


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
