"""Which device and which dtype a name means here."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# The threads that OpenMP works with are the parent's: a forked child that waits for them waits for
# ever. torch's own data loader has its workers do the same.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str) -> torch.device:
    """Give the device of a name; ``"auto"`` takes CUDA, then MPS, then the CPU."""
    if device == "auto":
        if torch.cuda.is_available():
            device = "cuda"
        else:
            device = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be 'auto' or a torch device, got {device!r}") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch finds no CUDA device here")
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device is {device!r}, but torch finds no MPS device here")
    if resolved.type == "cuda" and resolved.index is None:
        return torch.device("cuda", _own_cuda_index())
    # Tensors on "mps" say that they are on "mps:0", which is the same device.
    return torch.device("mps") if resolved.type == "mps" else resolved


def _own_cuda_index() -> int:
    """Give each worker process of a machine with several CUDA devices one of them, in turns.

    Engines that share devices out themselves show each worker its own, which is then the only one.
    """
    index, n_devices = torch.cuda.current_device(), torch.cuda.device_count()
    if index or n_devices == 1 or multiprocessing.parent_process() is None:
        return index
    # Processes are numbered by their names: LokyProcess-1, SpawnPoolWorker-2.
    number = multiprocessing.current_process().name.rpartition("-")[2]
    return (int(number) - 1) % n_devices if number.isdecimal() else index


def is_here(device: Any) -> bool:
    """Tell whether this machine has a device, without a context on it; what is no name passes."""
    kind, _, index = str(device).partition(":")
    if kind == "cuda":
        n_devices = torch.cuda.device_count()
        return n_devices > (int(index) if index.isdigit() else 0)
    return kind != "mps" or torch.backends.mps.is_available()


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Give the dtype of a name; ``"auto"`` takes bfloat16 where the hardware multiplies in it."""
    if dtype in _DTYPES:
        return _DTYPES[dtype]
    if dtype != "auto":
        raise ValueError(f"dtype must be 'auto', {', '.join(map(repr, _DTYPES))}, got {dtype!r}")
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        able = torch.cpu.get_capabilities()
        fast = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Give the states of torch's generators of the CPU and of a device, by their names."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_state(device: torch.device, states: Mapping[str, Tensor]) -> None:
    """Put back what :func:`random_state` gave; of another device's generator nothing is used."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators of the CPU and of a device, and put their states back afterwards."""
    kept = random_state(device)
    torch.default_generator.manual_seed(seed)  # of the CPU alone, unlike torch.manual_seed
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(device, kept)
