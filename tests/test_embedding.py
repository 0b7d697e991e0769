import warnings

import numpy as np
import pytest
import torch
from conftest import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixembed import _embedding, load_backbone
from prefixembed._embedding import embed_texts, is_out_of_memory, resolve_batch_tokens


def embed(folder, texts, **kwargs):
    settings = {
        "pooling": "mean",
        "max_length": 64,
        "batch_tokens": 1024,
        "on_truncate": "warn",
        "progress": False,
    }
    backbone = load_backbone(folder, dtype="float32", device="cpu")
    return embed_texts(backbone, texts, None, **(settings | kwargs))


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


def test_repeated_texts_are_encoded_once(tiny, monkeypatch):
    seen = []
    real = _embedding._embed_batch

    def count(backbone, tokens, positions, *args):
        seen.append(len(positions))
        return real(backbone, tokens, positions, *args)

    monkeypatch.setattr(_embedding, "_embed_batch", count)
    vectors = embed(tiny(), ["a", "b", "a", "a", "b"] * 20)
    assert sum(seen) == 2
    assert vectors.shape == (100, 32)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert np.abs(vectors[0] - vectors[1]).max() > 0.01


def test_no_texts_give_no_rows(tiny):
    assert embed(tiny(), []).shape == (0, 32)


def test_texts_cut_short_are_counted_once(tiny):
    texts = ["x" * 100, "x" * 100, "y" * 62, "y" * 63]
    with pytest.warns(UserWarning, match="3 of 4 texts are longer than max_length=64") as w:
        embed(tiny(), texts)
    assert len(w) == 1
    assert w[0].filename == __file__, "a warning points at the line of the user"
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
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_budget_and_goes_on(tiny, monkeypatch, error):
    expected = embed(tiny(), TEXTS * 3 + ["one more"])
    real = _embedding._embed_batch
    sizes = []

    def small_device(backbone, tokens, positions, *args):
        size = len(positions) * tokens.lengths[positions].max()
        sizes.append(int(size))
        if size > 60:
            raise error
        return real(backbone, tokens, positions, *args)

    monkeypatch.setattr(_embedding, "_embed_batch", small_device)
    vectors = embed(tiny(), TEXTS * 3 + ["one more"], batch_tokens=500)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert sum(size > 60 for size in sizes) >= 2
    failed = [k for k, size in enumerate(sizes) if size > 60]
    assert failed == list(range(len(failed))), "once it fits, no later batch may fail"


def test_a_text_that_does_not_fit_alone_is_an_error(tiny, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(_embedding, "_embed_batch", full)
    with pytest.raises(torch.OutOfMemoryError):
        embed(tiny(), TEXTS)


def test_other_errors_are_not_taken_for_lack_of_memory(tiny, monkeypatch):
    calls = []

    def broken(*args):
        calls.append(args)
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(_embedding, "_embed_batch", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        embed(tiny(), TEXTS)
    assert len(calls) == 1
    assert not is_out_of_memory(ValueError("out of memory"))


def test_auto_budget_goes_by_the_device():
    assert resolve_batch_tokens("auto", torch.device("cpu")) < resolve_batch_tokens(
        "auto", torch.device("cuda")
    )
    assert resolve_batch_tokens(77, torch.device("cpu")) == 77


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_odd_texts_give_finite_vectors(tiny, dtype):
    backbone = load_backbone(tiny(), dtype=dtype, device="cpu")
    texts = [
        "",
        " \n\t ",
        "\x00",
        "\ud800",
        "\u202eאבג",
        "\U0001f468\u200d\U0001f469" * 9,
        "x" * 9999,
    ]
    vectors = embed_texts(
        backbone, texts, None, pooling="mean", max_length=64, batch_tokens=256,
        on_truncate="ignore", progress=False,
    )  # fmt: skip
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()


odd_text = st.text(st.characters(), max_size=40)


@given(st.lists(st.one_of(odd_text, st.builds(str.__mul__, odd_text, st.integers(0, 9)))))
@settings(max_examples=30, deadline=None)
def test_any_unicode_gives_the_vector_that_it_gives_alone(tiny, texts):
    params = {"on_truncate": "ignore", "batch_tokens": 100}
    vectors = embed(tiny(), texts, **params)
    assert vectors.shape == (len(texts), 32)
    assert np.isfinite(vectors).all()
    for text, vector in zip(texts[:3], vectors, strict=False):
        np.testing.assert_allclose(embed(tiny(), [text], **params)[0], vector, atol=1e-5)


def test_a_progress_bar_counts_texts(tiny, capsys):
    embed(tiny(), TEXTS, progress=True)
    assert f"{len(TEXTS)}/{len(TEXTS)}" in capsys.readouterr().err
