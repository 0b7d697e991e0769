"""How attention to prefixes enters transformers' models, and which layer is running.

A forward call keeps what it attends to in a context variable, and counts its layers as they run.
The model holds no state, so threads share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prefixembed._model.attention import Attend, LayerInput, MaskCache, to_attention_dtype

ATTENTION = "prefixembed"


def register() -> None:
    """Register ``attn_implementation="prefixembed"`` with transformers."""
    AttentionInterface.register(ATTENTION, _attention_forward)
    # Without a mask function of the same name, the mask silently becomes None.
    AttentionMaskInterface.register(ATTENTION, _mask)


def _attention_forward(
    module: torch.nn.Module,
    query: Tensor,  # (batch, head, position, head_dim)
    key: Tensor,  # (batch, key head, position, head_dim)
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as the current forward call says, or to the tokens alone by plain SDPA."""
    call = _current_call.get()
    if call is None:
        dtype = query.dtype
        query, key, value = to_attention_dtype(query, key, value)
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output.to(dtype), None
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    output = call.attend_next_layer(query, key, value, attention_mask, scaling)
    return output.transpose(1, 2).contiguous(), None  # (batch, position, head, head_dim)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    # A causal mask is always built: SDPA's own causal mask is wrong with a prefix.
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


@dataclass
class _ForwardCall:
    """What one forward call attends to, and how many of its layers have run."""

    attend: Attend
    _n_layers_done: int = 0
    _masks: MaskCache = field(default_factory=MaskCache)

    def attend_next_layer(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> Tensor:
        # Layers are counted, since not every family numbers them and ALBERT runs one repeatedly.
        layer, self._n_layers_done = self._n_layers_done, self._n_layers_done + 1
        n_heads, n_groups = query.shape[1], query.shape[1] // key.shape[1]
        if n_groups == 1:
            return self.attend(LayerInput(layer, query, key, value, mask, scaling))
        # Several query heads share a key head. Their queries become further positions of that
        # head, so that prefixes need only as many heads as the keys have.
        query = query.unflatten(1, (-1, n_groups)).flatten(2, 3)
        if mask is not None and mask.shape[2] > 1:
            given = mask
            mask = self._masks(mask, key.shape[2], lambda: given.repeat(1, 1, n_groups, 1))
        output = self.attend(LayerInput(layer, query, key, value, mask, scaling))
        return output.unflatten(2, (n_groups, -1)).reshape(len(output), n_heads, -1, key.shape[3])


_current_call: ContextVar[_ForwardCall | None] = ContextVar("_current_call", default=None)


@contextmanager
def attending(attend: Attend | None) -> Iterator[None]:
    """Let one forward call in this thread attend to prefixes; None: to the tokens alone."""
    token = _current_call.set(None if attend is None else _ForwardCall(attend))
    try:
        yield
    finally:
        _current_call.reset(token)


def is_attending() -> bool:
    """Return True if the forward call running in this thread has an :data:`Attend`."""
    return _current_call.get() is not None


def attend_current_layer(
    query: Tensor,  # (batch, head, position, head_dim), as key and value
    key: Tensor,
    value: Tensor,
    mask: Tensor,  # (batch, 1 or head, position, position), additive
    scaling: float,
) -> Tensor:
    """Attend in a layer whose attention function transformers does not let us replace.

    It may be called only where :func:`is_attending` returns True. Returns
    (batch, position, head * head_dim).
    """
    call = _current_call.get()
    assert call is not None
    output = call.attend_next_layer(query, key, value, mask, scaling)
    return output.transpose(1, 2).flatten(2)
