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
from tiny_backbones import (  # noqa: F401, tests import them from here
    DECODERS,
    FAMILIES,
    PAIRS,
    RELATIVE,
    TEXTS,
    make_backbone,
)

from prefixembed import Prefix, VectorCache, cache, load_backbone, release_backbones
from prefixembed._embed import encoding
from prefixembed.head import Head
from prefixembed.reading import Reading
from prefixembed.slots import Slots
from prefixembed.tasks import demo_backbone

# Each run tries the same examples, so that failures can be reproduced.
settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")

READING_FIELDS = [field.name for field in dataclasses.fields(Reading)]


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


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
