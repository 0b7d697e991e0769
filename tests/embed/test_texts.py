"""Checks of texts, pairs, contexts with choices, and sentences in words."""

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pytest

from prefixembed._embed.texts import (
    Words,
    check_choices,
    check_rows,
    check_texts,
    check_words,
    iterate_texts,
    vector_counts,
)

SINGLE = ["a", "b c", ""]
PAIRS = [("a", "b"), ("c", ""), ("", "")]


@pytest.mark.parametrize(
    "X",
    [
        SINGLE,
        tuple(SINGLE),
        [np.str_(text) for text in SINGLE],
        np.array(SINGLE),
        np.array(SINGLE, dtype=object),
        np.array(SINGLE, dtype=object)[:, None],
        [[text] for text in SINGLE],
        pd.Series(SINGLE),
        pd.Series(SINGLE, index=[7, 7, -1], dtype="string"),
        pd.Series(SINGLE, index=list("xyz")),
        pd.DataFrame({"text": SINGLE}, index=[5, 3, 1]),
        pl.Series(SINGLE),
        pl.DataFrame({"text": SINGLE}),
        datasets.Dataset.from_dict({"text": SINGLE})["text"],
    ],
    ids=lambda X: type(X).__module__.split(".")[0] + "." + type(X).__name__,
)
def test_single_texts_in_every_container(X):
    texts = check_texts(X)
    assert texts == SINGLE
    assert all(isinstance(text, str) for text in texts)


@pytest.mark.parametrize(
    "X",
    [
        PAIRS,
        [list(pair) for pair in PAIRS],
        np.array(PAIRS),
        np.array(PAIRS, dtype=object),
        pd.DataFrame(PAIRS, columns=["q", "a"], index=[9, 9, 0]),
        pd.DataFrame(PAIRS, columns=["same", "same"]),
        pl.DataFrame({"q": [q for q, _ in PAIRS], "a": [a for _, a in PAIRS]}),
    ],
    ids=lambda X: type(X).__module__.split(".")[0] + "." + type(X).__name__,
)
def test_pairs_in_every_container(X):
    assert check_texts(X) == PAIRS


@pytest.mark.parametrize(
    "X", [[], (), np.array([]), np.empty((0, 2)), pd.Series([], dtype=object), pl.Series([])]
)
def test_empty_containers_give_no_texts(X):
    assert check_texts(X) == []


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("a text", r"X must be a sequence .*'a text'"),
        (b"a text", r"X must be a sequence .*b'a text'"),
        (np.str_("a"), "X must be a sequence"),
        (3, "X must be a sequence .*3"),
        (None, "X must be a sequence .*None"),
        ({"text": ["a"]}, "X must be a sequence .*'text'"),
        (["a", None], r"X\[1\] must be a str, got None of type NoneType"),
        (["a", float("nan")], r"X\[1\] must be a str, got nan of type float"),
        ([b"a"], r"X\[0\] must be a str, got b'a' of type bytes; decode it"),
        (["a", "b", 7], r"X\[2\] must be a str, got 7 of type int"),
        (pd.Series(["a", pd.NA], dtype="string"), r"X\[1\] must be a str, got .*NA"),
        (pd.Series(["a", None], index=[4, 5]), r"X\[1\] must be a str"),
        (pl.Series(["a", None]), r"X\[1\] must be a str, got None"),
        ([("a", "b"), ("c",)], r"X\[1\] must have 2 texts like X\[0\], got \('c',\)"),
        ([("a", "b"), "c"], r"X\[1\] must have 2 texts"),
        ([["a"], ["b", "c"]], r"X\[1\] must have 1 text like"),
        (["a", ("b", "c")], r"X\[1\] must be a str, got \('b', 'c'\)"),
        ([("a", "b"), ("c", None)], r"X\[1\]\[1\] must be a str, got None"),
        ([("a", "b", "c")], r"X\[0\] must be a text or a pair"),
        (np.array([["a", "b", "c"]]), r"shape .* got \(1, 3\)"),
        (np.array("a"), r"shape"),
        (np.zeros((2, 2)), r"X\[0\]\[0\] must be a str, got 0.0"),
        (["x" * 1000, ("y" * 1000,)], r"X\[1\] .*y\.\.\. of type tuple"),
    ],
)
def test_errors_name_position_and_value(X, message):
    with pytest.raises(ValueError, match=message):
        check_texts(X)


