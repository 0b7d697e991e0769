import os
import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixembed import load_backbone
from prefixembed._batching import (
    Tokens,
    check_texts,
    first_positions,
    iterate_texts,
    pad_batch,
    plan_batches,
    shuffle_batches,
    tokenize,
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
def test_single_texts_of_every_container(X):
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
def test_pairs_of_every_container(X):
    assert check_texts(X) == PAIRS


@pytest.mark.parametrize(
    "X", [[], (), np.array([]), np.empty((0, 2)), pd.Series([], dtype=object), pl.Series([])]
)
def test_no_rows(X):
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
        ([("a", "b"), ("c",)], r"X\[1\] must have 2 texts as X\[0\] has, got \('c',\)"),
        ([("a", "b"), "c"], r"X\[1\] must have 2 texts"),
        ([["a"], ["b", "c"]], r"X\[1\] must have 1 text as"),
        (["a", ("b", "c")], r"X\[1\] must be a str, got \('b', 'c'\)"),
        ([("a", "b"), ("c", None)], r"X\[1\]\[1\] must be a str, got None"),
        ([("a", "b", "c")], r"X\[0\] must be a text or a pair"),
        (np.array([["a", "b", "c"]]), r"shape .* got \(1, 3\)"),
        (np.array("a"), r"shape"),
        (np.zeros((2, 2)), r"X\[0\]\[0\] must be a str, got 0.0"),
        (["x" * 1000, ("y" * 1000,)], r"X\[1\] .*y\.\.\. of type tuple"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(X, message):
    with pytest.raises(ValueError, match=message):
        check_texts(X)


def test_first_positions_tell_repetitions():
    texts = ["b", "a", "b", ("a", "b"), ("a", "b"), "a"]
    assert list(first_positions(texts)) == [0, 1, 0, 3, 3, 1]


def test_an_iterator_is_read_a_bounded_number_at_a_time():
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


def test_what_is_no_text_in_an_iterator_is_named_with_its_place():
    with pytest.raises(ValueError, match=r"X\[5\] must be a str, got None"):
        list(iterate_texts(iter(["a"] * 5 + [None]), 2))
    with pytest.raises(ValueError, match=r"X\[4\] must be of the kind of X\[0\]"):
        list(iterate_texts(iter(["a"] * 4 + [("a", "b")]), 2))


@given(st.lists(st.text(st.characters(), max_size=30), max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_unicode_becomes_tokens(tiny, texts):
    # st.characters() without a codec makes lone surrogates too.
    backbone = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    tokenizer = backbone.tokenizer(16)
    for rows in (texts, [(text, text[::-1]) for text in texts]):
        tokens = tokenize(tokenizer, rows)
        assert len(tokens.ids) == len(tokens.type_ids) == len(rows)
        assert all(2 <= n <= 16 for n in tokens.lengths)
        # One token a byte, a special one at the start and one after each text.
        n_bytes = [len("".join(row).encode("utf-16", "surrogatepass")
                   .decode("utf-16", "replace").encode()) for row in rows]  # fmt: skip
        n_special = 2 if rows is texts else 3
        np.testing.assert_array_equal(tokens.truncated, [n + n_special > 16 for n in n_bytes])


def test_a_lone_surrogate_reads_as_the_replacement_character(tiny):
    backbone = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    tokenizer = backbone.tokenizer(64)
    odd = tokenize(tokenizer, ["a\ud800b", "plain", "\ud83d\ude00"])
    even = tokenize(tokenizer, ["a\ufffdb", "plain", "\U0001f600"])
    for one, other in zip(odd.ids, even.ids, strict=True):
        np.testing.assert_array_equal(one, other)


lengths_strategy = st.lists(st.integers(1, 50), min_size=1, max_size=60).map(np.array)


@given(lengths=lengths_strategy, budget=st.integers(1, 200))
@settings(max_examples=80, deadline=None)
def test_planned_batches_hold_each_text_once_within_the_budget(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget
    longest = [lengths[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_no_texts_plan_no_batches():
    assert plan_batches(np.array([], dtype=int), 10) == []


@given(lengths=lengths_strategy, size=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_shuffled_batches_hold_each_text_once(lengths, size, seed):
    batches = shuffle_batches(lengths, size, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
    again = shuffle_batches(lengths, size, np.random.default_rng(seed))
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))


def test_shuffled_batches_differ_and_waste_little():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 100, size=2000)
    first, second = (shuffle_batches(lengths, 16, rng) for _ in range(2))
    assert {tuple(sorted(b)) for b in first} != {tuple(sorted(b)) for b in second}
    padded = sum(len(batch) * lengths[batch].max() for batch in first)
    assert padded < 1.1 * lengths.sum()


def test_padding_is_on_the_right_and_masked():
    tokens = Tokens(
        [np.array([5, 6, 7], dtype=np.int32), np.array([8], dtype=np.int32)],
        [np.array([0, 0, 1], dtype=np.int8), np.array([0], dtype=np.int8)],
        np.array([False, False]),
    )
    batch = pad_batch(tokens, np.array([1, 0]), pad_id=9)
    np.testing.assert_array_equal(batch.ids, [[8, 9, 9], [5, 6, 7]])
    np.testing.assert_array_equal(batch.type_ids, [[0, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(batch.mask, [[1, 0, 0], [1, 1, 1]])
    assert pad_batch(tokens, np.array([0]), pad_id=9).mask is None


FORK = """
import os, sys
from prefixembed import load_backbone
from prefixembed._batching import tokenize
tokenizer = load_backbone(sys.argv[1]).tokenizer(32)
texts = [f"text {k}" for k in range(5000)]
ids = tokenize(tokenizer, texts).ids
child = os.fork()
if not child:
    same = all((a == b).all() for a, b in zip(tokenize(tokenizer, texts).ids, ids))
    os._exit(0 if same and os.environ["TOKENIZERS_PARALLELISM"] == "false" else 1)
assert os.waitpid(child, 0)[1] == 0
print(os.environ.get("TOKENIZERS_PARALLELISM"))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("said", [None, "false"])
def test_a_forked_child_tokenizes_without_a_warning(tiny, said):
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    if said:
        environment["TOKENIZERS_PARALLELISM"] = said
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, tiny()],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "forked" not in done.stderr
    assert done.stdout.splitlines()[-1] == str(said), "the parent's environment is left alone"
