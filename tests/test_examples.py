"""Each kind of source task, from labelled rows to predictions."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import choices, labels, make_encoder, ratings, tags
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags

from prefixembed import Prefix, PrefixBank, PrefixEncoder, VectorCache, load_backbone
from prefixembed._embed.batches import pad_batch, plan_batches
from prefixembed._fit.examples import prepare, read_rows
from prefixembed.reading import Reading


def make(folder, objective, **params):
    settings = {"objective": objective, "max_steps": 175, "learning_rate": 0.05}
    return make_encoder(folder, **(settings | params))


CASES = {
    "regression": (ratings, 0.6),
    "multilabel": (labels, 0.8),
    "multiple_choice": (choices, 0.8),
    "token_classification": (tags, 0.8),
}


@pytest.fixture(scope="module")
def fitted(tiny):
    return {name: make(tiny("bert"), name).fit(*data()) for name, (data, _) in CASES.items()}


@pytest.mark.parametrize("objective", CASES)
def test_each_objective_learns_and_generalizes(fitted, objective):
    data, min_score = CASES[objective]
    encoder = fitted[objective]
    assert encoder.score(*data(seed=1)) > min_score
    assert encoder.prefix_.objective == objective
    metric = "r2" if objective == "regression" else "accuracy"
    assert len(encoder.history_[f"valid_{metric}"]) == len(encoder.history_["step"])


@pytest.mark.parametrize("objective", CASES)
def test_each_objective_can_be_saved_and_loaded(fitted, objective, tmp_path):
    data, _ = CASES[objective]
    X, _ = data(12, seed=2)
    encoder = fitted[objective]
    encoder.prefix_.save(tmp_path / "a.safetensors")
    prefix = Prefix.load(tmp_path / "a.safetensors")
    assert prefix == encoder.prefix_
    loaded = PrefixEncoder.from_prefix(prefix, dtype="float32", device="cpu")
    for one, other in zip(loaded.predict(X), encoder.predict(X), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="objective is"):
        PrefixEncoder.from_prefix(prefix, objective="classification")


@pytest.mark.parametrize("objective", CASES)
def test_a_bank_of_each_objective_equals_its_encoder(fitted, objective):
    encoder = fitted[objective]
    bank = PrefixBank({"a": encoder}, dtype="float32", device="cpu", max_length=64)
    np.testing.assert_allclose(
        bank.transform(["a joy", "a bore"]), encoder.transform(["a joy", "a bore"]), atol=1e-6
    )


def test_regression_predicts_on_the_scale_of_y(fitted):
    encoder = fitted["regression"]
    predicted = encoder.predict(["joy gem fine", "bore dull mess"])
    assert predicted.shape == (2,)
    assert predicted[0] > 115 > predicted[1] > 90
    assert is_regressor(encoder) and not is_classifier(encoder)
    assert not hasattr(encoder, "predict_proba") and not hasattr(encoder, "decision_function")
    assert not hasattr(encoder, "classes_")


def test_scores_of_choices_equal_scores_of_their_pairs(fitted):
    encoder = fitted["multiple_choice"]
    rows, _ = choices(8, seed=3)
    rows.append(("what is good", ["gem"]))
    scores = encoder.decision_function(rows)
    for (context, options), row in zip(rows, scores, strict=True):
        vectors = encoder.transform([(context, option) for option in options])
        expected = encoder.prefix_.head.decision_function(vectors)[:, 0]
        np.testing.assert_allclose(row[: len(options)], expected, atol=1e-4)
        assert (row[len(options) :] == -np.inf).all()
    frame = pd.DataFrame(rows, columns=["context", "choices"])
    np.testing.assert_array_equal(encoder.predict(frame), encoder.predict(rows))


def test_order_of_choices_does_not_matter(fitted):
    rows, _ = choices(8, seed=3)

    def picked(rows):
        predicted = fitted["multiple_choice"].predict(rows)
        return [options[k] for (_, options), k in zip(rows, predicted, strict=True)]

    assert picked(rows) == picked([(context, options[::-1]) for context, options in rows])


def test_predictions_of_words_have_the_shape_of_the_sentences(fitted):
    encoder = fitted["token_classification"]
    sentences, _ = tags(10, seed=4)
    sentences.insert(3, [])
    predicted = encoder.predict(sentences)
    assert [len(row) for row in predicted] == [len(s) for s in sentences]
    assert len(predicted[3]) == 0
    proba = encoder.predict_proba(sentences)
    np.testing.assert_allclose(np.concatenate(proba).sum(axis=1), 1)


def naive_word_vectors(backbone, words):
    text = " ".join(words)
    encoding = backbone.tokenizer(64).encode(text)
    with torch.no_grad():
        hidden = backbone.model(torch.tensor([encoding.ids])).last_hidden_state[0].numpy()
    vectors, start = [], 0
    for word in words:
        inside = [
            k
            for k, (begin, end) in enumerate(encoding.offsets)
            if end > begin and start < end <= start + len(word)
        ]
        vectors.append(hidden[inside].mean(axis=0))
        start += len(word) + 1
    return np.array(vectors)


@pytest.mark.parametrize("family", ["bert", "roberta", "minilm"])
def test_vector_of_a_word_is_the_mean_over_its_tokens(tiny, minilm, family):
    folder = minilm if family == "minilm" else tiny(family)
    sentences = [
        ["unbelievably", "good", "films"],
        [],
        ["Zürich", "中文", "\U0001f600x", "!"],
        ["a"],
    ]
    bank = PrefixBank(
        {}, backbone=folder, output="words", max_length=64, dtype="float32", device="cpu"
    )
    backbone = load_backbone(folder, dtype="float32", device="cpu")
    expected = [naive_word_vectors(backbone, words) for words in sentences if words]
    np.testing.assert_allclose(bank.transform(sentences), np.concatenate(expected), atol=1e-5)
    # One sentence at a time, from an iterator, and into an array.
    alone = [bank.transform([words]) for words in sentences]
    np.testing.assert_allclose(np.concatenate(alone), np.concatenate(expected), atol=1e-5)
    np.testing.assert_allclose(bank.transform(iter(sentences)), np.concatenate(alone), atol=1e-5)
    out = np.empty((8, len(expected[0][0])), dtype=np.float32)
    assert bank.transform(sentences, out=out) is out
    np.testing.assert_allclose(out, np.concatenate(expected), atol=1e-5)


def test_word_vectors_are_cached(tiny, encoded):
    bank = PrefixBank(
        {}, backbone=tiny(), output="words", max_length=64, dtype="float32", device="cpu",
        cache=VectorCache(),
    )  # fmt: skip
    sentences = [["a", "b"], ["c"], [], ["a", "b"], ["a b"]]
    vectors = bank.transform(sentences)
    assert vectors.shape == (6, 32)
    np.testing.assert_array_equal(vectors[:2], vectors[3:5])
    n_encoded = len(encoded)
    np.testing.assert_array_equal(bank.transform(sentences[::-1]), vectors[[5, 3, 4, 2, 0, 1]])
    assert len(encoded) == n_encoded
    # The pair ("a", "b") has another key than the sentence ["a", "b"].
    bank.set_params(output="texts").transform([("a", "b")])
    assert len(encoded) > n_encoded


def test_truncated_words_are_zero_and_counted(tiny):
    bank = PrefixBank(
        {}, backbone=tiny(), output="words", max_length=8, dtype="float32", device="cpu"
    )
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than max_length=8 tokens"):
        vectors = bank.transform([["abcd", "efghijkl", "m"], ["a"]])
    assert vectors.shape == (4, 32) and np.isfinite(vectors).all()
    assert (np.abs(vectors).sum(axis=1) > 0).tolist() == [True, True, False, True]


def test_lone_surrogates_in_words_are_replaced(tiny):
    bank = PrefixBank({}, backbone=tiny(), output="words", dtype="float32", device="cpu")
    np.testing.assert_array_equal(
        bank.transform([["a", "\ud800", "\ud83d\ude00b", "c"]]),
        bank.transform([["a", "\ufffd", "\U0001f600b", "c"]]),
    )


def test_objectives_without_one_label_per_row_are_not_classifiers(fitted):
    for objective in ("multiple_choice", "token_classification"):
        assert not is_classifier(fitted[objective])
        # Folds are not stratified.
        data, _ = CASES[objective]
        X, y = data(40)
        if objective == "multiple_choice":
            quick = clone(fitted[objective]).set_params(max_steps=6, early_stopping=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                assert len(cross_val_score(quick, X, y, cv=2, error_score="raise")) == 2
    tags_ = get_tags(fitted["multilabel"])
    assert tags_.classifier_tags.multi_label and not tags_.classifier_tags.multi_class


def test_a_head_can_be_trained_on_word_vectors(minilm):
    sentences, y = tags(30)
    bank = PrefixBank({}, backbone=minilm, output="words")
    head = make_pipeline(bank, LogisticRegression()).fit(sentences, np.concatenate(y))
    test, y_test = tags(30, seed=1)
    assert head.score(test, np.concatenate(y_test)) > 0.95


@pytest.mark.parametrize("objective", CASES)
def test_rows_of_weight_zero_are_ignored(tiny, objective):
    data, _ = CASES[objective]
    X, y = data(16)
    params = {"max_steps": 2, "early_stopping": False}
    half = make(tiny("bert"), objective, **params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if objective == "regression":
            y[8:] = 1e6
        weighted = clone(half).fit(X, y, np.repeat([1.0, 0.0], 8)).prefix_
        assert weighted == half.fit(X[:8], y[:8]).prefix_


def test_useless_labels_and_parameters_are_refused(tiny):
    with pytest.raises(ValueError, match="class_weight is for objective='classification', got"):
        make(tiny(), "regression", class_weight="balanced").fit(*ratings(8))
    with pytest.raises(ValueError, match="nothing to learn"):
        make(tiny(), "multiple_choice").fit([("a", ["b"]), ("c", ["d"])], [0, 0])
    with pytest.raises(ValueError, match="inconsistent numbers"):
        make(tiny(), "multiple_choice").fit([("a", ["b", "c"]), ("c", ["d"])], [0])


@pytest.mark.parametrize(
    ("objective", "X", "message"),
    [
        ("multiple_choice", ["a"], r"X\[0\] must be a context and its choices, got 'a'"),
        ("multiple_choice", [("a", "b")], r"X\[0\]\[1\] must be a sequence of choices, got 'b'"),
        ("multiple_choice", [("a", [])], r"X\[0\]\[1\] must be a sequence of choices"),
        ("multiple_choice", [("a", ["b", 3])], r"X\[0\]\[1\]\[1\] must be a str, got 3"),
        ("multiple_choice", [(None, ["b"])], r"X\[0\]\[0\] must be a str, the context, got None"),
        ("multiple_choice", "ab", "X must be a sequence of rows of a context and its choices"),
        ("token_classification", ["a b"], r"X\[0\] must be a sequence of words, got 'a b'"),
        ("token_classification", [["a"], ["b", None]], r"X\[1\]\[1\] must be a str, got None"),
        ("token_classification", "ab", "X must be a sequence of sentences"),
    ],
)
def test_invalid_rows_are_named(fitted, objective, X, message):
    for call in (fitted[objective].predict, lambda X: fitted[objective].fit(X, [0])):
        with pytest.raises(ValueError, match=message):
            call(X)


def test_sentences_without_words_do_not_affect_training(tiny):
    sentences, y = tags(9)
    for seed in range(4):
        encoder = make(tiny("bert"), "token_classification", max_steps=4, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there are few texts and few steps
            encoder.fit([*sentences, [], []], [*y, [], []])
            alone = clone(encoder).fit(sentences, y)
        assert encoder.prefix_ == alone.prefix_
    assert np.isnan(encoder.score([[]], [[]]))


def test_predictions_of_no_rows_are_empty(fitted):
    for objective in ("regression", "multilabel", "multiple_choice", "token_classification"):
        assert len(fitted[objective].predict([])) == 0
    assert fitted["multiple_choice"].predict_proba([]).shape[0] == 0


def test_a_refit_as_regression_removes_classes(tiny):
    encoder = make(tiny("bert"), "classification", max_steps=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert len(encoder.fit(["a joy", "a bore"] * 8, [0, 1] * 8).classes_) == 2
        encoder.set_params(objective="regression").fit(*ratings(16))
    assert not hasattr(encoder, "classes_")


def test_batches_of_choices_stay_within_the_budget(tiny):
    backbone = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    rows = [("a", ["x" * 55] * 2)] * 3 + [("b", ["y"] * 20)] * 3
    labelled = read_rows("multiple_choice", rows, [0] * 6)
    reading = Reading("mean", 64, pairs="joint")
    data = prepare(labelled, backbone, reading, None, np.random.default_rng(0))
    assert data.n_texts.tolist() == [2, 2, 2, 20, 20, 20]
    for part in plan_batches(data.longest, 250, data.n_texts):
        batch = pad_batch(data.tokens, data.texts(part), backbone.pad_id)
        assert batch.ids.size <= 250 or len(part) == 1


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_word_vectors_in_a_frame_have_their_own_index(tiny, container):
    bank = PrefixBank({}, backbone=tiny(), output="words", dtype="float32", device="cpu")
    sentences = pd.Series([["a", "b"], ["c"]], index=[7, 7])
    frame = bank.set_output(transform=container).transform(sentences)
    assert frame.shape == (3, 32)
    assert list(frame.columns) == list(bank.get_feature_names_out())
    expected = bank.set_output(transform="default").transform(sentences)
    np.testing.assert_array_equal(frame.to_numpy(), expected)