def test_iterators_are_read_in_parts():
    read = []

    def rows():
        for k in range(10):
            read.append(k)
            yield f"text {k}"

    parts = iterate_texts(rows(), 4)
    assert next(parts) == ["text 0", "text 1", "text 2", "text 3"]
    assert len(read) == 4
    assert [len(part) for part in parts] == [4, 2]
    assert list(iterate_texts(iter([]), 4)) == []
    assert list(iterate_texts(iter([["a", "b"]]), 4)) == [[("a", "b")]]


def test_errors_name_the_position_in_an_iterator():
    with pytest.raises(ValueError, match=r"X\[5\] must be a str, got None"):
        list(iterate_texts(iter(["a"] * 5 + [None]), 2))
    with pytest.raises(ValueError, match=r"X\[4\] must be of the same kind as X\[0\]"):
        list(iterate_texts(iter(["a"] * 4 + [("a", "b")]), 2))


@pytest.mark.parametrize(
    "X",
    [
        [["a", "b"], ["c"]],
        (("a", "b"), ("c",)),
        [np.array(["a", "b"]), np.array(["c"], dtype=object)],
        pd.Series([["a", "b"], ["c"]], index=[3, 3]),
        pl.Series([["a", "b"], ["c"]]),
        datasets.Dataset.from_dict({"words": [["a", "b"], ["c"]]})["words"],
    ],
)
def test_sentences_in_words_in_every_container(X):
    rows = check_words(X)
    assert rows == [("a", "b"), ("c",)]
    assert all(isinstance(row, Words) for row in rows)
    assert rows[0].text == "a b"
    assert vector_counts(rows).tolist() == [2, 1]
    assert [list(part) for part in iterate_texts(iter(list(X)), 1, words=True)] == [
        [("a", "b")],
        [("c",)],
    ]


@pytest.mark.parametrize(
    "X",
    [
        [("a", ["b", "c"]), ("d", ["e"])],
        [["a", ("b", "c")], ["d", np.array(["e"])]],
        pd.DataFrame({"context": ["a", "d"], "choices": [["b", "c"], ["e"]]}, index=[1, 1]),
    ],
)
def test_choices_in_every_container(X):
    assert check_choices(X) == [("a", ("b", "c")), ("d", ("e",))]
    texts, counts = check_rows(X, "choices")
    assert texts == [("a", "b"), ("a", "c"), ("d", "e")]
    assert counts.tolist() == [2, 1]


def test_each_character_belongs_to_its_word():
    assert Words(["ab", "", "c"]).of_characters().tolist() == [0, 0, -1, -1, 2]
    assert Words([]).of_characters().tolist() == []
    assert len(Words(["ab", "", "c"]).text) == 5


def test_masked_texts_are_refused_by_position():
    texts = np.array(["a", "b", "c"], dtype=object)
    pairs = np.array([["a", "b"], ["c", "d"]])
    for X, position in (
        (np.ma.array(texts, mask=[0, 1, 0]), "1"),
        (np.ma.array(texts.astype(str), mask=[0, 0, 1]), "2"),
        (np.ma.array(pairs, mask=[[0, 0], [0, 1]]), "1, 1"),
    ):
        with pytest.raises(ValueError, match=rf"X\[{position}\] is masked"):
            check_texts(X)
        assert check_texts(np.ma.array(X.data)) == check_texts(X.data)
    with pytest.raises(ValueError, match=r"X\[1\]\[0\] must be a str, got masked"):
        check_texts([["a", "b"], np.ma.array(["c", "d"], mask=[1, 0])])
    with pytest.raises(ValueError, match=r"X\[1\] is masked"):
        check_words(np.ma.array(texts, mask=[0, 1, 0]))
    with pytest.raises(ValueError, match=r"X\[0, 1\] is masked"):
        check_choices(np.ma.array(pairs, mask=[[0, 1], [0, 0]]))
