"""Pooling: from token vectors to one vector per text, word or pair."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def _cls(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden[:, 0].float()
    return _take(hidden, mask.int().argmax(dim=1))


def _last(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden[:, -1].float()
    return _take(hidden, mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1))


def _mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden.float().mean(dim=1)
    kept = mask.unsqueeze(-1)  # (batch, position, 1)
    return hidden.float().masked_fill(~kept, 0.0).sum(dim=1) / kept.sum(dim=1)


def _max(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden.float().amax(dim=1)
    return hidden.float().masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(dim=1)


def _take(hidden: Tensor, position: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), position].float()


_POOLINGS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "cls": _cls,
    "mean": _mean,
    "max": _max,
    "last": _last,
}


def pool(hidden: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """Pool the token vectors of each text into one vector.

    Parameters
    ----------
    hidden : Tensor of shape (batch, position, feature)
        Token vectors.
    mask : bool Tensor of shape (batch, position) or None
        True for tokens, False for padding on either side. None if nothing is padded.
    pooling : {"cls", "mean", "max", "last"}
        How token vectors become one:

        - ``"cls"`` or ``"last"``: the vector of the first or the last token;
        - ``"mean"`` or ``"max"``: the mean or the maximum over all tokens, special tokens
          included.

    Returns
    -------
    vectors : Tensor of shape (batch, feature)
        In float32, whatever the dtype of `hidden`.
    """
    return _POOLINGS[pooling](hidden, mask)


def pool_words(hidden: Tensor, slots: Tensor, n_words: int) -> Tensor:
    """Average the token vectors of each word.

    Parameters
    ----------
    hidden : Tensor of shape (batch, position, feature)
        Token vectors.
    slots : int64 Tensor of shape (batch, position)
        Index of the word that each token belongs to, counted over the batch; -1 if it belongs to
        no word.
    n_words : int
        Number of words in the batch.

    Returns
    -------
    vectors : Tensor of shape (n_words, feature)
        In float32. Zeros for a word without tokens.
    """
    in_word = slots >= 0
    words = slots[in_word]  # (token,)
    sums = hidden.new_zeros((n_words, hidden.shape[-1]), dtype=torch.float32)
    sums = sums.index_add(0, words, hidden[in_word].float())
    n_tokens = torch.bincount(words, minlength=n_words).clamp(min=1)
    return sums / n_tokens.unsqueeze(-1)


def pair_vectors(first: Tensor, second: Tensor) -> Tensor:
    """Return the vectors of pairs whose texts were read apart.

    Parameters
    ----------
    first, second : Tensor of shape (batch, feature)
        Vectors u of the first texts and v of the second texts.

    Returns
    -------
    vectors : Tensor of shape (batch, 3 * feature)
        ``[u, v, |u - v|]`` [1]_.

    References
    ----------
    .. [1] N. Reimers and I. Gurevych, "Sentence-BERT", arXiv 1908.10084, 2019, section 3 and
       table 6.
    """
    return torch.cat([first, second, (first - second).abs()], dim=1)


def pool_windows(
    vectors: NDArray[np.float32],
    lengths: NDArray[np.intp],
    n_windows: NDArray[np.intp],
    pooling: str,
) -> NDArray[np.float32]:
    """Pool the vectors of the windows of each text into one vector.

    Parameters
    ----------
    vectors : ndarray of shape (total, n_features)
        Vectors of all windows, text by text.
    lengths : ndarray of shape (total,)
        Number of tokens of each window.
    n_windows : ndarray of shape (n_texts,)
        Number of windows of each text, at least one.
    pooling : {"cls", "mean", "max", "last"}
        How the token vectors of a window were pooled.

    Returns
    -------
    vectors : ndarray of shape (n_texts, n_features)
        For ``"max"``, the maximum over windows. Otherwise the mean over windows, weighted by
        their number of tokens. With ``"max"`` and ``"mean"`` this equals pooling the tokens of
        all windows at once.
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
