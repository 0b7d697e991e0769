"""Tiny backbones with random weights of each supported family, and texts for them.

``examples/benchmarks/gpu.py`` uses them too: this module imports nothing that is for tests alone.
"""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedTokenizerFast

DECODERS = ["llama", "mistral", "qwen3"]
RELATIVE = ["deberta-v2", "mpnet"]
FAMILIES = [
    "albert", "bert", "camembert", "distilbert", "electra", "modernbert", "nomic_bert", "roberta",
    "xlm-roberta", *RELATIVE, *DECODERS,
]  # fmt: skip
# Old versions of transformers lack some: NomicBERT was added after 5.1.
FAMILIES = [family for family in FAMILIES if family in CONFIG_MAPPING]
SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
TEXTS = [
    "a",
    "what a film",
    "dull, long and loud: a bore",
    "",
    "   ",
    "Zürich 中文 \U0001f600",
    "one two three four five six seven eight nine ten",
]
PAIRS = [("a film", "of joy"), ("", "b"), ("what is it", "it is a long answer to that")]


def make_backbone(folder, family, seed=0, **changes):
    """Write a backbone with random weights, large enough for attention to matter."""
    config = {
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 80,
        "initializer_range": 0.2,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    if family in ("bert", "electra"):
        config["type_vocab_size"] = 2
    elif family == "modernbert":
        # Local attention over 8 tokens in two of the three layers.
        config |= {"local_attention": 8, "global_attn_every_n_layers": 3}
        config |= {"cls_token_id": 0, "sep_token_id": 2}
    if family in ("albert", "electra"):
        config["embedding_size"] = 16
    if family == "albert":
        # Two groups of weights for three layers.
        config |= {"num_hidden_groups": 2}
    elif family == "deberta-v2":
        # The settings of DeBERTa version 3.
        config |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
        config |= {"position_buckets": 4, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
        config |= {"position_biased_input": False}
    elif family in DECODERS:
        # Each key head serves two query heads, and n_heads * head_dim is not hidden_size.
        config |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    if family == "mistral":
        config["sliding_window"] = 8
    elif family == "qwen3":
        # Sliding windows in the last layer only.
        config |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    torch.manual_seed(seed)
    model = AutoModel.from_config(AutoConfig.for_model(family, **(config | changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name.lower():
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: k for k, token in enumerate([*SPECIAL.values(), *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pair_type = 1 if family in ("bert", "electra") else 0
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair=f"<s> $A </s> $B:{pair_type} </s>:{pair_type}",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * pair_type
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="<s>",
        sep_token="</s>",
        model_input_names=inputs,
        **SPECIAL,
    ).save_pretrained(folder)
    return str(folder)
