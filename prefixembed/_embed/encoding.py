"""From tokens to vectors, as many texts at a time as fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefixembed._embed.batches import (
    expand,
    fixed_rows,
    pad_batch,
    padded_lengths,
    plan_batches,
    plan_fixed_batches,
    word_slots,
)
from prefixembed._embed.texts import Text, Words, is_pairs
from prefixembed._embed.tokens import Tokens
from prefixembed._model.extension import Extension
from prefixembed._model.pooling import pair_vectors, pool, pool_words
from prefixembed.backbone import Backbone
from prefixembed.reading import Reading

# Tokens per padded batch. On a CPU, the activations of a layer should stay in its cache; on other
# devices, each kernel should have enough to do.
_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768, "mps": 8192}
# The same where every batch is filled up to this number: the fewer, the less is wasted on the last
# batch of each length.
_FIXED_BATCH_TOKENS = {"cpu": 256, "cuda": 8192, "mps": 2048}
# The last one is of cuBLAS and cuDNN, whose own memory is not torch's.
_LACK_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed")


def resolve_batch_tokens(
    batch_tokens: int | str, device: torch.device, batch_invariant: bool = False
) -> int:
    """Return the token budget of a batch; ``"auto"`` depends on the device."""
    if isinstance(batch_tokens, str):
        if batch_invariant:
            return _FIXED_BATCH_TOKENS.get(device.type, 2048)
        return _BATCH_TOKENS.get(device.type, 8192)
    return int(batch_tokens)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if `error` means that the device ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in message for part in _LACK_OF_MEMORY)


def check_readable(reading: Reading, texts: Sequence[Text]) -> None:
    """Refuse windows with joint pairs or words, and a prompt with words."""
    if not len(texts):
        return
    if isinstance(texts[0], Words):
        if reading.windows:
            raise ValueError("on_truncate='window' returns one vector per text, not per word")
        if reading.prompt:
            raise ValueError(f"prompt must be empty for sentences in words, got {reading.prompt!r}")
    elif reading.windows and is_pairs(texts) and reading.pairs != "apart":
        raise ValueError(
            "on_truncate='window' reads each text by itself, and pairs='joint' makes one sequence "
            "of two: use pairs='apart'"
        )


def embed_tokens(
    backbone: Backbone,
    tokens: Tokens,
    extension: Extension | None,
    reading: Reading,
    batch_tokens: int,
    progress: Callable[[int], Any] = int,
    batch_invariant: bool = False,
) -> NDArray[np.float32]:
    """Return one vector per text or word; `progress` gets the number of texts of each batch.

    If the device runs out of memory, the budget is halved; the error is re-raised if a single
    text does not fit. A vector that is not finite raises FloatingPointError.

    If `batch_invariant`, the shape of a text's batch follows from the length of the text and from
    `batch_tokens` alone. A smaller budget would change it, so lack of memory is an error.
    """
    lengths = tokens.lengths
    ends = np.cumsum(tokens.n_vectors)
    width = tokens.vector_width(backbone.n_features)
    vectors = np.empty((ends[-1] if len(ends) else 0, width), dtype=np.float32)
    # Popped from the end: longest first.
    if batch_invariant:
        padded = padded_lengths(lengths, reading.max_length)
        batches = plan_fixed_batches(padded, batch_tokens)[::-1]
    else:
        batches = plan_batches(lengths, batch_tokens)[::-1]
    done = []
    while batches:
        positions = batches.pop()
        shape = None
        if batch_invariant:
            length = int(padded[positions[0]])
            shape = fixed_rows(length, batch_tokens), length
        try:
            pooled = _embed_batch(backbone, tokens, positions, extension, reading, shape)
            done.append((positions, pooled))
        except (RuntimeError, MemoryError) as error:
            if shape is not None and is_out_of_memory(error):
                raise MemoryError(
                    f"no memory for a batch of {shape[0]} rows of {shape[1]} tokens, whose shape "
                    f"is fixed with batch_invariant=True; batch_tokens={batch_tokens} can be "
                    "lowered, which gives other bits"
                ) from error
            if len(positions) == 1 or not is_out_of_memory(error):
                raise
        else:
            progress(len(positions))
            continue
        # Here the error, and with it the tensors of the failed batch, has been released.
        batch_tokens = max(1, int(lengths[positions].max()) * len(positions) // 2)
        left = np.concatenate([positions, *batches[::-1]])
        batches = [left[b] for b in plan_batches(lengths[left], batch_tokens)][::-1]
        if backbone.device.type == "cuda":
            torch.cuda.empty_cache()
    # Fetched last: the device works on its queue while the next batches are laid out.
    for positions, pooled in done:
        vectors[expand(positions, ends)] = pooled.cpu().numpy()
    check_finite(vectors, backbone)
    return vectors


def check_finite(vectors: NDArray[np.float32], backbone: Backbone) -> None:
    """Raise FloatingPointError if a vector is infinite or NaN."""
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise FloatingPointError(
            f"{(~finite).sum()} of {len(vectors)} vectors are not finite: backbone "
            f"{backbone.name!r}, or a prefix, leaves the range of {backbone.dtype}. In float16 "
            "that can happen to any text, and dtype='bfloat16' or 'float32' helps; otherwise "
            "learning_rate was too high"
        )


def encode_batch(
    backbone: Backbone,
    tokens: Tokens,
    positions: NDArray[np.intp],
    extension: Extension | None,
    reading: Reading,
    shape: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Return the float32 vectors of one batch, one per text or word, with gradients.

    `shape` is that of :func:`pad_batch`.
    """
    if tokens.second is not None:
        one, two = (
            encode_batch(backbone, some, positions, extension, reading, shape)
            for some in (replace(tokens, second=None), tokens.second)
        )
        return pair_vectors(one, two)
    batch = pad_batch(tokens, positions, backbone.pad_id, shape)
    hidden, mask = backbone.forward(batch, extension, reading)
    if tokens.words is None:
        return pool(hidden, mask, reading.pooling)[: len(positions)]
    slots = torch.from_numpy(word_slots(tokens, positions, batch.ids.shape)).to(hidden.device)
    return pool_words(hidden, slots, int(tokens.n_vectors[positions].sum()))


_embed_batch = torch.inference_mode()(encode_batch)
