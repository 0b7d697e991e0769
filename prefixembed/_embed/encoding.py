"""Tokens in, vectors out: one device, one dtype, as many texts at a time as fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefixembed._embed.batching import Tokens, expand, pad_batch, plan_batches, word_slots
from prefixembed._model.attention import Attend
from prefixembed._model.pooling import Reading, pair_vectors, pool, pool_words
from prefixembed._utils.warnings import warn
from prefixembed.backbone import Backbone

# Tokens a padded batch. On a CPU what matters is that a layer's activations stay in the cache;
# on other devices that each kernel has enough to do.
_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768, "mps": 8192}


# Where numbers of texts that were cut are put, for a caller that speaks of many calls at once.
_tally: ContextVar[list[int] | None] = ContextVar("tally", default=None)


@contextmanager
def count_truncated() -> Iterator[list[int]]:
    """Gather how many texts each call in this thread cuts, rather than warn of each.

    Yields
    ------
    tally : list of int
        Grows by a number a call.
    """
    tally: list[int] = []
    token = _tally.set(tally)
    try:
        yield tally
    finally:
        _tally.reset(token)


def resolve_batch_tokens(batch_tokens: int | str, device: torch.device) -> int:
    """Give the token budget of a batch; ``"auto"`` goes by the device."""
    if isinstance(batch_tokens, str):
        return _BATCH_TOKENS.get(device.type, 8192)
    return int(batch_tokens)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that a device has no room left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in message or "can't allocate memory" in message
    )


def report_truncated(n_truncated: int, n_texts: int, max_length: int, on_truncate: str) -> None:
    """Say how many texts are longer than the limit.

    Parameters
    ----------
    n_truncated, n_texts : int
        How many of how many.
    max_length : int
        In tokens.
    on_truncate : {"warn", "raise", "ignore", "window"}
        How to say it. Where windows are asked for, but cannot be had, it is a warning.

    Raises
    ------
    ValueError
        If there are such texts and `on_truncate` is ``"raise"``.
    """
    tally = _tally.get()
    if tally is not None and on_truncate != "raise":
        tally.append(n_truncated)
        return
    if not n_truncated or on_truncate == "ignore":
        return
    message = f"{n_truncated} of {n_texts} texts are longer than max_length={max_length} tokens"
    if on_truncate == "raise":
        raise ValueError(f"{message}; on_truncate='raise' refuses to cut them")
    warn(f"{message} and were cut")


def embed_tokens(
    backbone: Backbone,
    tokens: Tokens,
    prefix: Attend | None,
    reading: Reading,
    batch_tokens: int,
    progress: Callable[[int], Any] = int,
) -> NDArray[np.float32]:
    """Give one vector a text or a word; a device out of memory halves the budget and goes on.

    Parameters
    ----------
    backbone : Backbone
        The frozen encoder.
    tokens : Tokens
        Tokenized texts.
    prefix : Attend or None
        What every layer attends to beside the tokens.
    reading : Reading
        How token vectors become one.
    batch_tokens : int
        Budget of a batch.
    progress : callable, default=int
        Is told the number of texts of each batch that is done.

    Returns
    -------
    vectors : ndarray of shape (n_texts, n_features), or (n_words, n_features)
        In the order of `tokens`.

    Raises
    ------
    FloatingPointError
        If a vector is not finite.
    torch.OutOfMemoryError, MemoryError or RuntimeError
        If a single text does not fit.
    """
    lengths = tokens.lengths
    ends = np.cumsum(tokens.n_vectors)
    width = tokens.vector_width(backbone.n_features)
    vectors = np.empty((ends[-1] if len(ends) else 0, width), dtype=np.float32)
    batches = plan_batches(lengths, batch_tokens)[::-1]  # popped from the end: longest first
    done = []
    while batches:
        positions = batches.pop()
        try:
            done.append((positions, _embed_batch(backbone, tokens, positions, prefix, reading)))
        except (RuntimeError, MemoryError) as error:
            if len(positions) == 1 or not is_out_of_memory(error):
                raise
            batch_tokens = max(1, int(lengths[positions].max()) * len(positions) // 2)
            left = np.concatenate([positions, *batches[::-1]])
            batches = [left[b] for b in plan_batches(lengths[left], batch_tokens)][::-1]
            if backbone.device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        progress(len(positions))
    # Fetched last: a device works on its queue while the next batches are laid out.
    for positions, pooled in done:
        vectors[expand(positions, ends)] = pooled.cpu().numpy()
    check_finite(vectors, backbone)
    return vectors


def check_finite(vectors: NDArray[np.float32], backbone: Backbone) -> None:
    """Refuse vectors that are infinite or NaN.

    Parameters
    ----------
    vectors : ndarray of shape (n_vectors, n_features)
        What came out.
    backbone : Backbone
        What they came from.

    Raises
    ------
    FloatingPointError
        If there is one.
    """
    if np.isfinite(vectors).all():
        return
    n_bad = int((~np.isfinite(vectors)).any(axis=1).sum())
    raise FloatingPointError(
        f"{n_bad} of {len(vectors)} vectors are not finite: backbone {backbone.name!r}, or a "
        f"prefix, leaves the range of {backbone.dtype}. In float16 that can happen to any "
        "text, and dtype='bfloat16' or 'float32' helps; otherwise learning_rate was too high"
    )


@torch.inference_mode()
def _embed_batch(
    backbone: Backbone,
    tokens: Tokens,
    positions: NDArray[np.intp],
    prefix: Attend | None,
    reading: Reading,
) -> torch.Tensor:
    return encode_batch(backbone, tokens, positions, prefix, reading)


def encode_batch(
    backbone: Backbone,
    tokens: Tokens,
    positions: NDArray[np.intp],
    prefix: Attend | None,
    reading: Reading,
) -> torch.Tensor:
    """Run some texts through a backbone, gradients and all.

    Parameters
    ----------
    backbone : Backbone
        The encoder.
    tokens : Tokens
        Tokenized texts.
    positions : ndarray of shape (batch,)
        Which of them.
    prefix : Attend or None
        What every layer attends to beside the tokens.
    reading : Reading
        How token vectors become one; those of a word are averaged.

    Returns
    -------
    vectors : Tensor of shape (batch, feature), or (word, feature) of sentences in words
        In float32, text by text. Of pairs that are read apart, as :func:`pair_vectors` has it.
    """
    if tokens.second is not None:
        one, two = (
            encode_batch(backbone, some, positions, prefix, reading)
            for some in (replace(tokens, second=None), tokens.second)
        )
        return pair_vectors(one, two)
    batch = pad_batch(tokens, positions, backbone.pad_id)
    hidden, mask = backbone.forward(batch, prefix, reading.layers, reading.first_position)
    if tokens.words is None:
        return pool(hidden, mask, reading.pooling)
    slots = torch.from_numpy(word_slots(tokens, positions, hidden.shape[1])).to(hidden.device)
    return pool_words(hidden, slots, int(tokens.n_vectors[positions].sum()))
