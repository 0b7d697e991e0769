"""What prefixes add to the layers of a backbone, and how several prefixes are combined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefixembed._model.attention import Attend, combined_attention
from prefixembed._model.slots import AddedSlots, AddSlots, SlotTensors, combined_slots


@dataclass(frozen=True)
class Extension:
    """What one forward call adds to its layers; any number of threads may use it."""

    attend: Attend | None = None  # None: tokens attend to tokens alone
    add_slots: AddSlots | None = None  # None: feed-forward layers stay as they are


@dataclass(frozen=True)
class PrefixTensors:
    """One prefix as tensors."""

    keys_values: Tensor  # (layer, 2, head, position, head_dim); there may be no position
    slots: SlotTensors | None = None


def combine(
    prefixes: Sequence[PrefixTensors],
    weights: Sequence[float],  # factor on each prefix's attention mass, and on its slots
    mode: str,
    activation: Callable[[Tensor], Tensor],  # that of the backbone's feed-forward layers
    dtype: torch.dtype,  # that of the backbone
) -> Extension | None:
    """Return the extension by several prefixes; None without any.

    `mode` is ``"concat"`` or ``"mean"``, as `PrefixBank.combine` has it.
    """
    if not prefixes:
        return None
    factors = slot_factors(weights, mode)
    with_slots = [(p.slots, f) for p, f in zip(prefixes, factors, strict=True) if p.slots]
    slots = combined_slots([some for some, _ in with_slots], [f for _, f in with_slots], dtype)
    return Extension(
        combined_attention([prefix.keys_values for prefix in prefixes], weights, mode),
        None if slots is None else AddedSlots(slots, activation),
    )


def slot_factors(weights: Sequence[float], mode: str) -> list[float]:
    """Return the factor on what the slots of each prefix add."""
    return [weight / len(weights) if mode == "mean" else weight for weight in weights]
