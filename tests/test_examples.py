"""Every kind of source task, from labelled rows to predictions."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags

from prefixembed import Prefix, PrefixBank, PrefixEncoder, VectorCache, load_backbone
from prefixembed._embed.batching import pad_batch, plan_batches
from prefixembed._fit.examples import prepare, read_rows

GOOD, BAD = ["joy", "gem", "fine"], ["bore", "dull", "mess"]


def make(folder, objective, **params):
    settings = {
        "objective": objective,
        "max_epochs": 25,
        "batch_size": 8,
        "learning_rate": 0.05,
        "max_length": 64,
        "random_state": 0,
        "dtype": "float32",
        "device": "cpu",
    }
    return PrefixEncoder(folder, **(settings | params))


def ratings(n=60, seed=0):
    # The number is how many good words there are.
    rng = np.random.default_rng(seed)
    n_good = rng.integers(0, 4, size=n)
    texts = [" ".join([*rng.choice(GOOD, k), *rng.choice(BAD, 3 - k)]) for k in n_good]
    return texts, 10.0 * n_good + 100


def labels(n=60, seed=0):
    rng = np.random.default_rng(seed)
    has = rng.integers(2, size=(n, 2))
    texts = [f"{GOOD[0] * a} {BAD[0] * b} {rng.integers(9)}" for a, b in has]
    return texts, has


def choices(n=60, seed=0):
    rng = np.random.default_rng(seed)
    rows, right = [], rng.integers(2, size=n)
    for k in right:
        some = list(rng.choice(BAD, 2 + rng.integers(2)))
        some[k] = str(rng.choice(GOOD))
        rows.append(("what is good", some))
    return rows, right


def tags(n=60, seed=0):
    rng = np.random.default_rng(seed)
    sentences = [list(rng.choice(GOOD + BAD, rng.integers(1, 5))) for _ in range(n)]
    return sentences, [["good" if word in GOOD else "bad" for word in s] for s in sentences]


CASES = {
    "regression": (ratings, 0.6),
    "multilabel": (labels, 0.8),
    "multiple_choice": (choices, 0.8),
    "token_classification": (tags, 0.8),
}


@pytest.fixture(scope="module")
def fitted(tiny):
    found = {}
    for objective, (data, _) in CASES.items():
        found[objective] = make(tiny("bert"), objective).fit(*data())
    return found


@pytest.mark.parametrize("objective", CASES)
def test_each_kind_learns_and_generalises(fitted, objective):
    data, enough = CASES[objective]
    encoder = fitted[objective]
    assert encoder.score(*data(seed=1)) > enough
    assert encoder.prefix_.objective == objective
    metric = "r2" if objective == "regression" else "accuracy"
    assert len(encoder.history_[f"valid_{metric}"]) == len(encoder.history_["epoch"])


@pytest.mark.parametrize("objective", CASES)
def test_each_kind_survives_a_file(fitted, objective, tmp_path):
    data, _ = CASES[objective]
    X, _ = data(12, seed=2)
    encoder = fitted[objective]
    encoder.prefix_.save(tmp_path / "a.safetensors")
    prefix = Prefix.load(tmp_path / "a.safetensors")
    assert prefix == encoder.prefix_
    again = PrefixEncoder.from_prefix(prefix, dtype="float32", device="cpu")
    for one, other in zip(again.predict(X), encoder.predict(X), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="objective is"):
        PrefixEncoder.from_prefix(prefix, objective="classification")


@pytest.mark.parametrize("objective", CASES)
def test_vectors_of_each_kind_serve_a_bank(fitted, objective):
    encoder = fitted[objective]
    bank = PrefixBank({"a": encoder}, dtype="float32", device="cpu", max_length=64)
    np.testing.assert_allclose(
        bank.transform(["a joy", "a bore"]), encoder.transform(["a joy", "a bore"]), atol=1e-6
    )


def test_a_regression_gives_numbers_as_y_had_them(fitted):
    encoder = fitted["regression"]
    predicted = encoder.predict(["joy gem fine", "bore dull mess"])
    assert predicted.shape == (2,)
    assert predicted[0] > 115 > predicted[1] > 90
    assert is_regressor(encoder) and not is_classifier(encoder)
    assert not hasattr(encoder, "predict_proba") and not hasattr(encoder, "decision_function")
    assert not hasattr(encoder, "classes_")


def test_scores_of_choices_are_those_of_their_pairs(fitted):
    encoder = fitted["multiple_choice"]
    rows, _ = choices(8, seed=3)
    rows.append(("what is good", ["gem"]))
    scores = encoder.decision_function(rows)
    for (context, some), row in zip(rows, scores, strict=True):
        vectors = encoder.transform([(context, choice) for choice in some])
        expected = encoder.prefix_.decision_function(vectors)[:, 0]
        np.testing.assert_allclose(row[: len(some)], expected, atol=1e-4)
        assert (row[len(some) :] == -np.inf).all()
    frame = pd.DataFrame(rows, columns=["context", "choices"])
    np.testing.assert_array_equal(encoder.predict(frame), encoder.predict(rows))


def test_order_of_choices_is_of_no_matter(fitted):
    encoder = fitted["multiple_choice"]
    rows, _ = choices(8, seed=3)
    turned = [(context, some[::-1]) for context, some in rows]
    picked = [some[k] for (_, some), k in zip(rows, encoder.predict(rows), strict=True)]
    again = [some[k] for (_, some), k in zip(turned, encoder.predict(turned), strict=True)]
    assert picked == again


def test_words_are_read_in_their_sentence(fitted, tiny):
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
def test_a_words_vector_is_the_mean_over_its_tokens(tiny, minilm, family):
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
    # One at a time, as an iterator, into an array, in eight bits.
    alone = [bank.transform([words]) for words in sentences]
    np.testing.assert_allclose(np.concatenate(alone), np.concatenate(expected), atol=1e-5)
    np.testing.assert_allclose(bank.transform(iter(sentences)), np.concatenate(alone), atol=1e-5)
    out = np.empty((8, len(expected[0][0])), dtype=np.float32)
    assert bank.transform(sentences, out=out) is out
    np.testing.assert_allclose(out, np.concatenate(expected), atol=1e-5)


def test_word_vectors_are_found_again(tiny, encoded):
    cache = VectorCache()
    bank = PrefixBank(
        {},
        backbone=tiny(),
        output="words",
        max_length=64,
        dtype="float32",
        device="cpu",
        cache=cache,
    )
    sentences = [["a", "b"], ["c"], [], ["a", "b"], ["a b"]]
    vectors = bank.transform(sentences)
    assert vectors.shape == (6, 32)
    np.testing.assert_array_equal(vectors[:2], vectors[3:5])
    n_encoded = len(encoded)
    np.testing.assert_array_equal(bank.transform(sentences[::-1]), vectors[[5, 3, 4, 2, 0, 1]])
    assert len(encoded) == n_encoded
    # The pair ("a", "b") and the text "a b" are no sentences in words.
    bank.set_params(output="texts").transform([("a", "b")])
    assert len(encoded) > n_encoded


def test_words_that_are_cut_are_counted_and_zero(tiny):
    bank = PrefixBank(
        {}, backbone=tiny(), output="words", max_length=8, dtype="float32", device="cpu"
    )
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than max_length=8 tokens"):
        vectors = bank.transform([["abcd", "efghijkl", "m"], ["a"]])
    assert vectors.shape == (4, 32) and np.isfinite(vectors).all()
    assert (np.abs(vectors).sum(axis=1) > 0).tolist() == [True, True, False, True]


def test_lone_surrogates_in_words(tiny):
    bank = PrefixBank({}, backbone=tiny(), output="words", dtype="float32", device="cpu")
    np.testing.assert_array_equal(
        bank.transform([["a", "\ud800", "\ud83d\ude00b", "c"]]),
        bank.transform([["a", "\ufffd", "\U0001f600b", "c"]]),
    )


def test_kinds_without_one_label_a_row_are_no_classifiers(fitted):
    for objective in ("multiple_choice", "token_classification"):
        assert not is_classifier(fitted[objective])
        # Folds are plain: there is nothing to stratify by.
        data, _ = CASES[objective]
        X, y = data(40)
        if objective == "multiple_choice":
            quick = clone(fitted[objective]).set_params(max_epochs=2, early_stopping=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                assert len(cross_val_score(quick, X, y, cv=2, error_score="raise")) == 2
    tags_ = get_tags(fitted["multilabel"])
    assert tags_.classifier_tags.multi_label and not tags_.classifier_tags.multi_class


def test_a_target_of_words_has_heads_too(minilm):
    sentences, y = tags(30)
    bank = PrefixBank({}, backbone=minilm, output="words")
    head = make_pipeline(bank, LogisticRegression()).fit(sentences, np.concatenate(y))
    test, y_test = tags(30, seed=1)
    assert head.score(test, np.concatenate(y_test)) > 0.95


@pytest.mark.parametrize("objective", CASES)
def test_rows_of_weight_zero_are_left_out(tiny, objective):
    data, _ = CASES[objective]
    X, y = data(16)
    params = {"max_epochs": 2, "early_stopping": False}
    half = make(tiny("bert"), objective, **params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if objective == "regression":
            y[8:] = 1e6
        left_out = clone(half).fit(X, y, np.repeat([1.0, 0.0], 8)).prefix_
        assert left_out == half.fit(X[:8], y[:8]).prefix_


def test_class_weight_is_for_classes(tiny):
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
def test_what_is_no_row_is_named(fitted, objective, X, message):
    for call in (fitted[objective].predict, lambda X: fitted[objective].fit(X, [0])):
        with pytest.raises(ValueError, match=message):
            call(X)


def test_sentences_of_no_words_are_neither_learned_nor_validated_on(tiny):
    sentences, y = tags(9)
    for seed in range(4):
        encoder = make(tiny("bert"), "token_classification", max_epochs=2, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few texts, few epochs
            encoder.fit([*sentences, [], []], [*y, [], []])
            alone = clone(encoder).fit(sentences, y)
        assert encoder.prefix_ == alone.prefix_
    assert np.isnan(encoder.score([[]], [[]]))


def test_no_rows_give_no_predictions(fitted):
    for objective in ("regression", "multilabel", "multiple_choice", "token_classification"):
        assert len(fitted[objective].predict([])) == 0
    assert fitted["multiple_choice"].predict_proba([]).shape[0] == 0


def test_what_was_fitted_as_a_classifier_forgets_its_classes(tiny):
    encoder = make(tiny("bert"), "classification", max_epochs=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert len(encoder.fit(["a joy", "a bore"] * 8, [0, 1] * 8).classes_) == 2
        encoder.set_params(objective="regression").fit(*ratings(16))
    assert not hasattr(encoder, "classes_")


def test_batches_of_ragged_choices_stay_within_the_budget(tiny):
    backbone = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    rows = [("a", ["x" * 55] * 2)] * 3 + [("b", ["y"] * 20)] * 3
    data = prepare(
        read_rows("multiple_choice", rows, [0] * 6), backbone.tokenizer(64), None,
        np.random.default_rng(0),
    )  # fmt: skip
    assert data.n_texts.tolist() == [2, 2, 2, 20, 20, 20]
    for part in plan_batches(data.longest, 250, data.n_texts):
        batch = pad_batch(data.tokens, data.texts(part), backbone.pad_id)
        assert batch.ids.size <= 250 or len(part) == 1


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_words_in_a_frame_have_rows_of_their_own(tiny, container):
    bank = PrefixBank({}, backbone=tiny(), output="words", dtype="float32", device="cpu")
    sentences = pd.Series([["a", "b"], ["c"]], index=[7, 7])
    frame = bank.set_output(transform=container).transform(sentences)
    assert frame.shape == (3, 32)
    assert list(frame.columns) == list(bank.get_feature_names_out())
    expected = bank.set_output(transform="default").transform(sentences)
    np.testing.assert_array_equal(frame.to_numpy(), expected)
