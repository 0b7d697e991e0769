"""Fixtures: tiny random backbones of each supported family, a real one, and random prefixes."""

import dataclasses
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny backbones are no faster with threads, and on a busy machine they are much slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hub_stand_in import Hub
from huggingface_hub import constants
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedTokenizerFast

from prefixembed import Prefix, VectorCache, cache, load_backbone, release_backbones
from prefixembed._embed import encoding
from prefixembed.head import Head
from prefixembed.reading import Reading
from prefixembed.slots import Slots
from prefixembed.tasks import demo_backbone

# Each run tries the same examples, so that failures can be reproduced.
settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")

DECODERS = ["llama", "mistral", "qwen3"]
RELATIVE = ["deberta-v2", "mpnet"]
FAMILIES = [
    "albert", "bert", "camembert", "distilbert", "electra", "modernbert", "nomic_bert", "roberta",
    "xlm-roberta", *RELATIVE, *DECODERS,
]  # fmt: skip
# Old versions of transformers lack some: NomicBERT was added after 5.1.
FAMILIES = [family for family in FAMILIES if family in CONFIG_MAPPING]
READING_FIELDS = [field.name for field in dataclasses.fields(Reading)]
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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Return a function that returns the folder of a tiny backbone of a family."""
    folders = {}

    def folder_of(family="bert"):
        if family not in folders:
            folders[family] = make_backbone(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return folder_of


@pytest.fixture(scope="session")
def minilm():
    """Return the folder of the real backbone of the demo extra."""
    return demo_backbone()


@pytest.fixture
def fresh_backbones():
    """Release all backbones before and after a test."""
    release_backbones()
    yield
    release_backbones()


@pytest.fixture(autouse=True)
def no_shared_cache(monkeypatch):
    """Make the shared cache keep nothing, so that each test computes its vectors."""
    monkeypatch.setattr(cache, "_opened", {None: VectorCache(max_bytes=0)})


@pytest.fixture
def encoded(monkeypatch):
    """Return a list that receives the token ids of each text that is encoded."""
    ids = []
    real = encoding._embed_batch

    def count(backbone, tokens, positions, *args):
        ids.extend(tokens.ids[k].tobytes() for k in positions)
        return real(backbone, tokens, positions, *args)

    monkeypatch.setattr(encoding, "_embed_batch", count)
    return ids


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Run a stand-in for the Hub that huggingface_hub talks to."""
    with Hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # What transformers remembers of another stand-in.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield running


def random_slots(n_layers, length, n_features, seed=0):
    """Return slots that change vectors as much as random keys and values do."""
    rng = np.random.default_rng([seed, 1])
    shape = (n_layers, length, n_features)
    return Slots(
        keys=rng.standard_normal(shape) * n_features**-0.5,
        biases=0.1 * rng.standard_normal(shape[:2]),
        values=0.3 * rng.standard_normal(shape),
    )


@pytest.fixture(scope="session")
def random_prefix():
    """Return a function that makes a prefix of random keys, values and slots for a backbone."""

    def make(folder, length=5, seed=0, scale=1.0, head=True, ffn_length=0, **changes):
        backbone = load_backbone(folder, dtype="float32", device="cpu")
        n_layers, n_heads, head_dim = backbone.layout
        rng = np.random.default_rng(seed)
        shape = (n_layers, 2, n_heads, length, head_dim)
        fields = {
            "keys_values": scale * rng.standard_normal(shape, dtype=np.float32),
            "backbone": folder,
            "fingerprint": backbone.fingerprint,
            "n_features": backbone.n_features,
        }
        reading = {"pooling": "mean", "max_length": 64}
        reading |= {name: changes.pop(name) for name in READING_FIELDS if name in changes}
        fields["reading"] = Reading(**reading)
        if head is True:
            width = fields["reading"].width(backbone.n_features, of_pairs=True)
            weight = rng.standard_normal((2, width), dtype=np.float32)
            bias = rng.standard_normal(2, dtype=np.float32)
            head = Head("classification", np.array(["no", "yes"]), weight, bias)
        if ffn_length:
            fields["slots"] = random_slots(n_layers, ffn_length, backbone.n_features, seed)
        return Prefix(**(fields | {"head": head} | changes))

    return make
