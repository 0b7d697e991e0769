"""Tokenized examples, and readings that are refused before training."""

import re
import warnings

import joblib
import numpy as np
import pytest
from helpers import choices, labels, make_encoder, ratings, reviews, tags
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixembed import load_backbone
from prefixembed._fit.examples import prepare, read_rows
from prefixembed.reading import Reading

PAIRS = [("a film", "of joy"), ("a film", "a bore")] * 4
SENTENCES = [["a", "joy"], ["a", "bore"]] * 4
WORD_LABELS = [["x", "y"], ["x", "z"]] * 4


def prepare_rows(tiny, reading, objective, X, y, fraction=None):
    backbone = load_backbone(tiny(), dtype="float32", device="cpu")
    rows = read_rows(objective, X, y)
    return prepare(rows, backbone, reading, fraction, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("objective", "data", "n_units"),
    [
        ("classification", reviews, 1),
        ("regression", ratings, 1),
        ("multilabel", labels, 1),
        ("multiple_choice", choices, 2),
        ("token_classification", tags, 1),
    ],
)
def test_each_row_is_trained_or_validated_on_with_all_its_texts(tiny, objective, data, n_units):
    X, y = data(40)
    examples = prepare_rows(tiny, Reading("mean", 64), objective, X, y, fraction=0.2)
    rows = np.concatenate([examples.train, examples.valid])
    np.testing.assert_array_equal(np.sort(rows), np.arange(40))
    assert 6 <= len(examples.valid) <= 10
    assert len(examples.texts(rows)) == len(examples.tokens.ids) == examples.n_texts.sum()
    assert (examples.counts >= n_units).all()
    for row in (0, 17, 39):
        lengths = examples.tokens.lengths[examples.texts(np.array([row]))]
        assert examples.longest[row] == lengths.max()
    assert examples.objective.name == objective


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"a": 9, "b": 5}, None),
        ({"a": 9, "b": 4}, "1 of 2 classes have fewer than 5 texts and are not validated: 'b'$"),
        ({7: 9, 5: 4, 3: 2}, r"2 of 3 classes have .* not validated: 3, 5$"),
        ({"a": 1, "b": 4, "c": 3, "d": 2, "e": 2, "f": 20},
         r"5 of 6 classes have .* not validated: 'a', 'd', 'e' and others$"),
        ({"a": 4, "b": 4}, "8 texts are too few to set validation_fraction=0.2 of each class"),
    ],
)  # fmt: skip
def test_classes_that_are_not_validated_are_named(tiny, sizes, says):
    y = [label for label, n in sizes.items() for _ in range(n)]
    texts = [f"text {k}" for k in range(len(y))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        examples = prepare_rows(tiny, Reading("mean", 64), "classification", texts, y, fraction=0.2)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == (says is not None)
    assert all(re.search(says, message) for message in messages), messages
    assert set(np.array(y)[examples.train]) == set(y)
    assert len(examples.valid) == sum(-(-n // 5) for n in sizes.values() if n >= 5)


def test_rows_without_a_class_are_split_together(tiny):
    reading = Reading("mean", 64)
    with pytest.warns(UserWarning, match="4 texts are too few to set validation_fraction=0.2"):
        examples = prepare_rows(tiny, reading, "regression", *ratings(4), fraction=0.2)
    assert len(examples.valid) == 0
    examples = prepare_rows(tiny, reading, "token_classification", *tags(6), fraction=0.2)
    assert len(examples.valid) == 2


def test_training_cuts_texts_even_with_windows(tiny):
    reading = Reading("mean", 8, windows=True)
    texts = ["a very long text", "short"] * 4
    examples = prepare_rows(tiny, reading, "classification", texts, [0, 1] * 4)
    assert examples.tokens.truncated.tolist() == [True, False] * 4
    assert examples.tokens.lengths.max() == 8


@pytest.mark.parametrize(
    ("changes", "objective", "X", "y", "message"),
    [
        ({"windows": True, "pairs": "joint"}, "classification", PAIRS, [0, 1] * 4,
         "on_truncate='window' reads each text by itself.* pairs='joint'"),
        ({"windows": True, "pairs": None}, "classification", PAIRS, [0, 1] * 4,
         "on_truncate='window' reads each text by itself.* pairs='joint'"),
        ({"windows": True}, "token_classification", SENTENCES, WORD_LABELS,
         "on_truncate='window' returns one vector per text, not per word"),
        ({"prompt": "query: "}, "token_classification", SENTENCES, WORD_LABELS,
         "prompt must be empty for sentences in words, got 'query: '"),
        ({"pooled_layers": 4}, "classification", PAIRS, [0, 1] * 4,
         "pooled_layers must be at most the 3 layers"),
        ({"max_length": 5000}, "classification", PAIRS, [0, 1] * 4,
         "max_length must lie between 8 and"),
    ],
)  # fmt: skip
def test_reading_that_does_not_fit_is_refused(tiny, changes, objective, X, y, message):
    reading = Reading(**({"pooling": "mean", "max_length": 64} | changes))
    with pytest.raises(ValueError, match=message):
        prepare_rows(tiny, reading, objective, X, y)


DATA = {
    "classification": reviews,
    "regression": ratings,
    "multilabel": labels,
    "multiple_choice": choices,
    "token_classification": tags,
}


def contents(rows):
    """Return everything that training sees of rows, to the last bit."""
    targets = rows.targets
    return joblib.hash(
        (rows.texts, rows.counts, rows.objective.name, targets.values, targets.classes,
         targets.n_outputs, targets.mean, targets.scale, rows.weights)
    )  # fmt: skip


@given(
    st.sampled_from(sorted(DATA)),
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=5),
    st.sampled_from([None, "balanced", {"good": 3.0}, {"good": 2, "a class of its own": 5}]),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_rows_of_weight_zero_are_as_if_they_were_absent(objective, others, class_weight, weighted):
    X, y = DATA[objective](20)
    X, y = list(X), [np.asarray(label).tolist() for label in y]
    weights = np.random.default_rng(0).uniform(0.5, 2, 20) if weighted else np.ones(20)
    weights = weights.tolist()
    if objective != "classification":
        class_weight = None
    expected = contents(read_rows(objective, X, y, weights, class_weight))
    more, more_y, more_weights = list(X), list(y), list(weights)
    for position, is_new in others:
        label = y[position % 20]
        if is_new:  # what no other row has
            label = {
                "classification": "a class of its own", "regression": -1e12, "multilabel": [1, 1],
                "multiple_choice": 0, "token_classification": ["a class of its own"],
            }[objective]  # fmt: skip
        row = X[position % 20]
        row = ["word"] if is_new and objective == "token_classification" else row
        more.insert(position, row)
        more_y.insert(position, label)
        more_weights.insert(position, 0)
    assert contents(read_rows(objective, more, more_y, more_weights, class_weight)) == expected


def test_rows_of_classes_of_weight_zero_are_as_if_they_were_absent():
    X, y = reviews(20)
    X, y = [*X, "more"], [*y, "other"]
    without = read_rows("classification", X[:20], y[:20])
    assert contents(read_rows("classification", X, y, None, {"other": 0})) == contents(without)
    with pytest.raises(ValueError, match="two classes or more whose weight is not zero"):
        read_rows("classification", X, y, None, {"other": 0, "good": 0})


@pytest.mark.filterwarnings("ignore:the training loss is stuck")
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_texts_of_weight_zero_do_not_change_a_bit_of_what_is_learned(tiny, class_weight):
    X, y = reviews(24)
    params = {"class_weight": class_weight, "max_steps": 3, "background": ["about it"]}
    params |= {"ffn_length": 2, "prefix_length": 1}
    without = make_encoder(tiny(), **params).fit(X, y)
    # A class and a length of their own, and many more texts of one class.
    more, more_y = [*X, "a longer text " * 5, *X[:9]], [*y, "neither", *["good"] * 9]
    with_zeros = make_encoder(tiny(), **params).fit(more, more_y, [1] * 24 + [0] * 10)
    assert with_zeros.prefix_ == without.prefix_
    assert with_zeros.classes_.tolist() == ["bad", "good"]
    for encoder in (with_zeros, without):
        encoder.history_.pop("seconds")
    assert with_zeros.history_ == without.history_


def test_classes_of_weight_zero_are_not_warned_of(tiny):
    backbone = load_backbone(tiny(), dtype="float32", device="cpu")
    X, y = reviews(40)
    rows = read_rows("classification", [*X, "text"], [*y, "rare"], [1] * 40 + [0])
    prepare(rows, backbone, Reading("mean", 64), 0.2, np.random.default_rng(0))  # no warning
