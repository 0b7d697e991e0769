"""batch_invariant: bits of a vector depend on the text, and not on the texts it is encoded with."""

import numpy as np
import pytest
import torch
from conftest import FAMILIES

from prefixembed import MultiTaskEncoder, PrefixBank, PrefixEncoder, VectorCache
from prefixembed._embed import encoding
from prefixembed._embed.batches import fixed_rows, padded_lengths

DTYPES = ["float32", "bfloat16"]
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz      "))


def make_texts(n=24, longest=70, seed=0):
    """Return texts of random lengths; some exceed the limit, and some fill a rung of the ladder."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest, n)
    lengths[:4] = 0, 6, 14, 62  # with two special tokens: 2, 8, 16, 64
    return ["".join(rng.choice(LETTERS, length)) for length in lengths]


def make_bank(folder, random_prefix, n_prefixes=2, reading=None, length=5, **params):
    prefixes = {
        f"p{k}": random_prefix(folder, length=length, seed=k, ffn_length=4, **(reading or {}))
        for k in range(n_prefixes)
    }
    defaults = {"cache": None, "device": "cpu", "on_truncate": "ignore", "batch_tokens": 128}
    return PrefixBank(prefixes, backbone=folder, batch_invariant=True, **(defaults | params))


def companies(n, n_companies=3, seed=0):
    """Yield selections of rows in random order: few, many, and each of some by itself."""
    rng = np.random.default_rng(seed)
    for size in np.linspace(2, n, n_companies).astype(int):
        yield rng.permutation(n)[:size]
    for row in rng.permutation(n)[:2]:
        yield np.array([row])


def assert_invariant(bank, rows, others=()):
    """Assert that rows have the same bits in any company, that of other rows included."""
    expected = bank.transform(rows)
    for selected in companies(len(rows)):
        found = bank.transform([rows[k] for k in selected])
        np.testing.assert_array_equal(found, expected[selected])
    if len(others):
        found = bank.transform([*others, *rows])
        np.testing.assert_array_equal(found[len(others) :], expected)


def families(*fast):
    """Return all families and dtypes; those that are not named are slow together."""
    return [
        pytest.param(family, dtype, marks=() if (family, dtype) in fast else pytest.mark.slow)
        for family in FAMILIES
        for dtype in DTYPES
    ]


@pytest.mark.parametrize(
    ("family", "dtype"),
    families(*((family, "float32") for family in FAMILIES), ("bert", "bfloat16")),
)
def test_texts_have_the_same_bits_in_any_company(tiny, random_prefix, family, dtype):
    texts, others = make_texts(), make_texts(30, seed=1)
    assert_invariant(make_bank(tiny(family), random_prefix, dtype=dtype), texts, others)
    assert_invariant(make_bank(tiny(family), random_prefix, 0, dtype=dtype), texts)


@pytest.mark.parametrize(
    ("family", "dtype"), families(*(("bert", dtype) for dtype in DTYPES), ("modernbert", "float32"))
)
def test_other_readings_have_the_same_bits_in_any_company(tiny, random_prefix, family, dtype):
    one, two = make_texts(20, 30), make_texts(20, 30, seed=1)
    pairs = list(zip(one, two, strict=True))
    for how in ("joint", "apart"):
        assert_invariant(make_bank(tiny(family), random_prefix, pairs=how, dtype=dtype), pairs)
    words = [text.split() for text in make_texts()]
    bank = make_bank(tiny(family), random_prefix, output="words", dtype=dtype)
    expected = np.split(bank.transform(words), np.cumsum([len(some) for some in words]))
    for selected in companies(len(words)):
        found = bank.transform([words[k] for k in selected])
        np.testing.assert_array_equal(found, np.concatenate([expected[k] for k in selected]))
    texts = make_texts(12, 150)
    windows = make_bank(
        tiny(family), random_prefix, on_truncate="window", max_length=32, dtype=dtype
    )
    assert_invariant(windows, texts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pooling", ["cls", "max", "last"])
def test_poolings(tiny, random_prefix, pooling, dtype):
    bank = make_bank(tiny(), random_prefix, reading={"pooling": pooling}, dtype=dtype)
    assert_invariant(bank, make_texts())
    bank = make_bank(tiny(), random_prefix, pooled_layers=2, dtype=dtype, output_dtype="int8")
    assert_invariant(bank, make_texts())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("params", [{"combine": "mean"}, {"weights": 0.5}, {"length": 60}])
def test_combinations(tiny, random_prefix, params, dtype):
    # Prefixes of 120 positions are attended to once for the whole batch.
    assert_invariant(make_bank(tiny(), random_prefix, dtype=dtype, **params), make_texts())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_real_backbone(minilm, random_prefix, dtype):
    rng = np.random.default_rng(0)
    vocabulary = ["a", "film", "of", "joy", "rain", "never", "surprising", "night", "understood"]
    texts = [" ".join(rng.choice(vocabulary, n)) for n in rng.integers(1, 100, 60)]
    bank = make_bank(minilm, random_prefix, dtype=dtype, batch_tokens="auto")
    assert_invariant(bank, texts)


def test_cached_vectors_are_those_that_are_computed(tiny, random_prefix, encoded):
    texts, cache = make_texts(), VectorCache()
    expected = make_bank(tiny(), random_prefix).transform(texts)
    bank = make_bank(tiny(), random_prefix, cache=cache)
    bank.transform(texts[::3])
    np.testing.assert_array_equal(bank.transform(texts), expected)
    encoded.clear()
    np.testing.assert_array_equal(bank.transform(texts[::-1]), expected[::-1])
    assert not encoded


def test_vectors_share_no_cache_entries_with_those_of_other_shapes(tiny, random_prefix):
    bank = make_bank(tiny(), random_prefix)
    digests = {bank.representation().digest}
    digests.add(bank.set_params(batch_tokens=64).representation().digest)
    digests.add(bank.set_params(batch_invariant=False).representation().digest)
    assert len(digests) == 3
    same = bank.set_params(batch_tokens=128).representation().digest
    assert same in digests  # without the parameter, the budget decides nothing


def test_vectors_equal_those_without_it_up_to_rounding(tiny, random_prefix):
    texts = make_texts()
    bank = make_bank(tiny(), random_prefix, dtype="float32")
    found = bank.transform(texts)
    plain = bank.set_params(batch_invariant=False).transform(texts)
    np.testing.assert_allclose(found, plain, atol=1e-5)


def test_lack_of_memory_is_an_error(tiny, random_prefix, monkeypatch):
    def fail(*args):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(encoding, "_embed_batch", fail)
    with pytest.raises(MemoryError, match="batch_tokens=128 can be lowered"):
        make_bank(tiny(), random_prefix).transform(["a", "b"])


def test_each_batch_has_the_shape_of_its_length(tiny, random_prefix, monkeypatch):
    shapes = set()
    real = encoding.pad_batch

    def record(*args):
        batch = real(*args)
        assert batch.mask is not None
        shapes.add(batch.ids.shape)
        return batch

    monkeypatch.setattr(encoding, "pad_batch", record)
    bank = make_bank(tiny(), random_prefix)
    for selected in companies(24):
        bank.transform([make_texts()[k] for k in selected])
    assert {rows for rows, _ in shapes} <= {fixed_rows(length, 128) for _, length in shapes}
    assert len(shapes) == len({length for _, length in shapes}) > 3


def test_padded_lengths():
    lengths = np.arange(1, 511)
    padded = padded_lengths(lengths, 510)
    assert (padded >= lengths).all() and padded.max() == 510
    assert (np.diff(padded) >= 0).all()
    assert len(set(padded)) < 30


def test_encoders_hand_it_to_their_bank(tiny, random_prefix):
    prefix = random_prefix(tiny())
    encoder = PrefixEncoder.from_prefix(prefix, batch_invariant=True, device="cpu")
    assert encoder.as_bank().batch_invariant
    assert "batch_invariant" in MultiTaskEncoder().get_params()
    with pytest.raises(ValueError, match="batch_invariant"):
        encoder.set_params(batch_invariant="yes").transform(["a"])
