"""The learner of a whole backbone with one head per task, and the files of its result."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer

from prefixembed._embed.encoding import embed_tokens, encode_batch
from prefixembed._embed.tokens import Tokens
from prefixembed._files.atomic import make_folder, write_atomically
from prefixembed._fit.examples import Examples
from prefixembed._fit.heads import initial_head, learned_head
from prefixembed._fit.learning import Learner
from prefixembed._model.devices import seeded
from prefixembed._model.loading import quiet_transformers
from prefixembed._model.modes import own_modes
from prefixembed._model.own_reading import reading_files
from prefixembed.backbone import Backbone, release_backbones
from prefixembed.head import Head
from prefixembed.reading import Reading


class FineTuner(Learner):
    """Fine-tune a copy of a backbone, with its dropout, and one linear head per task.

    The copy, `backbone`, is frozen and in eval mode except during training. It keeps the
    fingerprint of the original, which stays in float32 and unchanged.
    """

    @own_modes(gradients=True)
    def __init__(
        self,
        original: Backbone,
        tasks: Mapping[str, Examples],
        reading: Reading,
        *,
        learning_rate: float,
        head_learning_rate: float,
        mixed_precision: bool,
        rng: np.random.Generator,
    ) -> None:
        self.backbone = replace(original, model=copy.deepcopy(original.model))
        self.tasks, self.reading = tasks, reading
        self.mixed_precision = mixed_precision
        self.draws_on = original.device
        self._seed = int(rng.integers(2**31))
        self.heads = [
            initial_head(examples, original.n_features).to(original.device)
            for examples in tasks.values()
        ]
        of_heads = [parameter for head in self.heads for parameter in head.parameters()]
        self.groups = [
            (list(self.backbone.model.parameters()), 1.0),
            (of_heads, head_learning_rate / learning_rate),
        ]
        self.identity = (original.fingerprint, mixed_precision, reading)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Seed and switch on dropout and gradients; afterwards, freeze the backbone again."""
        model = self.backbone.model.requires_grad_(True).train()
        try:
            with seeded(self.backbone.device, self._seed):
                yield
        finally:
            model.requires_grad_(False).eval()

    def encode(self, tokens: Tokens, positions: NDArray[np.intp]) -> Tensor:
        with self._autocast():
            return encode_batch(self.backbone, tokens, positions, None, self.reading)

    def embed(self, tokens: Tokens, batch_tokens: int) -> NDArray[np.float32]:
        self.backbone.model.eval()
        with self._autocast():
            vectors = embed_tokens(self.backbone, tokens, None, self.reading, batch_tokens)
        self.backbone.model.train()
        return vectors

    def heads_learned(self) -> dict[str, Head]:
        """Return the head of each task, which predicts on the scale of its labels."""
        heads = zip(self.tasks.items(), self.heads, strict=True)
        return {name: learned_head(head, examples) for (name, examples), head in heads}

    def _autocast(self) -> torch.autocast:
        # Where the caller is in autocast, torch keeps converted weights until the caller leaves it,
        # and would take those of earlier steps.
        torch.clear_autocast_cache()
        device = self.backbone.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.mixed_precision)


@own_modes(gradients=False)
def pack_backbone(backbone: Backbone, reading: Reading) -> dict[str, bytes]:
    """Return the files of a folder that :func:`~prefixembed.load_backbone` can load, by path."""
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        backbone.model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(backbone.name, revision=backbone.revision)
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return files | reading_files(reading, backbone.n_features)


def write_backbone(files: Mapping[str, bytes], folder: str | os.PathLike[str]) -> None:
    """Write the files of a backbone, and release a backbone that was loaded from the folder.

    A loaded backbone may have the old files mapped into memory: each file is replaced as a whole.
    """
    # The configuration comes last: without it, what a killed process leaves is not a backbone.
    for name in sorted(files, key="config.json".__eq__):
        _write(Path(folder) / name, files[name])
    release_backbones(os.fspath(folder))


def _write(target: Path, content: bytes) -> None:
    write_atomically(
        make_folder(target.parent) / target.name, lambda path: Path(path).write_bytes(content)
    )
