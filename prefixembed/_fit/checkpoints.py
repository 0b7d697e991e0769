"""The state of a training run on disk: a run that was killed goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from prefixembed._utils.warnings import warn
from prefixembed._version import __version__
from prefixembed.prefix import write_atomically

# Seconds between checkpoints within an epoch, and their largest share of the time.
INTERVAL_SECONDS = 60.0
_MOST_OF_THE_TIME = 0.05
_KEPT = 2
_LEFT_AFTER = 3600.0  # seconds; nothing takes that long to write
_NAME = re.compile(r"(\d{12})-([0-9a-f]{64})\.safetensors")


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Parameters
    ----------
    facts : mapping of str to object
        What is JSON: floats come back in every bit.
    tensors : mapping of str to Tensor
        The rest.
    """

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Checkpoints:
    """States of one run, the last two of them, in a folder that other runs may share.

    A file is named after its content's digest and is written whole or not at all. So a kill
    loses what came after the last one, and damage is seen and falls back to the one before.

    Parameters
    ----------
    folder : str or path-like
        Made where there is none. The run has a folder of its own in it.
    run : str
        Digest of all that decides what the run learns: states of another run are not found.
    """

    def __init__(self, folder: str | os.PathLike[str], run: str) -> None:
        self.folder = Path(folder) / run
        self._due = time.monotonic() + INTERVAL_SECONDS

    def is_due(self) -> bool:
        """Tell whether it is time for another one within an epoch."""
        return time.monotonic() >= self._due

    def save(self, number: int, state: State) -> None:
        """Write a state.

        Parameters
        ----------
        number : int
            Of the steps that were taken: the highest is the last.
        state : State
            What to keep.

        Raises
        ------
        OSError
            If it cannot be written; the states from before are still there.
        """
        started = time.monotonic()
        header = {"facts": json.dumps(state.facts), "library_version": __version__}
        tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
        content = safetensors.torch.save(tensors, header)
        name = f"{number:012d}-{hashlib.sha256(content).hexdigest()}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / name, lambda path: Path(path).write_bytes(content))
        except OSError as error:
            message = f"no checkpoint could be written: {error.strerror}; those before are kept"
            raise OSError(error.errno, message, os.fspath(self.folder)) from error
        # What is ahead of it is damaged, or of another process that runs the same.
        for _, path in [file for file in self._files() if file[1].name <= name][_KEPT:]:
            path.unlink(missing_ok=True)
        for path in self.folder.glob(".*.safetensors.*"):
            # What a kill has left half written.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _LEFT_AFTER:
                    path.unlink()
        took = time.monotonic() - started
        self._due = time.monotonic() + max(INTERVAL_SECONDS, took / _MOST_OF_THE_TIME)

    def load(self) -> State | None:
        """Give the last state that is not damaged, or None.

        Warns
        -----
        UserWarning
            If a file is damaged. It is left where it is, and one before it is taken.
        """
        for digest, path in self._files():
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue  # of another process that runs the same, and is ahead
            if hashlib.sha256(content).hexdigest() == digest:
                return _parse(content)
            warn(f"the checkpoint {os.fspath(path)!r} is damaged and is passed over")
        return None

    def _files(self) -> list[tuple[str, Path]]:
        """Give digests and paths, the last first."""
        found = []
        for path in self.folder.glob("*.safetensors"):
            if match := _NAME.fullmatch(path.name):
                found.append((match[1], match[2], path))
        return [(digest, path) for _, digest, path in sorted(found, reverse=True)]


def _parse(content: bytes) -> State:
    n_bytes = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n_bytes])["__metadata__"]
    return State(json.loads(header["facts"]), safetensors.torch.load(content))
