"""Long texts that are read in windows instead of being cut."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixembed import PrefixBank, PrefixEncoder, VectorCache, load_backbone
from prefixembed._embed.tokens import tokenize_windows
from prefixembed._model.batch import Batch
from prefixembed._model.pooling import pool, pool_windows
from prefixembed.inspection import attention_share
from prefixembed.interop import to_sentence_transformer
from prefixembed.reading import Reading

CPU = {"device": "cpu", "dtype": "float32", "cache": None}
SHORT = ["a film", "", "dull"]
LONG = ["of joy " * 9, "x" * 200, "one two three " * 20]


def embed(folder, texts, **params):
    bank = PrefixBank({}, backbone=folder, **(CPU | {"max_length": 16} | params))
    return bank.transform(texts)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last"])
def test_vectors_are_pooled_over_windows(tiny, pooling):
    backbone = load_backbone(tiny(), dtype="float32", device="cpu")
    whole, window, overlap = backbone.tokenizer(80), 16, 4
    texts, expected = ["of joy " * 9, "one two three " * 4], []
    for text in texts:
        start, *tokens, end = whole.encode(text).ids
        step = window - 2 - overlap
        vectors, sizes = [], []
        for begin in range(0, max(1, len(tokens) - overlap), step):
            ids = np.array([[start, *tokens[begin : begin + window - 2], end]])
            batch = Batch(ids, np.zeros_like(ids), None)
            hidden, mask = backbone.forward(batch, None, Reading(pooling, window))
            vectors.append(pool(hidden, mask, pooling)[0].numpy())
            sizes.append(ids.shape[1])
        assert len(vectors) > 2
        if pooling == "max":
            expected.append(np.max(vectors, axis=0))
        else:
            expected.append(np.average(vectors, axis=0, weights=sizes))
    found = embed(tiny(), texts, pooling=pooling, on_truncate="window")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_windows_do_not_affect_short_texts(tiny):
    np.testing.assert_array_equal(embed(tiny(), SHORT, on_truncate="window"), embed(tiny(), SHORT))


def test_windows_cut_nothing_and_do_not_warn(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vectors = embed(tiny(), LONG, on_truncate="window")
    cut = embed(tiny(), LONG, on_truncate="ignore")
    assert np.abs(vectors - cut).max(axis=1).min() > 0.01
    # Tokens after the first window affect the vectors.
    other = embed(tiny(), [text + "!" for text in LONG], on_truncate="window")
    assert np.abs(vectors - other).max(axis=1).min() > 1e-4


@given(st.text(max_size=80), st.integers(8, 20))
def test_windows_cover_every_token(tiny, text, window):
    backbone = load_backbone(tiny(), dtype="float32", device="cpu")
    whole = backbone.tokenizer(80).encode(text.encode("utf-8", "replace").decode()).ids[1:-1]
    overlap = window // 4
    tokens, n_windows = tokenize_windows(backbone, [text, "a"], Reading("mean", window))
    assert n_windows.sum() == len(tokens.ids)
    found = []
    for ids in tokens.ids[: n_windows[0]]:
        assert len(ids) <= window
        found = [*found[: len(found) - overlap if found else None], *ids[1:-1]]
    # `whole` was cut at 80 tokens.
    assert found[: len(whole)] == whole


def test_batch_size_and_order_do_not_matter(tiny):
    texts = [*SHORT, *LONG, LONG[0]]
    expected = np.concatenate([embed(tiny(), [text], on_truncate="window") for text in texts])
    for budget in (1, 100):
        found = embed(tiny(), texts[::-1], on_truncate="window", batch_tokens=budget)
        np.testing.assert_allclose(found[::-1], expected, atol=1e-5)


def test_cache_keeps_windows_and_cut_texts_apart(tiny, encoded):
    cache = VectorCache()
    cut = embed(tiny(), LONG, on_truncate="ignore", cache=cache)
    windows = embed(tiny(), LONG, on_truncate="window", cache=cache)
    n = len(encoded)
    np.testing.assert_array_equal(embed(tiny(), LONG, on_truncate="ignore", cache=cache), cut)
    np.testing.assert_array_equal(embed(tiny(), LONG, on_truncate="window", cache=cache), windows)
    assert len(encoded) == n
    assert np.abs(cut - windows).max() > 0.01


def test_windows_need_pairs_that_are_read_apart(tiny):
    pairs = list(zip(SHORT, LONG, strict=True))
    found = embed(tiny(), pairs, pairs="apart", on_truncate="window")
    u, v = (embed(tiny(), texts, on_truncate="window") for texts in (SHORT, LONG))
    np.testing.assert_allclose(found, np.hstack([u, v, np.abs(u - v)]), atol=1e-5)
    with pytest.raises(ValueError, match="pairs='joint'.*use pairs='apart'"):
        embed(tiny(), pairs, on_truncate="window")


def test_windows_cannot_be_combined_with_words(tiny):
    with pytest.raises(ValueError, match="one vector per text, not per word"):
        embed(tiny(), [["a", "film"]], output="words", on_truncate="window")


def test_training_cuts_texts_with_a_warning(tiny):
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


def test_saved_bank_reads_windows(tiny, random_prefix, tmp_path):
    bank = PrefixBank({"a": random_prefix(tiny())}, max_length=16, on_truncate="window", **CPU)
    bank.save(tmp_path / "bank")
    loaded = PrefixBank.load(tmp_path / "bank", **CPU)
    np.testing.assert_array_equal(loaded.transform(LONG), bank.transform(LONG))


def test_single_sequences_are_required_elsewhere(tiny, random_prefix):
    bank = PrefixBank({"a": random_prefix(tiny())}, max_length=16, on_truncate="window", **CPU)
    with pytest.raises(ValueError, match="on_truncate='window'"):
        to_sentence_transformer(bank)
    with pytest.warns(UserWarning, match="3 of 3 texts .* were cut"):
        attention_share(bank, LONG)


def test_no_windows_give_no_vectors():
    none = np.empty((0, 4), dtype=np.float32)
    assert pool_windows(none, np.zeros(0, int), np.zeros(0, int), "mean").shape == (0, 4)
