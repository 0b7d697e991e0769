"""Attention over prefixes and tokens: what one layer computes, and how prefixes are combined.

Positions are not shifted: a prefix has none. ``_hook.py`` brings it into transformers' models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Prefix positions from which attending to prefixes once for the whole batch, and to tokens by
# themselves, takes less time on a CPU than copying prefixes beside each text's tokens.
_SHARED_FROM = 100


class Attend(Protocol):
    """What a forward call may attend by: attention of one layer."""

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> Tensor:
        """Attend; every tensor but the mask has shape (batch, head, position, head_dim).

        There are as many heads as keys have. Where several heads of queries share one, there are
        that many times more positions of queries than of keys.
        """


def attention_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Give the dtype that attention is computed in.

    SDPA on a CPU is slower in bfloat16 than in float32: forward by a tenth to a half, backward
    five times.
    """
    return torch.float32 if device.type == "cpu" else dtype


def for_attention(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Give tensors in the dtype that attention is computed in."""
    return tuple(tensor.to(attention_dtype(tensor.device, tensor.dtype)) for tensor in tensors)


@dataclass
class OnceACall:
    """Keeps what was made of a mask.

    The layers of a forward call share one mask object (two, where some layers see a window only):
    each is worked on once a call. Assigning a tuple is atomic, so threads may race here.
    """

    _recent: tuple[tuple[Tensor | None, int, Tensor | None], ...] = ()

    def __call__(
        self, mask: Tensor | None, n_tokens: int, make: Callable[[], Tensor | None]
    ) -> Tensor | None:
        for known, length, made in self._recent:
            if known is mask and length == n_tokens:
                return made
        made = make()
        self._recent = ((mask, n_tokens, made), *self._recent[:1])
        return made


@dataclass
class ConcatAttention:
    """One softmax over the positions of all prefixes and the tokens (arXiv 2305.13499).

    Parameters
    ----------
    keys_values : Tensor of shape (layer, 2, head, prefix position, head_dim)
        Prefixes behind each other.
    log_weights : Tensor of shape (prefix position,) or None
        Added to the logits of prefix keys: the logarithm of the factor on their attention mass.
    """

    keys_values: Tensor
    log_weights: Tensor | None = None
    _masks: OnceACall = field(default_factory=OnceACall)

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> Tensor:
        """Attend to prefixes and tokens alike."""
        dtype = query.dtype
        query, key, value = for_attention(query, key, value)
        keys, values = self.keys_values[layer].to(key.dtype)  # (head, prefix position, head_dim)
        if keys.shape[1] >= _SHARED_FROM and key.device.type == "cpu" and not keys.requires_grad:
            mask = self._masks(mask, key.shape[2], lambda: _additive(mask, query.dtype))
            tokens = _attention_with_mass(query, key, value, mask, scaling)
            return _merge(*tokens, *self._of_prefixes(query, keys, values, scaling)).to(dtype)
        rows = key.shape[0], -1, -1, -1
        return scaled_dot_product_attention(
            query,
            torch.cat([keys.expand(rows), key], dim=2),
            torch.cat([values.expand(rows), value], dim=2),
            attn_mask=self._masks(mask, key.shape[2], lambda: self._widen(mask, query, key)),
            scale=scaling,
        ).to(dtype)

    def _of_prefixes(
        self, query: Tensor, keys: Tensor, values: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        # Prefixes are the same for every text: all queries of the batch are one long sequence.
        batch, head, position, head_dim = query.shape
        queries = query.transpose(1, 2).reshape(1, batch * position, head, head_dim)
        bias = (
            None if self.log_weights is None else self.log_weights.to(keys.dtype)[None, None, None]
        )
        output, mass = _attention_with_mass(
            queries.transpose(1, 2), keys[None], values[None], bias, scaling
        )
        output = output.transpose(1, 2).view(batch, position, head, head_dim).transpose(1, 2)
        return output, mass.view(head, batch, position).transpose(0, 1)

    def _widen(self, mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
        length = self.keys_values.shape[3]
        return widen_mask(mask, self.log_weights, length, key.shape[2], query.dtype)


def widen_mask(
    mask: Tensor | None,
    log_weights: Tensor | None,
    length: int,
    n_tokens: int,
    dtype: torch.dtype,
) -> Tensor | None:
    """Put columns for prefix positions before a mask's token columns.

    Parameters
    ----------
    mask : Tensor of shape (batch, 1 or head, 1 or position, position) or None
        Boolean (True: attend), additive, or None where nothing is hidden.
    log_weights : Tensor of shape (length,) or None
        Additive columns of the prefix; None for zeros.
    length : int
        Number of prefix positions.
    n_tokens : int
        Number of token positions.
    dtype : torch.dtype
        Of the queries; an additive mask must have it.

    Returns
    -------
    mask : Tensor of shape (batch, 1 or head, 1 or position, length + position) or None
        Of the kind that was given, additive if there are weights.
    """
    if mask is None:
        if log_weights is None:
            return None
        additive = torch.cat([log_weights, log_weights.new_zeros(n_tokens)])
        return additive.to(dtype).expand(1, 1, 1, -1)
    shape = (*mask.shape[:-1], length)
    if mask.dtype == torch.bool:
        if log_weights is None:
            return torch.cat([mask.new_ones(shape), mask], dim=-1)
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
    columns = mask.new_zeros(shape) if log_weights is None else log_weights.to(mask).expand(shape)
    return torch.cat([columns, mask], dim=-1).to(dtype)


@dataclass
class MeanAttention:
    """Mean over prefixes of the attention to that prefix and the tokens, layer by layer.

    With softmax mass ``Z_x`` over the tokens and ``Z_t`` over prefix t, and ``o_x``, ``o_t`` the
    attention to either alone, a layer's output is the mean over t of
    ``(Z_x o_x + Z_t o_t) / (Z_x + Z_t)``; ``o_x`` and each ``o_t`` are computed once.

    Parameters
    ----------
    keys_values : Tensor of shape (layer, 2, head, prefix, longest, head_dim)
        Prefixes side by side, shorter ones filled up.
    log_weights : Tensor of shape (prefix, longest)
        Added to the logits of prefix keys; minus infinity where a prefix is filled up.
    """

    keys_values: Tensor
    log_weights: Tensor
    _masks: OnceACall = field(default_factory=OnceACall)

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> Tensor:
        """Attend to each prefix with the tokens, and average."""
        dtype = query.dtype
        query, key, value = for_attention(query, key, value)
        n_prefixes, longest = self.log_weights.shape
        batch, head, position, head_dim = query.shape
        mask = self._masks(mask, key.shape[2], lambda: _additive(mask, query.dtype))
        output, mass = _attention_with_mass(query, key, value, mask, scaling)
        output, mass = _tokens_last(output), _tokens_last(mass.unsqueeze(-1))

        # Prefixes are the same for every text: one product a head for all queries of the batch,
        # with queries in the last dimension, along which all that follows is contiguous.
        keys, values = self.keys_values[layer].to(key.dtype).flatten(2, 3)  # (head, slot, head_dim)
        bias = self.log_weights.flatten()[:, None]  # (slot, 1)
        slots = torch.baddbmm(bias, keys.float(), _tokens_last(query).float(), alpha=scaling)
        slots = slots.unflatten(1, (n_prefixes, longest))  # (head, prefix, slot, query)
        largest = torch.maximum(slots.amax(2), mass)  # (head, prefix, query)
        slots = slots.sub_(largest.unsqueeze(2)).exp_()
        tokens = (mass - largest).exp_()
        whole = (tokens + slots.sum(2)).mul_(n_prefixes)
        slots = slots.div_(whole.unsqueeze(2)).flatten(1, 2)  # weights of values: (head, slot, q)
        tokens = (tokens / whole).sum(1, keepdim=True)  # (head, 1, query)
        output = torch.baddbmm(
            (output * tokens).to(value.dtype).transpose(1, 2),
            slots.to(value.dtype).transpose(1, 2),
            values,
        )  # (head, query, head_dim)
        return output.view(head, batch, position, head_dim).transpose(0, 1).to(dtype)


def _tokens_last(tensor: Tensor) -> Tensor:
    # From (batch, head, position, dim) to (head, dim, batch * position): no copy where the
    # backbone has split its heads from (batch, position, feature).
    return tensor.transpose(1, 2).flatten(0, 1).permute(1, 2, 0)


def _merge(one: Tensor, one_mass: Tensor, other: Tensor, other_mass: Tensor) -> Tensor:
    """Make of attention to two sets of keys, with the logarithms of their masses, that to both."""
    return torch.lerp(one, other, torch.sigmoid(other_mass - one_mass).unsqueeze(-1))


def _attention_with_mass(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attend, and give the logarithm of the softmax mass too: (batch, head, position)."""
    if query.device.type == "cpu":
        # What scaled_dot_product_attention calls, which keeps the mass to itself.
        output, mass = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask, scale=scaling
        )
        return output, mass
    logits = _logits(query, key, mask, scaling)
    mass = logits.logsumexp(-1)
    return (logits - mass.unsqueeze(-1)).exp_().to(value.dtype) @ value, mass


