"""The folder of a backbone: what is missing, damaged or changed in it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

_CONFIG = "config.json"
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
# Files that decide what a backbone is, at the top of its folder; those of sentence-transformers'
# modules lie one level deeper.
_DECISIVE = (".bin", ".jinja", ".json", ".model", ".safetensors", ".txt")
_ELSEWHERE = (
    "If it lies elsewhere, set the parameter backbone of the bank or the encoder (backbone=...): "
    "its folder, or its name on the Hub"
)
_OFFLINE = "What works offline is prefixembed.tasks.demo_backbone(), a folder of the demo extra"

Stamp = tuple[tuple[str, int, int], ...]  # path, size and time of change of each file


def folder_stamp(folder: str) -> Stamp:
    """Return what changes if a file of a backbone is overwritten; nothing if it is no folder."""
    if not os.path.isdir(folder):
        return ()
    files = list(Path(folder).glob(f"*/{_CONFIG}"))
    files += [path for path in Path(folder).iterdir() if path.suffix in _DECISIVE]
    found = []
    for path in sorted(files):
        try:
            status = path.stat()
        except OSError:
            continue  # a dangling link, or a file that somebody is replacing
        found.append((str(path), status.st_size, status.st_mtime_ns))
    return tuple(found)


@contextmanager
def naming(name: str, revision: str | None) -> Iterator[None]:
    """Name the backbone in errors of loading, and the file that is missing or damaged."""
    _check_place(name)
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        if (damaged := _damaged_file(name, revision)) is not None:
            path, reason = damaged
            raise ValueError(
                f"{os.fspath(path)!r} of backbone {name!r} is damaged: {reason}"
            ) from error
        if not isinstance(error, OSError):
            raise ValueError(f"backbone {name!r} could not be loaded: {error}") from error
        if os.path.isdir(name):
            raise OSError(f"backbone {name!r} could not be loaded: {error}") from error
        raise OSError(
            f"backbone {name!r} is not a folder, and could not be loaded from the Hub: {error}\n"
            f"{_ELSEWHERE}. {_OFFLINE}."
        ) from error


def _check_place(name: str) -> None:
    """Check that a folder is one of a backbone, and that what can be no name on the Hub is one."""
    if os.path.isdir(name):
        if os.path.isfile(os.path.join(name, _CONFIG)):
            return
        inside = [*Path(name).glob(f"*/{_CONFIG}"), *Path(name).glob(f"*/*/{_CONFIG}")]
        others = sorted(os.fspath(path.parent) for path in inside if _is_of_a_model(path))
        raise FileNotFoundError(
            f"backbone {name!r} is a folder without {_CONFIG}; "
            f"folders in it that have one: {', '.join(map(repr, others)) or 'none'}"
        )
    if os.path.exists(name):
        raise NotADirectoryError(
            f"backbone must be a folder or a name on the Hub, got the file {name!r}"
        )
    if not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"there is no backbone folder {name!r}. {_ELSEWHERE}")


def _is_of_a_model(config: Path) -> bool:
    try:
        return b'"model_type"' in config.read_bytes()  # a pooling module's has none
    except OSError:
        return False


def _damaged_file(name: str, revision: str | None) -> tuple[Path, str] | None:
    """Return the first file of a backbone that cannot be read, and why."""
    config = cached_file(
        name, _CONFIG, revision=revision, local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    files = [] if config is None else sorted(Path(config).parent.iterdir())
    for path in files:
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".safetensors":
                safe_open(path, "pt")
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            return path, str(error)
        if path.suffix == ".bin":
            try:
                torch.load(path, "cpu", weights_only=True)
            except Exception as error:  # of many kinds
                return path, str(error) or type(error).__name__
    return None
