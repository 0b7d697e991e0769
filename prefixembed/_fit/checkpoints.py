"""Checkpoints: the state of a training run on disk, from which a killed run continues."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from prefixembed._files.atomic import make_folder, write_atomically
from prefixembed._files.tensors import pack_tensors, unpack_tensors
from prefixembed._utils.warnings import warn

# Seconds between checkpoints, and the largest share of time spent on them.
INTERVAL_SECONDS = 60.0
_MAX_SHARE_OF_TIME = 0.05
_N_KEPT = 2
_LEFTOVER_SECONDS = 3600.0  # an unfinished file that is older was left by a killed process
_NAME = re.compile(r"(\d{12})-([0-9a-f]{64})\.safetensors")


@dataclass(frozen=True)
class State:
    """The state of a training run."""

    facts: Mapping[str, Any]  # of JSON types; floats keep every bit
    tensors: Mapping[str, Tensor]


class Checkpoints:
    """The last two states of one run, in a folder that other runs may share.

    Runs differ by `run`, a digest of everything that decides what is learned. Each file is named
    after the digest of its content and is written as a whole or not at all. A killed run therefore
    loses only what came after its last checkpoint. If that one is damaged, the one before it is
    used.
    """

    def __init__(self, folder: str | os.PathLike[str], run: str) -> None:
        self.folder = Path(folder) / run
        self._due = time.monotonic() + INTERVAL_SECONDS

    def is_due(self) -> bool:
        """Return whether it is time for another checkpoint."""
        return time.monotonic() >= self._due

    def save(self, number: int, state: State) -> None:
        """Write a state after `number` steps. If that raises an OSError, earlier ones are kept."""
        started = time.monotonic()
        content = pack_tensors(state.facts, state.tensors)
        name = f"{number:012d}-{hashlib.sha256(content).hexdigest()}.safetensors"
        try:
            make_folder(self.folder)
            write_atomically(self.folder / name, lambda path: Path(path).write_bytes(content))
        except OSError as error:
            message = f"no checkpoint could be written: {error.strerror}; earlier ones are kept"
            raise OSError(error.errno, message, os.fspath(self.folder)) from error
        # Files with higher numbers are damaged, or belong to another process with the same run.
        for _, path in [file for file in self._files() if file[1].name <= name][_N_KEPT:]:
            path.unlink(missing_ok=True)
        for path in self.folder.glob(".*.safetensors.*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                    path.unlink()
        took = time.monotonic() - started
        self._due = time.monotonic() + max(INTERVAL_SECONDS, took / _MAX_SHARE_OF_TIME)

    def load(self) -> State | None:
        """Return the last state that is not damaged, or None. Warn about each damaged one."""
        for digest, path in self._files():
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue  # another process with the same run has replaced it
            if hashlib.sha256(content).hexdigest() == digest:
                return State(*unpack_tensors(content, repr(os.fspath(path)), framework="torch"))
            warn(f"the checkpoint {os.fspath(path)!r} is damaged and is ignored")
        return None

    def _files(self) -> list[tuple[str, Path]]:
        """Return digest and path of each checkpoint, the last one first."""
        paths = sorted(self.folder.glob("*.safetensors"), reverse=True)
        found = [(_NAME.fullmatch(path.name), path) for path in paths]
        return [(match[2], path) for match, path in found if match]
