"""Long texts that are read in windows rather than cut."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixembed import PrefixBank, PrefixEncoder, VectorCache, load_backbone
from prefixembed._embed.batching import Batch, tokenize_windows
from prefixembed._model.pooling import pool, pool_windows
from prefixembed.inspection import attention_share

CPU = {"device": "cpu", "dtype": "float32", "cache": None}
SHORT = ["a film", "", "dull"]
LONG = ["of joy " * 9, "x" * 200, "one two three " * 20]


def read(folder, texts, **params):
    bank = PrefixBank({}, backbone=folder, **(CPU | {"max_length": 16} | params))
    return bank.transform(texts)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last"])
def test_vectors_are_those_of_the_windows(tiny, pooling):
    backbone = load_backbone(tiny(), dtype="float32", device="cpu")
    whole, window, overlap = backbone.tokenizer(80), 16, 4
    expected = []
    for text in ["of joy " * 9, "one two three " * 4]:
        start, *tokens, end = whole.encode(text).ids
        step = window - 2 - overlap
        vectors, sizes = [], []
        for begin in range(0, max(1, len(tokens) - overlap), step):
            ids = np.array([[start, *tokens[begin : begin + window - 2], end]])
            hidden, mask = backbone.forward(Batch(ids, np.zeros_like(ids), None))
            vectors.append(pool(hidden, mask, pooling)[0].numpy())
            sizes.append(ids.shape[1])
        assert len(vectors) > 2
        many = np.array(vectors)
        expected.append(
            many.max(axis=0) if pooling == "max" else np.average(many, axis=0, weights=sizes)
        )
    texts = ["of joy " * 9, "one two three " * 4]
    found = read(tiny(), texts, pooling=pooling, on_truncate="window")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_texts_that_are_not_too_long_keep_their_bits(tiny):
    np.testing.assert_array_equal(read(tiny(), SHORT, on_truncate="window"), read(tiny(), SHORT))


def test_nothing_is_cut_nor_warned_of(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vectors = read(tiny(), LONG, on_truncate="window")
    cut = read(tiny(), LONG, on_truncate="ignore")
    assert np.abs(vectors - cut).max(axis=1).min() > 0.01
    # What stands behind the first window counts.
    other = read(tiny(), [text + "!" for text in LONG], on_truncate="window")
    assert np.abs(vectors - other).max(axis=1).min() > 1e-4


@given(st.text(max_size=80), st.integers(8, 20))
def test_every_token_is_in_a_window(tiny, text, window):
    backbone = load_backbone(tiny(), dtype="float32", device="cpu")
    whole = backbone.tokenizer(80).encode(text.encode("utf-8", "replace").decode()).ids[1:-1]
    overlap = window // 4
    tokens, n_windows = tokenize_windows(backbone.tokenizer(window, overlap), [text, "a"])
    assert n_windows.sum() == len(tokens.ids)
    found = []
    for ids in tokens.ids[: n_windows[0]]:
        assert len(ids) <= window
        found = [*found[: len(found) - overlap if found else None], *ids[1:-1]]
    # 80 is where the whole was cut.
    assert found[: len(whole)] == whole


def test_batches_and_order_do_not_matter(tiny):
    texts = [*SHORT, *LONG, LONG[0]]
    expected = np.concatenate([read(tiny(), [text], on_truncate="window") for text in texts])
    for budget in (1, 100):
        found = read(tiny(), texts[::-1], on_truncate="window", batch_tokens=budget)
        np.testing.assert_allclose(found[::-1], expected, atol=1e-5)


def test_the_cache_tells_windows_from_cut_texts(tiny, encoded):
    kept = VectorCache()
    cut = read(tiny(), LONG, on_truncate="ignore", cache=kept)
    windows = read(tiny(), LONG, on_truncate="window", cache=kept)
    n = len(encoded)
    np.testing.assert_array_equal(read(tiny(), LONG, on_truncate="ignore", cache=kept), cut)
    np.testing.assert_array_equal(read(tiny(), LONG, on_truncate="window", cache=kept), windows)
    assert len(encoded) == n
    assert np.abs(cut - windows).max() > 0.01


def test_pairs_are_read_apart_or_not_at_all(tiny):
    pairs = list(zip(SHORT, LONG, strict=True))
    found = read(tiny(), pairs, pairs="apart", on_truncate="window")
    u, v = (read(tiny(), texts, on_truncate="window") for texts in (SHORT, LONG))
    np.testing.assert_allclose(found, np.hstack([u, v, np.abs(u - v)]), atol=1e-5)
    with pytest.raises(ValueError, match="pairs='joint'.*take pairs='apart'"):
        read(tiny(), pairs, on_truncate="window")


def test_words_are_refused(tiny):
    with pytest.raises(ValueError, match="output='words'"):
        read(tiny(), [["a", "film"]], output="words", on_truncate="window")


def test_an_encoder_learns_from_beginnings_and_says_so(tiny):
    encoder = PrefixEncoder(
        tiny(), max_length=16, learning_rate=0.03, random_state=0, on_truncate="window", **CPU
    )
    texts, y = [*SHORT, *LONG] * 4, [0, 0, 0, 1, 1, 1] * 4
    with pytest.warns(UserWarning, match="12 of 24 texts .* were cut"):
        encoder.fit(texts, y)
    bank = PrefixBank({"a": encoder}, on_truncate="window", **CPU)
    np.testing.assert_array_equal(encoder.transform(LONG), bank.transform(LONG))
    cut = PrefixBank({"a": encoder}, on_truncate="ignore", **CPU).transform(LONG)
    assert np.abs(encoder.transform(LONG) - cut).max() > 0.01
    assert encoder.predict_proba(LONG).shape == (3, 2)


def test_a_saved_bank_reads_as_before(tiny, random_prefix, tmp_path):
    bank = PrefixBank({"a": random_prefix(tiny())}, max_length=16, on_truncate="window", **CPU)
    bank.save(tmp_path / "bank")
    loaded = PrefixBank.load(tmp_path / "bank", **CPU)
    np.testing.assert_array_equal(loaded.transform(LONG), bank.transform(LONG))


def test_what_reads_one_sequence_says_so(tiny, random_prefix):
    bank = PrefixBank({"a": random_prefix(tiny())}, max_length=16, on_truncate="window", **CPU)
    with pytest.raises(ValueError, match="on_truncate='window'"):
        bank.to_sentence_transformer()
    with pytest.warns(UserWarning, match="3 of 3 texts .* were cut"):
        attention_share(bank, LONG)


def test_no_windows_are_pooled_to_nothing():
    none = np.empty((0, 4), dtype=np.float32)
    assert pool_windows(none, np.zeros(0, int), np.zeros(0, int), "mean").shape == (0, 4)