def attention_mass(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Give the logarithm of the softmax mass of keys: (batch, head, position)."""
    return _logits(query, key, _additive(mask, torch.float32), scaling).logsumexp(-1)


def _logits(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    # In float32, as the kernels keep them: rounded logits cost a percent of the output.
    logits = query.float() @ key.float().transpose(-1, -2) * scaling  # (batch, head, q, token)
    if mask is None:
        return logits
    return (logits + mask).clamp_(min=torch.finfo(logits.dtype).min)


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None:
        return None
    # The lowest finite number: a row that sees no token stays finite.
    lowest = torch.finfo(dtype).min
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, lowest)
    return mask.to(dtype).clamp(min=lowest)


@dataclass
class Record:
    """Plain attention that keeps the keys and values of chosen tokens.

    Parameters
    ----------
    rows, positions : Tensor of shape (chosen,)
        Which tokens of the batch.
    """

    rows: Tensor
    positions: Tensor
    layers: dict[int, Tensor] = field(default_factory=dict)

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> Tensor:
        """Attend to the tokens, and keep what was asked for."""
        chosen = [t[self.rows, :, self.positions] for t in (key, value)]  # (chosen, head, head_dim)
        self.layers[layer] = torch.stack(chosen).transpose(1, 2).float()  # (2, head, chosen, dim)
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)

    def keys_values(self) -> Tensor:
        """Give what was kept, of shape (layer, 2, head, chosen, head_dim)."""
        return torch.stack([self.layers[layer] for layer in sorted(self.layers)])


def combined_attention(
    parts: Sequence[Tensor], weights: Sequence[float], combine: str
) -> Attend | None:
    """Make of prefixes what forward calls attend by.

    Parameters
    ----------
    parts : sequence of Tensor of shape (layer, 2, head, position, head_dim)
        One a prefix, on the backbone's device. None at all: the bare backbone.
    weights : sequence of float
        Factor on each prefix's attention mass.
    combine : {"concat", "mean"}
        One softmax over all, or the mean over prefixes.

    Returns
    -------
    attend : Attend or None
        Good for any number of forward calls, from any number of threads.
    """
    if not parts:
        return None
    if combine == "mean" and len(parts) > 1:
        return MeanAttention(*side_by_side(parts, weights))
    return ConcatAttention(*behind_each_other(parts, weights))


def behind_each_other(
    parts: Sequence[Tensor], weights: Sequence[float]
) -> tuple[Tensor, Tensor | None]:
    """Arrange prefixes for :class:`ConcatAttention`: its two parameters."""
    combined = torch.cat(list(parts), dim=3)
    if all(weight == 1 for weight in weights):
        return combined, None
    logs = [
        torch.full((part.shape[3],), math.log(weight), device=part.device)
        for part, weight in zip(parts, weights, strict=True)
    ]
    return combined, torch.cat(logs)


def side_by_side(parts: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Arrange prefixes for :class:`MeanAttention`: its two parameters."""
    longest = max(part.shape[3] for part in parts)
    layer, two, head, _, head_dim = parts[0].shape
    combined = parts[0].new_zeros(layer, two, head, len(parts), longest, head_dim)
    logs = torch.full((len(parts), longest), -torch.inf, device=parts[0].device)
    for k, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        combined[:, :, :, k, : part.shape[3]] = part
        logs[k, : part.shape[3]] = math.log(weight)
    return combined, logs
