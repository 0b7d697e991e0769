"""How files name a backbone that lies in a folder: by its name, not by a path of one machine."""

from __future__ import annotations

import os
import re
import sys
from pathlib import PurePosixPath, PureWindowsPath

# A folder in the Hub's cache is a copy of a repository.
_SNAPSHOT = re.compile(r"models--([^/\\]+)[/\\]snapshots[/\\][^/\\]+[/\\]?$")
_PACKAGES = ("site-packages", "dist-packages")  # folders that installed packages lie in
# Folders of backbones that this process has loaded, by fingerprint and name, and the last one of
# each fingerprint.
_places: dict[tuple[str, str | None], str] = {}


def shared_name(backbone: str) -> str:
    """Return what a file calls a backbone: ``./name`` for an absolute path.

    Whoever gets the file learns nothing of the machine, and nobody takes the name of a folder for
    one on the Hub. A folder in an installed package is ``./package/name``. Names on the Hub and
    relative paths are returned as they are.
    """
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(backbone).is_absolute():
            if match := _SNAPSHOT.search(backbone):
                return match[1].replace("--", "/")
            parts = kind(backbone).parts
            inside = [k for k, part in enumerate(parts[:-1]) if part in _PACKAGES]
            return "./" + "/".join(parts[inside[-1] + 1 :] if inside else parts[-1:])
    return backbone


def remember(folder: str, fingerprint: str) -> None:
    """Remember where a backbone lies, for files that are loaded later in this process."""
    path = os.path.abspath(folder)
    _places[fingerprint, shared_name(path)] = _places[fingerprint, None] = path


def located(name: str, fingerprint: str | None) -> str:
    """Return the folder of a backbone that a file names.

    This process has loaded it, or it is part of an installed package. Otherwise, return the name.
    """
    if not name.startswith("./"):
        return name
    if fingerprint is not None:
        known = _places.get((fingerprint, name)) or _places.get((fingerprint, None))
        if known is not None:
            return known
    parts = PurePosixPath(name).parts
    if ".." in parts:  # a file must not lead out of a package
        return name
    roots = [root for root in sys.path if os.path.basename(root) in _PACKAGES]
    folders = [os.path.join(root, *parts) for root in roots]
    return next((folder for folder in folders if os.path.isdir(folder)), name)
