"""What share of attention goes to each prefix, while a text goes through the backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefixembed._embed.batching import Tokens, pad_batch
from prefixembed._model.attention import Attend, attention_mass, combined_attention
from prefixembed.backbone import Backbone


@dataclass
class MeasuredAttention:
    """Attends as another object does, and adds up the share that each prefix gets.

    Parameters
    ----------
    attend : Attend
        What is measured.
    parts : sequence of Tensor of shape (layer, 2, head, position, head_dim)
        Its prefixes.
    weights : sequence of float
        Factor on each prefix's attention mass.
    combine : {"concat", "mean"}
        How they are combined.
    """

    attend: Attend
    parts: Sequence[Tensor]
    weights: Sequence[float]
    combine: str
    sums: dict[int, Tensor] = field(default_factory=dict)  # of a layer: (head, prefix)

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> Tensor:
        """Attend, and measure; no text of the batch may be padded."""
        tokens = attention_mass(query, key, mask, scaling)  # (batch, head, query)
        prefixes = torch.stack(
            [
                attention_mass(query, part[layer, 0][None].to(query), None, scaling) + math.log(w)
                for part, w in zip(self.parts, self.weights, strict=True)
            ],
            dim=-1,
        )  # (batch, head, query, prefix)
        both = torch.cat([prefixes, tokens.unsqueeze(-1)], dim=-1)
        if self.combine == "mean":
            # Each prefix meets the tokens by itself, and has its part of the mean.
            shares = torch.sigmoid(prefixes - tokens.unsqueeze(-1)) / len(self.parts)
        else:
            shares = both.softmax(-1)[..., :-1]
        added = shares.mean(2).sum(0).double()  # (head, prefix)
        self.sums[layer] = self.sums.get(layer, torch.zeros_like(added)) + added
        return self.attend(layer, query, key, value, mask, scaling)


def measure_shares(
    backbone: Backbone,
    tokens: Tokens,
    parts: Sequence[Tensor],
    weights: Sequence[float],
    combine: str,
    first_position: int,
) -> NDArray[np.float64]:
    """Give the mean share of attention of each prefix.

    Parameters
    ----------
    backbone : Backbone
        The frozen encoder.
    tokens : Tokens
        Of at least one text.
    parts : sequence of Tensor of shape (layer, 2, head, position, head_dim)
        Prefixes, on the backbone's device.
    weights : sequence of float
        Factor on each prefix's attention mass.
    combine : {"concat", "mean"}
        How they are combined.
    first_position : int
        Position of the first token.

    Returns
    -------
    shares : ndarray of shape (layer, head, prefix)
        Mean over texts of the mean over their tokens.
    """
    attend = combined_attention(parts, weights, combine)
    assert attend is not None
    measured = MeasuredAttention(attend, parts, weights, combine)
    every = [tokens] if tokens.second is None else [replace(tokens, second=None), tokens.second]
    n_texts = 0
    with torch.inference_mode():
        for some in every:
            lengths = some.lengths
            for length in np.unique(lengths):  # so that nothing is padded
                positions = np.flatnonzero(lengths == length)
                n_chunks = min(len(positions), -(-len(positions) * int(length) // 2048))
                for chunk in np.array_split(positions, n_chunks):
                    batch = pad_batch(some, chunk, backbone.pad_id)
                    backbone.forward(batch, measured, first_position=first_position)
                    n_texts += len(chunk)
    layers = [measured.sums[layer] / n_texts for layer in sorted(measured.sums)]
    return torch.stack(layers).cpu().numpy()
