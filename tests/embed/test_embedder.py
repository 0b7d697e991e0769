"""Embedder: batches, chunks, truncation, lack of memory, iterators and `out`."""

import threading
import warnings

import numpy as np
import pytest
import torch
from conftest import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixembed import VectorCache, load_backbone
from prefixembed._embed import embedder as module
from prefixembed._embed import encoding
from prefixembed._embed.combination import Combination
from prefixembed._embed.embedder import Embedder
from prefixembed._embed.encoding import is_out_of_memory, resolve_batch_tokens
from prefixembed._embed.quantization import quantize
from prefixembed.reading import Reading


def make_embedder(folder, pooling="mean", max_length=64, dtype="float32", **kwargs):
    backbone = load_backbone(folder, dtype=dtype, device="cpu")
    combination = Combination(
        names=(), prefixes=(), weights=(), combine="concat", backbone=folder, revision=None,
        reading=Reading(pooling, max_length), n_features=backbone.n_features,
        fingerprint=backbone.fingerprint,
    )  # fmt: skip
    settings = {"cache": None, "batch_tokens": 1024, "on_truncate": "warn", "device": "cpu"}
    return Embedder(combination, **(settings | {"dtype": dtype} | kwargs))


def embed(folder, texts, *, progress=False, out=None, **kwargs):
    return module.embed(make_embedder(folder, **kwargs), texts, out, progress)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_CHUNK", 2)
    monkeypatch.setattr(module, "CHUNK", 8)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last"])
def test_vectors_do_not_depend_on_batches_or_order(tiny, pooling):
    rng = np.random.default_rng(0)
    texts = [
        " ".join("word"[: rng.integers(1, 5)] for _ in range(rng.integers(9))) for _ in range(60)
    ]
    expected = np.concatenate([embed(tiny(), [text], pooling=pooling) for text in texts])
    for budget in (1, 100, 10_000):
        vectors = embed(tiny(), texts, pooling=pooling, batch_tokens=budget)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    shuffled = rng.permutation(len(texts))
    vectors = embed(tiny(), [texts[k] for k in shuffled], pooling=pooling)
    np.testing.assert_allclose(vectors, expected[shuffled], atol=1e-5)


def test_repeated_texts_are_encoded_once(tiny, encoded):
    vectors = embed(tiny(), ["a", "b", "a", "a", "b"] * 20)
    assert len(encoded) == 2
    assert vectors.shape == (100, 32)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert np.abs(vectors[0] - vectors[1]).max() > 0.01


def test_no_texts_give_no_vectors(tiny):
    assert embed(tiny(), []).shape == (0, 32)


