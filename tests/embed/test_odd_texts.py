"""Ten thousand odd texts: control characters, surrogates, scripts, emoji, markup."""

import itertools

import numpy as np
import pytest

from prefixembed import PrefixBank, VectorCache

CPU = {"device": "cpu", "on_truncate": "ignore"}
MB = 2**20

BASES = [
    "", " ", "\t\n\r\v\f", "\x00", "a\x00b", "\x00" * 50, "\ufeff", "\u200b\u200d\u2060",
    "\ud800", "\udfff\ud800", "a\udc80b", "\U0010ffff", "\ufffe\uffff", "\x7f\x80\x9f",
    "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627", "\u202eright to left\u202c",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f1e9\U0001f1ea" * 9,
    "e\u0301", "\u00e9", "Z\u0351\u036b\u0343\u036a\u0302a\u0346l\u0327g\u0321o\u0328",
    "\u4e2d\u6587\u6ca1\u6709\u7a7a\u683c", "\ud55c\uad6d\uc5b4", "\u0e44\u0e17\u0e22",
    "\ufb01\u2460\u00bd\u2126",
    "[CLS] [SEP] [MASK] [PAD]", "<s></s><pad><unk><mask>", "##ing ##", "@" * 300, "a" * 5000,
    "<script>alert(1)</script>", "'; DROP TABLE vectors; --", "%s %n {0} {} \\", "../../etc/passwd",
    "None", "nan", "1e309", "-0", "true", '{"a": [1]}', "line\nline\n", "\u2028\u2029",
    "\x1b[31mred",
]  # fmt: skip


def odd_texts(n):
    """Return n texts, most of them different: combinations of two bases."""
    rng = np.random.default_rng(0)
    texts = list(BASES)
    while len(texts) < n:
        one, other = rng.choice(len(BASES), 2)
        texts.append(f"{BASES[one]}{chr(33 + len(texts) % 900)}{BASES[other]}"[:400])
    return texts


@pytest.fixture(scope="module")
def texts():
    return odd_texts(10_000)


@pytest.fixture
def bank(tiny, random_prefix):
    def make(**params):
        prefixes = {name: random_prefix(tiny(), seed=k) for k, name in enumerate("ab")}
        return PrefixBank(prefixes, **(CPU | {"dtype": "float32"} | params))

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_vectors_are_finite_and_in_order(bank, texts, dtype):
    vectors = bank(dtype=dtype, cache=None).transform(texts)
    assert vectors.shape == (10_000, 32)
    assert np.isfinite(vectors).all()
    # Some texts are embedded by themselves too. The vectors must be equal up to rounding.
    some = np.random.default_rng(1).choice(10_000, 60, replace=False)
    alone = np.concatenate([bank(dtype=dtype, cache=None).transform([texts[k]]) for k in some])
    tolerance = 1e-5 if dtype == "float32" else 0.1
    np.testing.assert_allclose(vectors[some], alone, atol=tolerance)


@pytest.mark.parametrize("output_dtype", ["float16", "int8", "binary"])
def test_small_dtypes_are_finite(bank, texts, output_dtype):
    stored = bank(output_dtype=output_dtype, cache=None).transform(texts[:1000])
    assert len(stored) == 1000 and np.isfinite(stored.astype(np.float64)).all()


@pytest.mark.parametrize("pairs", ["joint", "apart"])
def test_pairs_of_odd_texts(bank, texts, pairs):
    rows = list(itertools.pairwise(texts[:1501]))
    vectors = bank(pairs=pairs, cache=None).transform(rows)
    assert np.isfinite(vectors).all()
    some = [3, 700, 1499]
    alone = [bank(pairs=pairs, cache=None).transform([rows[k]])[0] for k in some]
    np.testing.assert_allclose(vectors[some], alone, atol=1e-5)


def test_words_of_odd_texts(bank):
    sentences = [BASES[k : k + 3] for k in range(len(BASES))]
    vectors = bank(output="words", cache=None).transform(sentences)
    assert len(vectors) == sum(map(len, sentences))
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize("on_disk", [False, True])
def test_cache_keeps_odd_texts_apart(bank, texts, tmp_path, on_disk):
    cache = VectorCache(tmp_path / "vectors.db" if on_disk else None)
    expected = bank(cache=None).transform(texts[:2000])
    for _ in range(2):
        np.testing.assert_array_equal(bank(cache=cache).transform(texts[:2000]), expected)
    assert cache.stats().n_vectors == len(set(texts[:2000]))


def test_texts_of_a_megabyte_are_cut_with_a_warning(bank):
    huge = ["word " * (MB // 5), "\U0001f600" * (MB // 4), "x" * MB]
    warning = bank(on_truncate="warn", cache=None)
    with pytest.warns(UserWarning, match="3 of 4 texts are longer than max_length=64 tokens"):
        vectors = warning.transform([*huge, "short"])
    assert np.isfinite(vectors).all()
    short = warning.transform(["short"])
    np.testing.assert_allclose(vectors[3:], short, atol=1e-5)


def test_repeated_texts_are_encoded_once(bank, encoded):
    vectors = bank(cache=None).transform(["the same"] * 100_000)
    assert len(encoded) == 1
    assert vectors.shape == (100_000, 32)
    assert (vectors == vectors[0]).all()
