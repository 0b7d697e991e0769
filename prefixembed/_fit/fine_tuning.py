"""Training of a whole backbone with one head a task, and its files."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoTokenizer

from prefixembed._embed.batching import Tokens
from prefixembed._embed.encoding import embed_tokens, encode_batch
from prefixembed._fit.examples import Examples
from prefixembed._fit.learning import Learner, learn, mixed_steps
from prefixembed._fit.optimization import History, Recipe
from prefixembed._model.devices import seeded
from prefixembed._model.pooling import Reading
from prefixembed.backbone import Backbone, quiet_transformers, release_backbones


def trainable_copy(
    original: Backbone, tasks: Mapping[str, Examples]
) -> tuple[Backbone, list[nn.Linear]]:
    """Give a copy of a backbone to be trained, and a linear head of zeros for each task.

    The copy's fingerprint is still the original's.
    """
    heads = [
        _head(data.tokens.vector_width(original.n_features), data.targets.n_outputs)
        for data in tasks.values()
    ]
    heads = [head.to(original.device) for head in heads]
    return replace(original, model=copy.deepcopy(original.model)), heads


def fine_tune(
    backbone: Backbone,
    heads: Sequence[nn.Linear],
    tasks: Mapping[str, Examples],
    recipe: Recipe,
    *,
    reading: Reading,
    temperature: float,
    head_learning_rate: float,
    mixed_precision: bool,
    batch_tokens: int,
    rng: np.random.Generator,
    history: History,
    progress: bool,
    checkpoint_dir: str | os.PathLike[str] | None,
) -> None:
    """Train a backbone in place, dropout and all, and leave it frozen and in eval mode.

    Parameters
    ----------
    backbone : Backbone
        In float32; none that others share.
    heads : sequence of torch.nn.Linear
        In the order of `tasks`.
    tasks : mapping of str to Examples
        What to learn from.
    recipe : Recipe
        How; its learning rate is the backbone's.
    reading : Reading
        How texts are read and token vectors become one.
    temperature : float
        How tasks are mixed, see :func:`~prefixembed._fit.learning.mixed_steps`.
    head_learning_rate : float
        Peak rate of the heads.
    mixed_precision : bool
        Whether products are in bfloat16.
    batch_tokens : int
        Most tokens that go through the backbone at once.
    rng : numpy.random.Generator
        Order of the texts, and the seed of dropout.
    history : dict of str to list of float
        Empty; :func:`~prefixembed._fit.learning.learn` fills it.
    progress : bool
        Show a progress bar.
    checkpoint_dir : str, path-like or None
        Where states are kept, and looked for first.
    """
    body = backbone.model.requires_grad_(True).train()
    device = backbone.device

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
    identity = (backbone.fingerprint, mixed_precision, temperature, reading)
    try:
        with seeded(device, int(rng.integers(2**31))):
            learn(
                tasks,
                Learner(encode, embed, heads, groups, identity, device),
                lambda rng: mixed_steps(all_data, temperature, recipe.batch_size, rng),
                recipe,
                batch_tokens=batch_tokens,
                rng=rng,
                history=history,
                progress=progress,
                checkpoint_dir=checkpoint_dir,
            )
    finally:
        body.requires_grad_(False).eval()


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
        target.parent.mkdir(exist_ok=True)
        scratch = target.with_name(f".{target.name}.{os.getpid()}")
        scratch.write_bytes(files[name])
        # Not in place: a loaded backbone may have the old file mapped into memory.
        os.replace(scratch, target)
    release_backbones(os.fspath(folder))


def _head(width: int, n_outputs: int) -> nn.Linear:
    # skip_init: torch's global random state is left alone.
    head = nn.utils.skip_init(nn.Linear, width, n_outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
