"""Tokenized examples, and readings that are refused before training."""

import re
import warnings

import numpy as np
import pytest
from helpers import choices, labels, ratings, reviews, tags

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
