"""Attention to prefixes and tokens: what one layer computes, and how prefixes are combined.

A prefix has no position, so the positions of tokens are not shifted. ``hook.py`` connects this to
the layers of transformers' models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Number of prefix positions from which it is faster on a CPU to attend to the prefixes once for the
# whole batch, and to the tokens separately, than to copy the prefixes for each text.
_MIN_SHARED_LENGTH = 100


class LayerInput(NamedTuple):
    """The arguments of one layer's attention; n_groups query heads share a key head."""

    layer: int
    query: Tensor  # (batch, head, n_groups * position, head_dim)
    key: Tensor  # (batch, head, position, head_dim)
    value: Tensor  # (batch, head, position, head_dim)
    # (batch, 1 or head, 1 or n_groups * position, position), boolean (True: attend) or additive.
    # None if each token sees all tokens.
    mask: Tensor | None
    scaling: float  # factor on the products of queries and keys


# Returns the output of one layer's attention, shaped like the queries and in their dtype.
Attend = Callable[[LayerInput], Tensor]


def attention_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return float32 on a CPU, where SDPA in bfloat16 is slower, up to five times backward."""
    return torch.float32 if device.type == "cpu" else dtype


def to_attention_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Convert tensors to the dtype that attention is computed in."""
    return tuple(tensor.to(attention_dtype(tensor.device, tensor.dtype)) for tensor in tensors)


@dataclass
class MaskCache:
    """Convert the mask of a forward call once rather than in each layer.

    All layers are given the same mask object, or one of two objects in models where some layers
    see a window only. The cache is replaced in one assignment, so threads may share it.
    """

    _recent: tuple[tuple[Tensor | None, int, Tensor | None], ...] = ()

    def __call__(
        self, mask: Tensor | None, n_tokens: int, convert: Callable[[], Tensor | None]
    ) -> Tensor | None:
        """Return the converted mask, from the cache if `mask` is one of the last two."""
        for known, length, converted in self._recent:
            if known is mask and length == n_tokens:
                return converted
        converted = convert()
        self._recent = ((mask, n_tokens, converted), *self._recent[:1])
        return converted


