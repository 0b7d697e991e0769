"""How files name a backbone that lies in a folder: by its name, not by a path of one machine."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath, PureWindowsPath

# A folder in the Hub's cache is a copy of a repository.
_SNAPSHOT = re.compile(r"models--([^/\\]+)[/\\]snapshots[/\\][^/\\]+[/\\]?$")
# Folders of backbones that this process has loaded, by fingerprint and name, and the last one of
# each fingerprint.
_places: dict[tuple[str, str | None], str] = {}


def shared_name(backbone: str) -> str:
    """Return what a file calls a backbone: ``./name`` for an absolute path.

    Whoever gets the file learns nothing of the machine, and nobody takes the name of a folder for
    one on the Hub. Names on the Hub and relative paths are returned as they are.
    """
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(backbone).is_absolute():
            if match := _SNAPSHOT.search(backbone):
                return match[1].replace("--", "/")
            return f"./{kind(backbone).name}"
    return backbone


def remember(folder: str, fingerprint: str) -> None:
    """Remember where a backbone lies, for files that are loaded later in this process."""
    path = os.path.abspath(folder)
    _places[fingerprint, shared_name(path)] = _places[fingerprint, None] = path


def located(name: str, fingerprint: str) -> str:
    """Return the folder of a backbone that a file names, or the name if no such one was loaded."""
    if not name.startswith("./"):
        return name
    return _places.get((fingerprint, name)) or _places.get((fingerprint, None), name)
