"""Families whose attention depends on the distance between two tokens: MPNet and DeBERTa.

transformers does not let us replace their attention function, so their attention modules are
patched: the terms for distance become an additive mask, and attention is computed as in other
families. A prefix has no position and thus no distance, so its logits are products of queries and
keys alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from prefixembed._model.hook import attend_current_layer, is_attending

RELATIVE = ("deberta-v2", "mpnet")


def patch_relative_attention(model: torch.nn.Module) -> None:
    """Patch the attention modules of MPNet and DeBERTa in place, so that they attend to prefixes.

    Output without prefixes stays bit-identical.
    """
    for module in model.modules():
        if type(module) in _PATCHED:
            module.__class__ = _PATCHED[type(module)]


class _MPNetAttention(MPNetSelfAttention):
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        if not is_attending():
            return super().forward(hidden_states, attention_mask, position_bias, **kwargs)
        heads = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        query, key, value = (
            project(hidden_states).view(heads).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        assert position_bias is not None
        mask = position_bias.float()  # (batch, head, position, position)
        if attention_mask is not None:
            mask = mask + attention_mask.float()
        return (self.o(attend_current_layer(query, key, value, mask, query.shape[-1] ** -0.5)),)


class _DebertaAttention(DisentangledSelfAttention):
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        if not is_attending():
            return super().forward(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos,
                rel_embeddings,
            )  # fmt: skip
        queried = hidden_states if query_states is None else query_states
        n_heads = self.num_attention_heads
        query, key, value = (
            self.transpose_for_scores(states, n_heads)  # (batch * head, position, head_dim)
            for states in (
                self.query_proj(queried),
                self.key_proj(hidden_states),
                self.value_proj(hidden_states),
            )
        )
        n_terms = 1 + sum(term in self.pos_att_type for term in ("c2p", "p2c"))
        visible = attention_mask.bool()  # (batch, 1, position, position), from numbers
        mask = torch.zeros_like(visible, dtype=torch.float32).masked_fill_(~visible, -torch.inf)
        if self.relative_attention:
            terms = self.disentangled_attention_bias(
                query, key, relative_pos, rel_embeddings, n_terms
            )
            mask = mask + terms.float().unflatten(0, (-1, n_heads))
        query, key, value = (part.unflatten(0, (-1, n_heads)) for part in (query, key, value))
        scaling = (query.shape[-1] * n_terms) ** -0.5
        return attend_current_layer(query, key, value, mask, scaling), None


_PATCHED: dict[type, type[torch.nn.Module]] = {
    MPNetSelfAttention: _MPNetAttention,
    DisentangledSelfAttention: _DebertaAttention,
}
