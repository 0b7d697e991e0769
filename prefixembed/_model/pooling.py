"""Pooling: from one vector a token to one vector a text, and from two of them to a pair's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Mask = Tensor | None


@dataclass(frozen=True)
class Reading:
    """How the backbone reads a text, and how one vector is made of its token vectors.

    Parameters
    ----------
    pooling : {"cls", "mean", "max", "last"}
        As :func:`pool` has it.
    layers : int, default=1
        Number of last layers whose token vectors are averaged first.
    first_position : int, default=0
        Position of the first token.
    """

    pooling: str
    layers: int = 1
    first_position: int = 0


def _cls(hidden: Tensor, mask: Mask) -> Tensor:
    if mask is None:
        return hidden[:, 0].float()
    return _take(hidden, mask.int().argmax(dim=1))


def _last(hidden: Tensor, mask: Mask) -> Tensor:
    if mask is None:
        return hidden[:, -1].float()
    return _take(hidden, mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1))


def _mean(hidden: Tensor, mask: Mask) -> Tensor:
    if mask is None:
        return hidden.float().mean(dim=1)
    kept = mask.unsqueeze(-1)  # (batch, position, 1)
    return hidden.float().masked_fill(~kept, 0.0).sum(dim=1) / kept.sum(dim=1)


def _max(hidden: Tensor, mask: Mask) -> Tensor:
    if mask is None:
        return hidden.float().amax(dim=1)
    return hidden.float().masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(dim=1)


def _take(hidden: Tensor, position: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), position].float()


_POOLINGS: dict[str, Callable[[Tensor, Mask], Tensor]] = {
    "cls": _cls,
    "mean": _mean,
    "max": _max,
    "last": _last,
}


def pool(hidden: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """Reduce token vectors to one float32 vector a text; padding may stand on either side.

    Parameters
    ----------
    hidden : Tensor of shape (batch, position, feature)
        The backbone's last layer.
    mask : bool Tensor of shape (batch, position) or None
        True where there is a token; None where nothing is padded.
    pooling : {"cls", "mean", "max", "last"}
        First token, mean or maximum over all tokens (special ones too), last token.

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
        The backbone's last layer.
    slots : int64 Tensor of shape (batch, position)
        Number of each token's word in the batch; -1 for none.
    n_words : int
        Words of the batch.

    Returns
    -------
    vectors : Tensor of shape (n_words, feature)
        In float32; zeros for a word that has no token.
    """
    belongs = slots >= 0
    slot = slots[belongs]  # (token,)
    sums = hidden.new_zeros((n_words, hidden.shape[-1]), dtype=torch.float32)
    sums = sums.index_add(0, slot, hidden[belongs].float())
    sizes = torch.bincount(slot, minlength=n_words).clamp(min=1)
    return sums / sizes.unsqueeze(-1)


def pair_vectors(first: Tensor, second: Tensor) -> Tensor:
    """Make one vector of the two of a pair whose texts were read apart.

    Parameters
    ----------
    first, second : Tensor of shape (batch, feature)
        Vectors of the first and of the second texts.

    Returns
    -------
    vectors : Tensor of shape (batch, 3 * feature)
        Both, and the absolute value of their difference, beside each other.

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
    """Make one vector a text of those of its windows.

    Parameters
    ----------
    vectors : ndarray of shape (n_windows, n_features)
        Text by text.
    lengths : ndarray of shape (n_windows,)
        Tokens of each window.
    n_windows : ndarray of shape (n_texts,)
        How many windows each text has, at least one.
    pooling : {"cls", "mean", "max", "last"}
        What made a window's vector of those of its tokens.

    Returns
    -------
    vectors : ndarray of shape (n_texts, n_features)
        The largest of each feature for ``"max"``, and otherwise the mean of windows by their
        number of tokens: with ``"max"`` and ``"mean"`` what pooling all their tokens would give.
    """
    if not len(vectors):
        return vectors
    starts = np.cumsum(n_windows) - n_windows
    if pooling == "max":
        return np.maximum.reduceat(vectors, starts, axis=0)
    weights = lengths.astype(np.float32)[:, None]
    totals = np.add.reduceat(weights, starts, axis=0)
    return np.where(
        n_windows[:, None] == 1,  # bit for bit as without windows
        vectors[starts],
        np.add.reduceat(vectors * weights, starts, axis=0) / totals,
    )
