"""Pooling: from token vectors to one vector per text, word or pair."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pool(
    hidden: Tensor,  # (batch, position, feature)
    mask: Tensor | None,  # (batch, position), False for padding on either side
    pooling: str,
) -> Tensor:
    """Return one float32 vector per text; ``"mean"`` and ``"max"`` include special tokens."""
    if pooling in ("cls", "last"):
        if mask is None:
            # Copied: a view would keep all token vectors of the batch in memory.
            return hidden[:, 0 if pooling == "cls" else -1].to(torch.float32, copy=True)
        if pooling == "cls":
            positions = mask.int().argmax(dim=1)
        else:
            positions = mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), positions].float()
    hidden = hidden.float()
    if pooling == "mean":
        if mask is None:
            return hidden.mean(dim=1)
        kept = mask.unsqueeze(-1)  # (batch, position, 1)
        return hidden.masked_fill(~kept, 0.0).sum(dim=1) / kept.sum(dim=1)
    if mask is not None:
        hidden = hidden.masked_fill(~mask.unsqueeze(-1), -torch.inf)
    return hidden.amax(dim=1)


def pool_words(
    hidden: Tensor,  # (batch, position, feature)
    slots: Tensor,  # (batch, position), each token's word, counted over the batch, or -1
    n_words: int,
) -> Tensor:
    """Return the mean token vector of each word in float32, zeros for a word without tokens."""
    in_word = slots >= 0
    words = slots[in_word]  # (token,)
    sums = hidden.new_zeros((n_words, hidden.shape[-1]), dtype=torch.float32)
    sums = sums.index_add(0, words, hidden[in_word].float())
    n_tokens = torch.bincount(words, minlength=n_words).clamp(min=1)
    return sums / n_tokens.unsqueeze(-1)


def pair_vectors(first: Tensor, second: Tensor) -> Tensor:
    """Return ``[u, v, |u - v|]`` for pairs read apart (Sentence-BERT, arXiv 1908.10084)."""
    return torch.cat([first, second, (first - second).abs()], dim=1)  # (batch, 3 * feature)


def pool_windows(
    vectors: NDArray[np.float32],  # (window, feature), text by text
    lengths: NDArray[np.intp],  # (window,), in tokens
    n_windows: NDArray[np.intp],  # (text,), at least one each
    pooling: str,
) -> NDArray[np.float32]:
    """Pool the vectors of the windows of each text: maximum, or mean weighted by tokens.

    With ``"max"`` and ``"mean"`` this equals pooling the tokens of all windows at once.
    """
    if not len(vectors):
        return vectors
    starts = np.cumsum(n_windows) - n_windows
    if pooling == "max":
        return np.maximum.reduceat(vectors, starts, axis=0)
    weights = lengths.astype(np.float32)[:, None]
    totals = np.add.reduceat(weights, starts, axis=0)
    return np.where(
        n_windows[:, None] == 1,  # bit-identical to reading without windows
        vectors[starts],
        np.add.reduceat(vectors * weights, starts, axis=0) / totals,
    )
