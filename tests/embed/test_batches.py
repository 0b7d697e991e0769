"""Tokens and batches: limits, repetitions, padding, words and forked processes."""

import os

import numpy as np
import pytest
from helpers import run_python
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixembed import load_backbone
from prefixembed._embed.batches import (
    expand,
    first_positions,
    pad_batch,
    plan_batches,
    shuffle_batches,
    word_slots,
)
from prefixembed._embed.texts import Words
from prefixembed._embed.tokens import Tokens, tokenize
from prefixembed.reading import Reading


def test_first_positions_find_repeated_texts():
    texts = ["b", "a", "b", ("a", "b"), ("a", "b"), "a"]
    assert list(first_positions(texts)) == [0, 1, 0, 3, 3, 1]


@given(st.lists(st.text(st.characters(), max_size=30), max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_text_can_be_tokenized(tiny, texts):
    # Without a codec, st.characters() also generates lone surrogates.
    backbone = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    for rows in (texts, [(text, text[::-1]) for text in texts]):
        tokens = tokenize(backbone, rows, Reading("mean", 16))
        assert len(tokens.ids) == len(tokens.type_ids) == len(rows)
        assert all(2 <= n <= 16 for n in tokens.lengths)
        # One token per byte, a special token at the start and one after each text.
        n_bytes = [len("".join(row).encode("utf-16", "surrogatepass")
                   .decode("utf-16", "replace").encode()) for row in rows]  # fmt: skip
        n_special = 2 if rows is texts else 3
        np.testing.assert_array_equal(tokens.truncated, [n + n_special > 16 for n in n_bytes])


def test_lone_surrogates_become_replacement_characters(tiny):
    backbone = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    reading = Reading("mean", 64)
    odd = tokenize(backbone, ["a\ud800b", "plain", "\ud83d\ude00"], reading)
    even = tokenize(backbone, ["a\ufffdb", "plain", "\U0001f600"], reading)
    for one, other in zip(odd.ids, even.ids, strict=True):
        np.testing.assert_array_equal(one, other)


lengths_strategy = st.lists(st.integers(1, 50), min_size=1, max_size=60).map(np.array)


@given(lengths=lengths_strategy, budget=st.integers(1, 200))
@settings(max_examples=80, deadline=None)
def test_planned_batches_hold_each_text_once_and_keep_the_budget(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget
    longest = [lengths[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_no_texts_give_no_batches():
    assert plan_batches(np.array([], dtype=int), 10) == []


@given(lengths=lengths_strategy, size=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_shuffled_batches_hold_each_text_once(lengths, size, seed):
    batches = shuffle_batches(lengths, size, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
    again = shuffle_batches(lengths, size, np.random.default_rng(seed))
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))


def test_shuffled_batches_differ_and_have_little_padding():
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


FORKS = """
import os, sys
from prefixembed import load_backbone
from prefixembed._embed.tokens import tokenize
from prefixembed.reading import Reading
backbone, reading = load_backbone(sys.argv[1]), Reading("mean", 32)
texts = [f"text {k}" for k in range(500)]
ids = tokenize(backbone, texts, reading).ids

def check():
    assert all((a == b).all() for a, b in zip(tokenize(backbone, texts, reading).ids, ids))

def descend(depth):
    if not depth:
        return
    child = os.fork()
    if not child:
        # Before and after the child has children of its own.
        try:
            check()
            descend(depth - 1)
            check()
            assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

for setting in (None, "false", "true"):
    if setting:
        os.environ["TOKENIZERS_PARALLELISM"] = setting
    descend(3)
    check()
    # The environment of the first process does not change.
    assert os.environ.get("TOKENIZERS_PARALLELISM") == setting
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_forked_children_of_any_depth_tokenize_without_a_warning(tiny):
    alone = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    _, err = run_python(FORKS, tiny(), options=["-W", "ignore"], env=alone, timeout=60)
    assert "forked" not in err


@given(
    sizes=st.lists(st.integers(0, 4), max_size=8),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_expand_returns_every_vector_of_each_text(sizes, data):
    ends = np.cumsum(sizes, dtype=np.intp)
    picked = data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=10)) if sizes else []
    expected = [row for k in picked for row in range(ends[k] - sizes[k], ends[k])]
    assert list(expand(np.array(picked, dtype=np.intp), ends)) == expected


@given(st.lists(st.lists(st.text(max_size=6), max_size=5), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_every_token_belongs_to_the_word_that_contains_it(tiny, sentences):
    backbone = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    tokenizer = backbone.tokenizer(64)
    rows = [Words(words) for words in sentences]
    tokens = tokenize(backbone, rows, Reading("mean", 64))
    plain = tokenize(backbone, [row.text for row in rows], Reading("mean", 64))
    for k, row in enumerate(rows):
        np.testing.assert_array_equal(tokens.ids[k], plain.ids[k])
        spans, start = [], 0
        for word in row:
            spans.append(range(start, start + len(word)))
            start += len(word) + 1
        encoding = tokenizer.encode(row.text)
        for (begin, end), word in zip(encoding.offsets, tokens.words[k], strict=True):
            inside = [n for n, span in enumerate(spans) if end > begin and end - 1 in span]
            assert ([word] if word >= 0 else []) == inside
    slots = word_slots(tokens, np.arange(len(rows)), (len(rows), int(tokens.lengths.max())))
    assert slots.max() < sum(map(len, rows))
    assert tokens.n_vectors.tolist() == [len(row) for row in rows]
