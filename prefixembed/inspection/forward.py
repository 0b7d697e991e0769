"""A forward pass in which no token is padding, for functions that measure inside layers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefixembed._embed.batches import pad_batch
from prefixembed._embed.texts import Text
from prefixembed._embed.tokens import tokenize
from prefixembed._embed.truncation import report_truncated
from prefixembed._model.extension import Extension
from prefixembed._model.modes import own_modes
from prefixembed.bank import PrefixBank
from prefixembed.inspection.arguments import reading_of

# What is measured takes memory in addition to the layers: small batches bound it.
_BATCH_TOKENS = 2048


@dataclass
class LayerSums:
    """Sums over sequences, one per layer."""

    sums: dict[int, Tensor] = field(default_factory=dict)

    def add(self, layer: int, values: Tensor) -> None:
        """Add the mean over tokens, (sequence, query or position, ...), of each sequence."""
        total = values.double().mean(1).sum(0)
        self.sums[layer] = self.sums.get(layer, torch.zeros_like(total)) + total


@own_modes(gradients=False)
def mean_over_texts(
    bank: PrefixBank, texts: list[Text], extension: Extension, sums: LayerSums
) -> NDArray[np.float64]:
    """Run texts through the backbone of a bank, and return the mean of what is measured, by layer.

    The extension adds to `sums` in each layer. Each batch has sequences of one length. Texts that
    are too long are cut and reported, even if the bank reads them in windows. A pair that is read
    apart counts as two texts.
    """
    reading = replace(reading_of(bank, texts), windows=False)
    backbone = bank.load_backbone()
    tokens = tokenize(backbone, texts, reading)
    n_truncated = int(tokens.truncated.sum())
    report_truncated(n_truncated, len(texts), reading.max_length, bank.on_truncate)
    sequences = tokens.sequences()
    lengths = sequences.lengths
    with torch.inference_mode():
        for length in np.unique(lengths):
            positions = np.flatnonzero(lengths == length)
            n_batches = min(len(positions), -(-len(positions) * int(length) // _BATCH_TOKENS))
            for some in np.array_split(positions, n_batches):
                batch = pad_batch(sequences, some, backbone.pad_id)
                backbone.forward(batch, extension, reading)
    by_layer = torch.stack([sums.sums[layer] for layer in sorted(sums.sums)])
    return (by_layer / len(lengths)).cpu().numpy()
