"""How attention to prefixes gets into transformers' models, and which layer is asking.

What a forward call attends to stands in a context variable while it runs, and its layers are
counted as they come. The model keeps no state, so threads share it.
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

from prefixembed._model.attention import Attend, OnceACall, for_attention

ATTENTION = "prefixembed"


def prefix_attention_forward(
    module: torch.nn.Module,
    query: Tensor,  # (batch, head, position, head_dim)
    key: Tensor,  # (batch, key head, position, head_dim)
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function registered with transformers; without a prefix it is plain SDPA."""
    running = _running.get()
    if running is None:
        dtype = query.dtype
        query, key, value = for_attention(query, key, value)
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output.to(dtype), None
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    output = running.attend_layer(query, key, value, attention_mask, scaling)
    return output.transpose(1, 2).contiguous(), None  # (batch, position, head, head_dim)


def register() -> None:
    """Make ``attn_implementation="prefixembed"`` known to transformers."""
    AttentionInterface.register(ATTENTION, prefix_attention_forward)
    # Without a mask function of the same name the mask silently becomes None.
    AttentionMaskInterface.register(ATTENTION, _mask)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    # A causal mask is always made: that SDPA would make its own does not hold beside a prefix.
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


@dataclass
class _Running:
    """A forward call on its way through the layers.

    Parameters
    ----------
    attend : Attend
        What every layer attends by.
    """

    attend: Attend
    _n_done: int = 0
    _masks: OnceACall = field(default_factory=OnceACall)

    def attend_layer(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> Tensor:
        """Attend in the layer whose turn it is.

        Heads of queries may be a multiple of those of keys: each group of them shares one. Its
        queries are taken as further positions of that head, so that prefixes have as many heads as
        the keys.
        """
        # Counted, since not every family numbers its layers, and ALBERT's are all the same one.
        layer, self._n_done = self._n_done, self._n_done + 1
        heads, n_groups = query.shape[1], query.shape[1] // key.shape[1]
        if n_groups == 1:
            return self.attend(layer, query, key, value, mask, scaling)
        query = query.unflatten(1, (-1, n_groups)).flatten(2, 3)
        if mask is not None and mask.shape[2] > 1:
            given = mask
            mask = self._masks(mask, key.shape[2], lambda: given.repeat(1, 1, n_groups, 1))
        output = self.attend(layer, query, key, value, mask, scaling)
        return output.unflatten(2, (n_groups, -1)).reshape(output.shape[0], heads, -1, key.shape[3])


_running: ContextVar[_Running | None] = ContextVar("_running", default=None)


@contextmanager
def attending(attend: Attend | None) -> Iterator[None]:
    """Have one forward call of a backbone in this thread attend to prefixes.

    Parameters
    ----------
    attend : Attend or None
        What its layers attend by; None for tokens alone.
    """
    token = _running.set(None if attend is None else _Running(attend))
    try:
        yield
    finally:
        _running.reset(token)


def is_attending() -> bool:
    """Tell whether the forward call that runs in this thread attends to more than tokens."""
    return _running.get() is not None


def attend_here(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attend in a layer that transformers gives no attention function, where one runs.

    Parameters
    ----------
    query, key, value : Tensor of shape (batch, head, position, head_dim)
        Of the tokens.
    mask : Tensor of shape (batch, 1 or head, position, position)
        Added to the logits of tokens.
    scaling : float
        Factor on the products of queries and keys.

    Returns
    -------
    output : Tensor of shape (batch, position, head * head_dim)
        In the dtype of the queries.
    """
    running = _running.get()
    assert running is not None
    output = running.attend_layer(query, key, value, mask, scaling)
    return output.transpose(1, 2).flatten(2)
