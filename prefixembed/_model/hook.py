"""How prefixes enter transformers' models, and which layer is running.

A forward call keeps what it attends to, and the slots that it adds, in a context variable, and
counts its layers as they run. The model holds no state, so threads share it.
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

from prefixembed._model.attention import LayerInput, MaskCache, to_attention_dtype
from prefixembed._model.extension import Extension
from prefixembed._model.families import feed_forward_names
from prefixembed._model.slots import FeedForwardOutput

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
    if call is None or call.extension.attend is None:
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
    # A causal mask is always built: SDPA's own causal mask is wrong with a prefix. So is a mask
    # without padding where the batch brings one: a batch of fixed shape needs a fixed kernel.
    skips: dict[str, Any] = {"allow_is_causal_skip": False}
    if kwargs.get("attention_mask") is not None:
        skips["allow_is_bidirectional_skip"] = False
    return sdpa_mask(*args, **{**kwargs, **skips})


@dataclass
class _ForwardCall:
    """The extension of one forward call, and how many of its layers have run."""

    extension: Extension
    _n_layers_done: int = 0
    _n_feed_forward_done: int = 0
    _feed_forward_input: Tensor | None = None
    _masks: MaskCache = field(default_factory=MaskCache)

    def attend_next_layer(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> Tensor:
        # Layers are counted, since not every family numbers them and ALBERT runs one repeatedly.
        layer, self._n_layers_done = self._n_layers_done, self._n_layers_done + 1
        attend = self.extension.attend
        assert attend is not None
        n_heads, n_groups = query.shape[1], query.shape[1] // key.shape[1]
        if n_groups == 1:
            return attend(LayerInput(layer, query, key, value, mask, scaling))
        # Several query heads share a key head. Their queries become further positions of that
        # head, so that prefixes need only as many heads as the keys have.
        query = query.unflatten(1, (-1, n_groups)).flatten(2, 3)
        if mask is not None and mask.shape[2] > 1:
            given = mask
            mask = self._masks(mask, key.shape[2], lambda: given.repeat(1, 1, n_groups, 1))
        output = attend(LayerInput(layer, query, key, value, mask, scaling))
        return output.unflatten(2, (n_groups, -1)).reshape(len(output), n_heads, -1, key.shape[3])

    def enter_feed_forward(self, inputs: Tensor) -> None:
        self._feed_forward_input = inputs

    def leave_feed_forward(self, output: Tensor) -> Tensor:
        layer, self._n_feed_forward_done = self._n_feed_forward_done, self._n_feed_forward_done + 1
        inputs, self._feed_forward_input = self._feed_forward_input, None
        add_slots = self.extension.add_slots
        assert inputs is not None
        return output if add_slots is None else add_slots(FeedForwardOutput(layer, inputs, output))


_current_call: ContextVar[_ForwardCall | None] = ContextVar("_current_call", default=None)


@contextmanager
def extended(extension: Extension | None) -> Iterator[None]:
    """Extend the layers of one forward call in this thread; None: run them as they are."""
    token = _current_call.set(None if extension is None else _ForwardCall(extension))
    try:
        yield
    finally:
        _current_call.reset(token)


def is_attending() -> bool:
    """Return True if the forward call running in this thread has an :data:`Attend`."""
    call = _current_call.get()
    return call is not None and call.extension.attend is not None


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


def hook_feed_forward(model: torch.nn.Module, family: str) -> None:
    """Let the feed-forward layers of a model add the slots of the current forward call.

    The hooks hold no state and do nothing outside a call that has slots.
    """
    first_name, last_name = feed_forward_names(family)
    for module in model.modules():
        if hasattr(module, "chunk_size_feed_forward"):
            # Layers are counted as they run: none may run in several chunks.
            module.chunk_size_feed_forward = 0  # type: ignore[assignment]
        first, last = _submodule(module, first_name), _submodule(module, last_name)
        if first is not None and last is not None:
            first.register_forward_pre_hook(_enter_feed_forward)
            last.register_forward_hook(_leave_feed_forward)


def _submodule(module: torch.nn.Module, name: str) -> torch.nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _enter_feed_forward(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
    if (call := _current_call.get()) is not None:
        call.enter_feed_forward(args[0])


def _leave_feed_forward(
    module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> Tensor | None:
    call = _current_call.get()
    return None if call is None else call.leave_feed_forward(output)
