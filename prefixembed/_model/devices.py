"""Devices, dtypes and random states of torch."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# A forked child does not have the OpenMP threads of its parent, and would wait for them forever.
# The workers of torch's data loader are limited to one thread too.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str) -> torch.device:
    """Return the device of a name; ``"auto"`` picks CUDA, then MPS, then the CPU."""
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
        raise ValueError(f"device is {device!r}, but torch finds no CUDA device")
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device is {device!r}, but torch finds no MPS device")
    if resolved.type == "cuda" and resolved.index is None:
        return torch.device("cuda", _own_cuda_index())
    # "mps:0" is the same device as "mps".
    return torch.device("mps") if resolved.type == "mps" else resolved


def _own_cuda_index() -> int:
    """Return the CUDA device of this process: worker processes are spread over the devices.

    Engines that assign devices themselves show each worker only its own.
    """
    index, n_devices = torch.cuda.current_device(), torch.cuda.device_count()
    if index or n_devices == 1 or multiprocessing.parent_process() is None:
        return index
    # Names of worker processes end in their number: LokyProcess-1, SpawnPoolWorker-2.
    number = multiprocessing.current_process().name.rpartition("-")[2]
    return (int(number) - 1) % n_devices if number.isdecimal() else index


def device_exists(device: Any) -> bool:
    """Return whether this machine has a device, without creating a CUDA context.

    What is not the name of a device counts as existing: :func:`resolve_device` refuses it.
    """
    kind, _, index = str(device).partition(":")
    if kind == "cuda":
        n_devices = torch.cuda.device_count()
        return n_devices > (int(index) if index.isdigit() else 0)
    return kind != "mps" or torch.backends.mps.is_available()


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a name.

    ``"auto"`` picks bfloat16 if the hardware multiplies in it (CUDA compute capability 8 and
    higher, CPUs with AVX512-BF16 or AMX), and float32 otherwise.
    """
    if dtype in _DTYPES:
        return _DTYPES[dtype]
    if dtype != "auto":
        raise ValueError(f"dtype must be 'auto', {', '.join(map(repr, _DTYPES))}, got {dtype!r}")
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        # Older releases of torch do not tell; float32 is right everywhere.
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's random generators for the CPU and for a device, by name."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_state(device: torch.device, states: Mapping[str, Tensor]) -> None:
    """Restore what :func:`random_state` returned; states of other devices are ignored."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's random generators for the CPU and for a device; restore their states after."""
    before = random_state(device)
    torch.default_generator.manual_seed(seed)  # unlike torch.manual_seed, for the CPU only
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(device, before)
