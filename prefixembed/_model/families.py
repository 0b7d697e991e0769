"""The supported families of backbones, and what their configurations mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.activations import ACT2FN

DECODERS = ("llama", "mistral", "qwen3")
SUPPORTED = (
    "albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet",
    "nomic_bert", "roberta", "xlm-roberta", *DECODERS,
)  # fmt: skip
# Position ids of these families are counted from the id of the padding token.
_OFFSET_POSITIONS = ("camembert", "mpnet", "roberta", "xlm-roberta")
# Names of the first and the last linear layer of a feed-forward layer, seen from a module that
# holds both. The input of the first and the output of the last are those of the feed-forward layer.
_FEED_FORWARD = {
    "albert": ("ffn", "ffn_output"),
    "distilbert": ("ffn.lin1", "ffn.lin2"),
    "modernbert": ("mlp.Wi", "mlp.Wo"),
    **dict.fromkeys(("nomic_bert", *DECODERS), ("mlp.gate_proj", "mlp.down_proj")),
}


def feed_forward_names(family: str) -> tuple[str, str]:
    """Return the names of the first and the last linear layer of a feed-forward layer."""
    return _FEED_FORWARD.get(family, ("intermediate.dense", "output.dense"))


def activation(config: Any) -> Callable[[Tensor], Tensor]:
    """Return the activation function of feed-forward layers."""
    names = ("hidden_act", "hidden_activation", "activation")
    found = next(getattr(config, name) for name in names if hasattr(config, name))
    function: Callable[[Tensor], Tensor] = ACT2FN[found]
    return function


def default_pooling(family: str) -> str:
    """Return the pooling of a backbone that does not say how it was trained."""
    return "last" if family in DECODERS else "mean"


def layout(config: Any) -> tuple[int, int, int]:
    """Return the number of layers, the number of key heads, and the length of a head."""
    # ALBERT may count several layers as one.
    n_layers = config.num_hidden_layers * getattr(config, "inner_group_num", 1)
    n_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    # Several heads of queries may share one head of keys and values.
    return n_layers, getattr(config, "num_key_value_heads", None) or n_heads, head_dim


def longest_text(config: Any, tokenizer_limit: int) -> int:
    """Return the largest number of tokens that positions and tokenizer allow."""
    return int(min(config.max_position_embeddings - position_offset(config), tokenizer_limit))


def position_offset(config: Any) -> int:
    """Return the position id of the first token."""
    return config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0


def padding_id(config: Any, tokenizer_pad_id: int | None) -> int:
    """Return the padding id. Padding is masked, so any id works if none is named."""
    for pad_id in (config.pad_token_id, tokenizer_pad_id):
        if pad_id is not None:
            return int(pad_id)
    return 0
