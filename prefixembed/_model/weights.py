"""The files of a backbone's weights: fetched, loaded as they are stored, digested, converted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils.hub import get_checkpoint_shard_files

# Names of the file of weights, or of the list of such files, in the order of transformers.
_WEIGHTS = (
    (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME),
    (WEIGHTS_NAME, WEIGHTS_INDEX_NAME),
)
# Dtypes whose numbers float32 holds exactly, as safetensors calls them.
_EXACT = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# Positions and masks, which some checkpoints hold beside their weights.
_NOT_WEIGHTS = {"I64", "BOOL", torch.int64, torch.bool}
_BLOCK = 2**22  # numbers that are converted to float32 at a time
# The digest of weights that this process has read, by their files and the configuration.
_digests: dict[WeightsKey, Any] = {}

WeightsKey = tuple[str, tuple[tuple[str, int, int], ...]]


def fetch_weights(name: str, revision: str | None) -> list[str]:
    """Return the files of weights, downloaded if need be; none if there are none."""
    for weights, index in _WEIGHTS:
        if (path := _find(name, revision, weights)) is not None:
            return [path]
        if (path := _find(name, revision, index)) is not None:
            files, _ = get_checkpoint_shard_files(name, path, revision=revision)
            return list(files)
    return []


def loading_dtype(files: Sequence[str]) -> torch.dtype:
    """Return the dtype in which files hold all of their weights, or else float32.

    Weights that are loaded as they are stored are mapped into memory and take none of their own.
    """
    found = {dtype for file in files for dtype in _stored_dtypes(file)} - _NOT_WEIGHTS
    return found.pop() if len(found) == 1 and found <= set(_EXACT.values()) else torch.float32


def weights_key(files: Sequence[str], config: dict[str, Any]) -> WeightsKey:
    """Return what changes if a file of weights is overwritten, or read by another configuration."""
    facts = [(os.path.realpath(file), os.stat(file)) for file in files]
    stamps = tuple((path, found.st_size, found.st_mtime_ns) for path, found in facts)
    return json.dumps(config, sort_keys=True), stamps


def digest_weights(model: torch.nn.Module, key: WeightsKey | None) -> Any:
    """Return a SHA-256 of the weights in float32, whatever dtype they have.

    A digest with a `key` is computed once per process.
    """
    if key is not None and key in _digests:
        return _digests[key].copy()
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        for block in tensor.contiguous().view(-1).split(_BLOCK):
            exact = block.float() if block.is_floating_point() else block
            digest.update(memoryview(exact.numpy()).cast("B"))
    if key is not None:
        _digests[key] = digest.copy()
    return digest


def convert_weights(model: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Convert and move parameters one by one, so that no two copies of all exist at a time."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device, dtype)
    for buffer in model.buffers():
        # The frequencies of rotary positions, for example, stay in float32.
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()
    model.to(device)


def _stored_dtypes(file: str) -> set[Any]:
    if not file.endswith(".safetensors"):
        weights = torch.load(file, map_location="meta", weights_only=True)
        return {weight.dtype for weight in weights.values() if isinstance(weight, Tensor)}
    with safe_open(file, "pt") as opened:
        names = {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
    return {_EXACT.get(name, name) for name in names}


def _find(name: str, revision: str | None, file: str) -> str | None:
    return cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