@dataclass
class ConcatAttention:
    """Attend to all prefixes and the tokens in one softmax (arXiv 2305.13499)."""

    keys_values: Tensor  # (layer, 2, head, prefix position, head_dim)
    # (prefix position,): logarithm of the factor on each position's attention mass. None: all 1.
    log_weights: Tensor | None = None
    _masks: MaskCache = field(default_factory=MaskCache)

    def __call__(self, inputs: LayerInput) -> Tensor:
        """Attend to prefixes and tokens."""
        query, key, value = to_attention_dtype(inputs.query, inputs.key, inputs.value)
        mask, scaling = inputs.mask, inputs.scaling
        keys, values = self.keys_values[inputs.layer].to(key.dtype)  # (head, prefix position, dim)
        length, n_tokens = keys.shape[1], key.shape[2]
        shared = length >= _MIN_SHARED_LENGTH and not keys.requires_grad
        if shared and key.device.type == "cpu":
            additive = self._masks(mask, n_tokens, lambda: _to_additive(mask, query.dtype))
            output, mass = _attention_with_mass(query, key, value, additive, scaling)
            prefixes, prefix_mass = self._attend_to_prefixes(query, keys, values, scaling)
            share = torch.sigmoid(prefix_mass - mass).unsqueeze(-1)
            return torch.lerp(output, prefixes, share).to(inputs.query.dtype)
        widened = self._masks(
            mask,
            n_tokens,
            lambda: widen_mask(mask, self.log_weights, length, n_tokens, query.dtype),
        )
        rows = key.shape[0], -1, -1, -1
        return scaled_dot_product_attention(
            query,
            torch.cat([keys.expand(rows), key], dim=2),
            torch.cat([values.expand(rows), value], dim=2),
            attn_mask=widened,
            scale=scaling,
        ).to(inputs.query.dtype)

    def _attend_to_prefixes(
        self, query: Tensor, keys: Tensor, values: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        # All texts share the prefixes, so the queries of the batch form one long sequence.
        batch, head, position, head_dim = query.shape
        queries = query.transpose(1, 2).reshape(1, batch * position, head, head_dim)
        bias = None
        if self.log_weights is not None:
            bias = self.log_weights.to(keys.dtype)[None, None, None]  # (1, 1, 1, prefix position)
        output, mass = _attention_with_mass(
            queries.transpose(1, 2), keys[None], values[None], bias, scaling
        )
        output = output.transpose(1, 2).view(batch, position, head, head_dim).transpose(1, 2)
        return output, mass.view(head, batch, position).transpose(0, 1)


def widen_mask(
    mask: Tensor | None,  # (batch, 1 or head, 1 or position, position), boolean or additive
    log_weights: Tensor | None,  # (length,), added to the logits of prefix positions
    length: int,
    n_tokens: int,
    dtype: torch.dtype,
) -> Tensor | None:
    """Insert columns for prefix positions before the token columns of a mask.

    The mask becomes additive, in `dtype`, if `log_weights` is given; otherwise it keeps its kind.
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
    """Attend to each prefix together with the tokens, and average the outputs in each layer.

    Let ``o_x`` be the attention to the tokens alone and ``Z_x`` its softmax mass, and ``o_t`` and
    ``Z_t`` those of prefix t alone. The output of a layer is the mean over t of
    ``(Z_x o_x + Z_t o_t) / (Z_x + Z_t)``. ``o_x`` and each ``o_t`` are computed once.
    """

    keys_values: Tensor  # (layer, 2, head, prefix, longest, head_dim); shorter ones are padded
    # (prefix, longest): logarithm of the factor on each position's attention mass; minus infinity
    # for padding.
    log_weights: Tensor
    _masks: MaskCache = field(default_factory=MaskCache)

    def __call__(self, inputs: LayerInput) -> Tensor:
        """Attend to each prefix with the tokens, and average."""
        query, key, value = to_attention_dtype(inputs.query, inputs.key, inputs.value)
        mask, scaling = inputs.mask, inputs.scaling
        n_prefixes, longest = self.log_weights.shape
        batch, head, position, head_dim = query.shape
        additive = self._masks(mask, key.shape[2], lambda: _to_additive(mask, query.dtype))
        output, mass = _attention_with_mass(query, key, value, additive, scaling)
        output, mass = _queries_last(output), _queries_last(mass.unsqueeze(-1))

        # All texts share the prefixes, so one product per head serves the queries of the whole
        # batch. The queries are the last dimension: what follows runs along contiguous memory.
        keys, values = self.keys_values[inputs.layer].to(key.dtype).flatten(2, 3)
        bias = self.log_weights.flatten()[:, None]  # (prefix * longest, 1)
        logits = torch.baddbmm(bias, keys.float(), _queries_last(query).float(), alpha=scaling)
        logits = logits.unflatten(1, (n_prefixes, longest))  # (head, prefix, longest, query)
        largest = torch.maximum(logits.amax(2), mass)  # (head, prefix, query)
        prefix_weights = logits.sub_(largest.unsqueeze(2)).exp_()
        token_weights = (mass - largest).exp_()
        total = (token_weights + prefix_weights.sum(2)).mul_(n_prefixes)
        # (head, prefix * longest, query)
        prefix_weights = prefix_weights.div_(total.unsqueeze(2)).flatten(1, 2)
        token_weights = (token_weights / total).sum(1, keepdim=True)  # (head, 1, query)
        output = torch.baddbmm(
            (output * token_weights).to(value.dtype).transpose(1, 2),
            prefix_weights.to(value.dtype).transpose(1, 2),
            values,
        )  # (head, query, head_dim)
        output = output.view(head, batch, position, head_dim).transpose(0, 1)
        return output.to(inputs.query.dtype)


def _queries_last(tensor: Tensor) -> Tensor:
    # From (batch, head, position, dim) to (head, dim, batch * position). Nothing is copied where
    # the backbone has split its heads from (batch, position, feature).
    return tensor.transpose(1, 2).flatten(0, 1).permute(1, 2, 0)


def _attention_with_mass(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Return the output and the logarithm of the softmax mass, (batch, head, position)."""
    if query.device.type == "cpu":
        # The kernel behind scaled_dot_product_attention, which does not return the mass.
        output, mass = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask, scale=scaling
        )
        return output, mass
    logits = _logits(query, key, mask, scaling)
    mass = logits.logsumexp(-1)
    return (logits - mass.unsqueeze(-1)).exp_().to(value.dtype) @ value, mass


