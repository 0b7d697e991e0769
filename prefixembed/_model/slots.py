"""Slots of prefixes in feed-forward layers: what they add, and how prefixes are combined.

``hook.py`` connects this to the layers of transformers' models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear


class FeedForwardOutput(NamedTuple):
    """What one feed-forward layer has read and returned."""

    layer: int
    inputs: Tensor  # (batch, position, feature)
    output: Tensor  # (batch, position, feature)


# Returns the output of one feed-forward layer with slots, shaped like the output without them.
AddSlots = Callable[[FeedForwardOutput], Tensor]


class SlotTensors(NamedTuple):
    """The slots of one or more prefixes as tensors."""

    keys: Tensor  # (layer, slot, feature)
    biases: Tensor  # (layer, slot)
    values: Tensor  # (layer, slot, feature)


@dataclass
class AddedSlots:
    """Add ``act(k_t . x + b_t) v_t`` for each slot t: one product per layer for all prefixes."""

    slots: SlotTensors
    activation: Callable[[Tensor], Tensor]  # that of the backbone
    dropout: Callable[[Tensor], Tensor] | None = None  # of activations, in training

    def __call__(self, layer: FeedForwardOutput) -> Tensor:
        """Return the output of a layer with slots."""
        hidden, values = self.hidden(layer)
        output = torch.addmm(layer.output.flatten(0, -2), hidden, values)  # (token, feature)
        return output.view(layer.output.shape)

    def hidden(self, layer: FeedForwardOutput) -> tuple[Tensor, Tensor]:
        """Return the activation of each slot, (token, slot), and values, (slot, feature)."""
        inputs = layer.inputs.flatten(0, -2)  # (token, feature)
        keys, biases, values = (tensor[layer.layer] for tensor in self.slots)
        hidden = self.activation(linear(inputs, keys, biases))
        return hidden if self.dropout is None else self.dropout(hidden), values


@dataclass
class MeasuredSlots:
    """Add slots, and measure how much they change the output of each layer."""

    add: AddedSlots
    mask: Tensor | None  # (batch, position), True where there is a token. None: everywhere
    # One per layer: mean square of what is added over the mean square of the layer's input.
    effects: list[Tensor] = field(default_factory=list)

    def __call__(self, layer: FeedForwardOutput) -> Tensor:
        """Return the output of a layer with slots."""
        hidden, values = self.add.hidden(layer)
        added = (hidden @ values).view(layer.output.shape)
        self.effects.append(self._size(added) / self._size(layer.inputs.detach()))
        return layer.output + added

    def _size(self, states: Tensor) -> Tensor:
        return (states if self.mask is None else states[self.mask]).float().square().mean()


def combined_slots(
    parts: Sequence[SlotTensors], weights: Sequence[float], dtype: torch.dtype
) -> SlotTensors | None:
    """Return the slots of several prefixes, each scaled by its weight; None without any."""
    if not parts:
        return None
    scaled = [
        part._replace(values=part.values * weight)
        for part, weight in zip(parts, weights, strict=True)
    ]
    return SlotTensors(
        *(torch.cat(tensors, dim=1).to(dtype) for tensors in zip(*scaled, strict=True))
    )
