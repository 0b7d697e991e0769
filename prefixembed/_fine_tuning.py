"""Training of a whole backbone with one head a task, and its files."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoTokenizer

from prefixembed._batching import Tokens
from prefixembed._device import seeded
from prefixembed._embedding import embed_tokens, encode_batch
from prefixembed._examples import Examples
from prefixembed._learning import Learner, learn, mixed_steps
from prefixembed._pooling import Reading
from prefixembed._training import History, Recipe
from prefixembed.backbone import Backbone, quiet_transformers, release_backbones


def fine_tune(
    original: Backbone,
    tasks: Mapping[str, Examples],
    recipe: Recipe,
    *,
    reading: Reading,
    temperature: float,
    head_learning_rate: float,
    mixed_precision: bool,
    batch_tokens: int,
    rng: np.random.Generator,
    progress: bool,
) -> tuple[Backbone, list[nn.Linear], History]:
    """Train a copy of a backbone, dropout and all, with a linear head a task.

    Parameters
    ----------
    original : Backbone
        In float32; it is left alone.
    tasks : mapping of str to Examples
        What to learn from.
    recipe : Recipe
        How; its learning rate is the backbone's.
    reading : Reading
        How texts are read and token vectors become one.
    temperature : float
        How tasks are mixed, see :func:`~prefixembed._learning.mixed_steps`.
    head_learning_rate : float
        Peak rate of the heads.
    mixed_precision : bool
        Whether products are in bfloat16.
    batch_tokens : int
        Most tokens that go through the backbone at once.
    rng : numpy.random.Generator
        Order of the texts, and the seed of dropout.
    progress : bool
        Show a progress bar.

    Returns
    -------
    backbone : Backbone
        The copy, trained, frozen and in eval mode; its fingerprint is still the original's.
    heads : list of torch.nn.Linear
        In the order of `tasks`.
    history : dict of str to list of float
        As :func:`~prefixembed._learning.learn` gives it.
    """
    backbone = replace(original, model=copy.deepcopy(original.model))
    body = backbone.model.requires_grad_(True).train()
    heads = [_head(original, data) for data in tasks.values()]
    device = original.device

    def encode(tokens: Tokens, texts: NDArray[np.intp]) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision):
            return encode_batch(backbone, tokens, texts, None, reading)

    def embed(tokens: Tokens, budget: int) -> NDArray[np.float32]:
        body.eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision):
            vectors = embed_tokens(backbone, tokens, None, reading, budget)
        body.train()
        return vectors

    own = [parameter for head in heads for parameter in head.parameters()]
    groups = [(list(body.parameters()), 1.0), (own, head_learning_rate / recipe.learning_rate)]
    all_data = list(tasks.values())
    with seeded(device, int(rng.integers(2**31))):
        history = learn(
            tasks,
            Learner(encode, embed, heads, groups),
            lambda rng: mixed_steps(all_data, temperature, recipe.batch_size, rng),
            recipe,
            batch_tokens=batch_tokens,
            rng=rng,
            progress=progress,
        )
    body.requires_grad_(False).eval()
    return backbone, heads, history


def pack_backbone(backbone: Backbone) -> dict[str, bytes]:
    """Give the files of the folder that :func:`load_backbone` would take, by name."""
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        backbone.model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(backbone.name, revision=backbone.revision)
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write_backbone(files: Mapping[str, bytes], folder: str | os.PathLike[str]) -> None:
    """Write a backbone's files, each whole or not at all; one loaded from there is let go of."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    # The configuration comes last: without it, what a kill leaves is no backbone.
    for name in sorted(files, key="config.json".__eq__):
        target = Path(folder) / name
        scratch = target.with_name(f".{name}.{os.getpid()}")
        scratch.write_bytes(files[name])
        # Not in place: a loaded backbone may have the old file mapped into memory.
        os.replace(scratch, target)
    release_backbones(os.fspath(folder))


def _head(backbone: Backbone, data: Examples) -> nn.Linear:
    # skip_init: torch's global random state is left alone.
    width = data.tokens.vector_width(backbone.n_features)
    head = nn.utils.skip_init(nn.Linear, width, data.targets.n_outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head.to(backbone.device)