def attention_mass(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Return the logarithm of the softmax mass of the keys, (batch, head, position)."""
    return _logits(query, key, _to_additive(mask, torch.float32), scaling).logsumexp(-1)


def _logits(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    # In float32, as the kernels compute them: rounded logits change the output by a percent.
    logits = query.float() @ key.float().transpose(-1, -2) * scaling  # (batch, head, q, token)
    if mask is None:
        return logits
    return (logits + mask).clamp_(min=torch.finfo(logits.dtype).min)


def _to_additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None:
        return None
    # The lowest finite number, so that a row that sees no token stays finite.
    lowest = torch.finfo(dtype).min
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, lowest)
    return mask.to(dtype).clamp(min=lowest)


@dataclass
class RecordedAttention:
    """Attend to the tokens alone, and keep the keys and values of chosen tokens."""

    rows: Tensor  # (chosen,) in the batch
    positions: Tensor  # (chosen,)
    layers: dict[int, Tensor] = field(default_factory=dict)  # (2, head, chosen, head_dim) each

    def __call__(self, inputs: LayerInput) -> Tensor:
        """Attend to the tokens, and keep keys and values of the chosen ones."""
        layer, query, key, value, mask, scaling = inputs
        chosen = [t[self.rows, :, self.positions] for t in (key, value)]  # (chosen, head, head_dim)
        self.layers[layer] = torch.stack(chosen).transpose(1, 2).float()
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)

    def keys_values(self) -> Tensor:
        """Return the recorded keys and values, (layer, 2, head, chosen, head_dim)."""
        return torch.stack([self.layers[layer] for layer in sorted(self.layers)])


def combined_attention(
    parts: Sequence[Tensor],  # (layer, 2, head, position, head_dim) each
    weights: Sequence[float],  # factor on each prefix's attention mass
    combine: str,
) -> Attend | None:
    """Return the attention to several prefixes, for any number of threads.

    None if no prefix has a position.
    """
    if not any(part.shape[3] for part in parts):
        return None
    if combine == "mean" and len(parts) > 1:
        return MeanAttention(*_stacked(parts, weights))
    keys_values = torch.cat(list(parts), dim=3)
    if all(weight == 1 for weight in weights):
        return ConcatAttention(keys_values)
    log_weights = [
        torch.full((part.shape[3],), math.log(weight), dtype=torch.float32, device=part.device)
        for part, weight in zip(parts, weights, strict=True)
    ]
    return ConcatAttention(keys_values, torch.cat(log_weights))


def _stacked(parts: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    longest = max(part.shape[3] for part in parts)
    layer, two, head, _, head_dim = parts[0].shape
    keys_values = parts[0].new_zeros(layer, two, head, len(parts), longest, head_dim)
    shape = len(parts), longest
    log_weights = torch.full(shape, -torch.inf, dtype=torch.float32, device=parts[0].device)
    for k, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        keys_values[:, :, :, k, : part.shape[3]] = part
        log_weights[k, : part.shape[3]] = math.log(weight)
    return keys_values, log_weights
