"""Backbones in the shapes of known models, with random weights and a tokenizer of words.

Nothing is downloaded, and each word is one token, so that texts have the lengths that we want.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_N_WORDS = 8000
# Family, features, layers, heads, and hidden units of a feed-forward layer.
SHAPES = {
    "MiniLM": ("bert", 384, 6, 12, 1536),
    "RoBERTa-large": ("roberta", 1024, 24, 16, 4096),
    "decoder of 0.6B": ("qwen3", 1024, 28, 16, 3072),
    "MPNet-base": ("mpnet", 768, 12, 12, 3072),
}


def make_shape(root: Path, name: str, size: str) -> str:
    """Write a backbone of a shape, or a tiny one of its family, and return its folder."""
    folder = root / name.replace(" ", "-")
    family, width, n_layers, n_heads, hidden = SHAPES[name]
    if size == "tiny":
        width, n_layers, n_heads, hidden = 32, 2, 4, 48
    config: dict[str, Any] = {
        "vocab_size": _N_WORDS + len(_SPECIAL),
        "hidden_size": width,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "intermediate_size": hidden,
        "max_position_embeddings": 514,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "qwen3":
        config |= {"num_key_value_heads": n_heads // 2, "head_dim": 2 * width // n_heads}
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **config))
    model.save_pretrained(folder)
    words = [f"w{k}" for k in range(_N_WORDS)]
    vocabulary = {word: k for k, word in enumerate([*_SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ["input_ids", "attention_mask"]
    save_tokenizer(tokenizer, folder, "<s> $A </s> $B </s>", model_input_names=names)
    return str(folder)


def random_texts(n: int, longest: int, seed: int = 0) -> list[str]:
    """Return texts of half as many to `longest` tokens, special tokens included."""
    rng = np.random.default_rng([seed, longest])
    lengths = rng.integers(longest // 2, longest + 1, size=n)
    lengths[0] = longest
    return [" ".join(f"w{k}" for k in rng.integers(_N_WORDS, size=m - 2)) for m in lengths]
