"""Texts in, vectors out: one device, one dtype, as many texts at a time as fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from prefixembed._attention import Attend
from prefixembed._batching import Text, Tokens, pad_batch, plan_batches, tokenize, unique_texts
from prefixembed._pooling import pool
from prefixembed._warnings import warn
from prefixembed.backbone import Backbone

# Tokens a padded batch. On a CPU what matters is that a layer's activations stay in the cache;
# on other devices that each kernel has enough to do.
_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768, "mps": 8192}


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
    on_truncate : {"warn", "raise", "ignore"}
        How to say it.

    Raises
    ------
    ValueError
        If there are such texts and `on_truncate` is ``"raise"``.
    """
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
    pooling: str,
    batch_tokens: int,
    progress: bool = False,
) -> NDArray[np.float32]:
    """Give one vector a text; a device out of memory halves the budget and goes on.

    Parameters
    ----------
    backbone : Backbone
        The frozen encoder.
    tokens : Tokens
        Tokenized texts.
    prefix : Attend or None
        What every layer attends to beside the tokens.
    pooling : {"cls", "mean", "max", "last"}
        How token vectors become one.
    batch_tokens : int
        Budget of a batch.
    progress : bool, default=False
        Show a progress bar.

    Returns
    -------
    vectors : ndarray of shape (n_texts, n_features)
        In the order of `tokens`.

    Raises
    ------
    torch.OutOfMemoryError, MemoryError or RuntimeError
        If a single text does not fit.
    """
    lengths = tokens.lengths
    vectors = np.empty((len(lengths), backbone.n_features), dtype=np.float32)
    batches = plan_batches(lengths, batch_tokens)[::-1]  # popped from the end: longest first
    with tqdm(total=len(lengths), desc="transform", unit="text", disable=not progress) as bar:
        while batches:
            positions = batches.pop()
            try:
                vectors[positions] = _embed_batch(backbone, tokens, positions, prefix, pooling)
            except (RuntimeError, MemoryError) as error:
                if len(positions) == 1 or not is_out_of_memory(error):
                    raise
                batch_tokens = max(1, int(lengths[positions].max()) * len(positions) // 2)
                left = np.concatenate([positions, *batches[::-1]])
                batches = [left[b] for b in plan_batches(lengths[left], batch_tokens)][::-1]
                if backbone.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            bar.update(len(positions))
    return vectors


@torch.inference_mode()
def _embed_batch(
    backbone: Backbone,
    tokens: Tokens,
    positions: NDArray[np.intp],
    prefix: Attend | None,
    pooling: str,
) -> NDArray[np.float32]:
    hidden, mask = backbone.forward(pad_batch(tokens, positions, backbone.pad_id), prefix)
    vectors: NDArray[np.float32] = pool(hidden, mask, pooling).cpu().numpy()
    return vectors


def embed_texts(
    backbone: Backbone,
    texts: Sequence[Text],
    prefix: Attend | None,
    *,
    pooling: str,
    max_length: int,
    batch_tokens: int | str,
    on_truncate: str,
    progress: bool,
) -> NDArray[np.float32]:
    """Give one vector a text, encoding repeated texts once.

    Parameters
    ----------
    backbone : Backbone
        The frozen encoder.
    texts : sequence of str or of (str, str)
        Checked texts.
    prefix : Attend or None
        What every layer attends to beside the tokens.
    pooling, max_length, batch_tokens, on_truncate, progress
        As in :func:`embed_tokens` and :func:`report_truncated`.

    Returns
    -------
    vectors : ndarray of shape (n_texts, n_features)
        In the order of `texts`.
    """
    unique, inverse = unique_texts(texts)
    tokens = tokenize(backbone.tokenizer(max_length), unique)
    report_truncated(int(tokens.truncated[inverse].sum()), len(texts), max_length, on_truncate)
    budget = resolve_batch_tokens(batch_tokens, backbone.device)
    vectors = embed_tokens(backbone, tokens, prefix, pooling, budget, progress)
    return vectors if len(unique) == len(texts) else vectors[inverse]