def test_truncated_texts_are_reported_once(tiny):
    texts = ["x" * 100, "x" * 100, "y" * 62, "y" * 63]
    with pytest.warns(UserWarning, match="3 of 4 texts are longer than max_length=64") as w:
        embed(tiny(), texts)
    assert len(w) == 1
    assert w[0].filename == __file__, "the warning must point to the caller"
    with pytest.raises(ValueError, match="3 of 4 .*on_truncate='raise'"):
        embed(tiny(), texts, on_truncate="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embed(tiny(), texts, on_truncate="ignore")
        embed(tiny(), ["y" * 62])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_budget_and_continues(tiny, monkeypatch, error):
    expected = embed(tiny(), TEXTS * 3 + ["one more"])
    real = encoding._embed_batch
    sizes = []

    def small_device(backbone, tokens, positions, *args):
        size = len(positions) * tokens.lengths[positions].max()
        sizes.append(int(size))
        if size > 60:
            raise error
        return real(backbone, tokens, positions, *args)

    monkeypatch.setattr(encoding, "_embed_batch", small_device)
    vectors = embed(tiny(), TEXTS * 3 + ["one more"], batch_tokens=500)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert sum(size > 60 for size in sizes) >= 2
    # Once a batch fits, no later one fails.
    failed = [k for k, size in enumerate(sizes) if size > 60]
    assert failed == list(range(len(failed)))


def test_text_that_does_not_fit_by_itself_raises(tiny, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoding, "_embed_batch", full)
    with pytest.raises(torch.OutOfMemoryError):
        embed(tiny(), TEXTS)


def test_other_errors_do_not_count_as_lack_of_memory(tiny, monkeypatch):
    calls = []

    def broken(*args):
        calls.append(args)
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(encoding, "_embed_batch", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        embed(tiny(), TEXTS)
    assert len(calls) == 1
    assert not is_out_of_memory(ValueError("out of memory"))


def test_auto_batch_tokens_depends_on_the_device():
    assert resolve_batch_tokens("auto", torch.device("cpu")) < resolve_batch_tokens(
        "auto", torch.device("cuda")
    )
    assert resolve_batch_tokens(77, torch.device("cpu")) == 77


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_unusual_texts_have_finite_vectors(tiny, dtype):
    texts = [
        "",
        " \n\t ",
        "\x00",
        "\ud800",
        "\u202eאבג",
        "\U0001f468\u200d\U0001f469" * 9,
        "x" * 9999,
    ]
    vectors = embed(tiny(), texts, dtype=dtype, batch_tokens=256, on_truncate="ignore")
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()


odd_text = st.text(st.characters(), max_size=40)


@given(st.lists(st.one_of(odd_text, st.builds(str.__mul__, odd_text, st.integers(0, 9)))))
@settings(max_examples=30, deadline=None)
def test_vector_of_any_text_does_not_depend_on_other_texts(tiny, texts):
    params = {"on_truncate": "ignore", "batch_tokens": 100}
    vectors = embed(tiny(), texts, **params)
    assert vectors.shape == (len(texts), 32)
    assert np.isfinite(vectors).all()
    for text, vector in zip(texts[:3], vectors, strict=False):
        np.testing.assert_allclose(embed(tiny(), [text], **params)[0], vector, atol=1e-5)


def test_progress_bar_counts_texts(tiny, capsys):
    embed(tiny(), TEXTS, progress=True)
    assert f"{len(TEXTS)}/{len(TEXTS)}" in capsys.readouterr().err


SOME = [f"text {k % 23} " * (k % 5) for k in range(60)]


@pytest.mark.parametrize("cached", [False, True])
def test_chunks_do_not_affect_vectors(tiny, small_chunks, cached):
    vectors = embed(tiny(), SOME, cache=VectorCache() if cached else None)
    alone = np.concatenate([embed(tiny(), [text]) for text in SOME])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)


def test_next_chunk_is_tokenized_while_one_is_encoded(tiny, small_chunks, monkeypatch):
    tokenized, behind = [], []
    real_tokenize, real_batch = module.tokenize, encoding._embed_batch
    started = threading.Semaphore(0)

    def tokenize(*args, **kwargs):
        tokenized.append(1)
        started.release()
        return real_tokenize(*args, **kwargs)

    def encode(*args):
        # Tokenization of the second chunk starts before the first chunk is encoded.
        if not behind:
            assert started.acquire(timeout=10) and started.acquire(timeout=10)
        behind.append(len(tokenized))
        return real_batch(*args)

    monkeypatch.setattr(module, "tokenize", tokenize)
    monkeypatch.setattr(encoding, "_embed_batch", encode)
    embed(tiny(), [f"text {k}" for k in range(30)])
    assert behind[0] >= 2


def test_iterators_and_out_return_the_vectors_of_a_list(tiny, tmp_path):
    expected = embed(tiny(), SOME)
    lists = (SOME[k : k + 7] for k in range(0, len(SOME), 7))
    np.testing.assert_allclose(embed(tiny(), lists), expected, atol=1e-5)

    out = np.lib.format.open_memmap(tmp_path / "v.npy", "w+", np.float32, (64, 32))
    lists = (SOME[k : k + 7] for k in range(0, len(SOME), 7))
    written = embed(tiny(), lists, out=out)
    assert written.shape == (60, 32) and np.shares_memory(written, out)
    out.flush()
    np.testing.assert_allclose(np.load(tmp_path / "v.npy")[:60], expected, atol=1e-5)
    assert embed(tiny(), iter([])).shape == (0, 32)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ([[0.0]], "got list"),
        (np.zeros((3, 32)), "float32 .*got float64"),
        (np.zeros((3, 31), np.float32), r"shape \(2, 32\), got float32 and \(3, 31\)"),
        (np.zeros((3, 32), np.float32), r"shape \(2, 32\)"),
        (np.broadcast_to(np.float32(0), (2, 32)), "read-only"),
    ],
)
def test_out_of_another_shape_or_dtype_is_refused(tiny, out, message):
    with pytest.raises(ValueError, match=message):
        embed(tiny(), ["a", "b"], out=out)


def test_out_with_too_few_rows_for_an_iterator_is_refused(tiny):
    with pytest.raises(ValueError, match="out has 3 rows"):
        embed(tiny(), iter([["a", "b"], ["c", "d"]]), out=np.zeros((3, 32), np.float32))


def test_on_truncate_raise_stops_before_later_texts_are_encoded(tiny, small_chunks, encoded):
    texts = ["a", "b", "x" * 99, *(f"text {k}" for k in range(40))]
    with pytest.raises(ValueError, match="1 of 6 texts are longer"):
        embed(tiny(), texts, on_truncate="raise")
    assert len(encoded) == 2


def test_truncation_of_cached_texts_is_reported(tiny):
    cache = VectorCache()
    for _ in range(2):
        with pytest.warns(UserWarning, match="2 of 3 texts are longer than max_length=64"):
            embed(tiny(), ["x" * 99, "x" * 99, "y"], cache=cache)
    assert cache.stats().hits == 2
    with pytest.raises(ValueError, match="2 of 3"):
        embed(tiny(), ["x" * 99, "x" * 99, "y"], cache=cache, on_truncate="raise")


@pytest.mark.parametrize("output_dtype", ["float16", "int8", "binary"])
def test_output_dtype_is_applied_row_by_row(tiny, small_chunks, output_dtype):
    expected = quantize(embed(tiny(), SOME, batch_tokens=1), output_dtype)
    vectors = embed(tiny(), SOME, batch_tokens=1, output_dtype=output_dtype)
    np.testing.assert_array_equal(vectors, expected)
    out = np.empty_like(expected)
    assert embed(tiny(), SOME, batch_tokens=1, output_dtype=output_dtype, out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_cached_row_of_another_length_is_ignored(tiny):
    cache = VectorCache()
    embedder = make_embedder(tiny(), cache=cache)
    keys = embedder.representation.keys(["a"])
    cache.put(keys, np.ones((1, 31), np.float32), np.zeros(1, bool))
    np.testing.assert_array_equal(module.embed(embedder, ["a"]), embed(tiny(), ["a"]))
