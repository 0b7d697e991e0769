"""A bank as a folder: one file per prefix, and a manifest with names and parameters."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefixembed._files.atomic import file_lock, make_folder, write_atomically
from prefixembed._files.places import located, shared_name
from prefixembed._version import __version__

FORMAT_VERSION = 3
MANIFEST = "bank.json"
_KEYS = {"format_version", "library_version", "prefixes", "parameters", "digest"}
_DIGEST = re.compile("[0-9a-f]{64}")
# How often a reader starts from the manifest, since a file that it names may be gone.
_ATTEMPTS = 20


@dataclass(frozen=True)
class BankFolder:
    """The content of a folder."""

    prefixes: Mapping[str, bytes]  # content of files by name of prefix, in the order of the bank
    parameters: Mapping[str, Any]  # JSON types


def write_folder(
    folder: str | os.PathLike[str], prefixes: Mapping[str, bytes], parameters: Mapping[str, Any]
) -> None:
    """Write a bank; a kill at any moment leaves the old bank or the new one.

    Each file of a prefix is named after the SHA-256 of its content, so that no file of the old
    bank changes. The manifest is replaced next. Files that the old one named and the new one does
    not are deleted last; no other file is touched. Raises ValueError if there is a manifest that
    this library has not written.
    """
    target = make_folder(folder)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in prefixes.items()}
    # One writer at a time: another must not delete a file that this one is about to name.
    with file_lock(target / ".bank.lock"):
        old = _files_of_old(target / MANIFEST)
        for name, digest in digests.items():
            path = target / _file_name(digest)
            if not _is_whole(path, digest):
                _write(path, prefixes[name])
        manifest = {
            "format_version": FORMAT_VERSION,
            "library_version": __version__,
            "prefixes": digests,
            "parameters": _portable(parameters),
        }
        manifest["digest"] = _digest(manifest)
        _write(target / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
        for name in set(old) - set(map(_file_name, digests.values())):
            (target / name).unlink(missing_ok=True)


def read_folder(folder: str | os.PathLike[str]) -> BankFolder:
    """Read what :func:`write_folder` wrote; nothing in it is executed.

    Raises FileNotFoundError if a file is missing, and ValueError if one is damaged or has another
    format version.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no bank in {os.fspath(folder)!r}: it has no {MANIFEST}")
    for _ in range(_ATTEMPTS - 1):
        # Another process may replace the bank between the manifest and a file that it names, and
        # yet another may bring the first one back: an equal manifest does not mean a lost file.
        with suppress(FileNotFoundError):
            return _read(path, path.read_bytes())
    return _read(path, path.read_bytes())


def find_backbone(
    parameters: Mapping[str, Any], fingerprints: Sequence[str | None]
) -> dict[str, Any]:
    """Return saved parameters with the backbone's folder on this machine.

    If it is not found, it is None, so that prefixes decide, or stays as it is without prefixes.
    """
    name = parameters.get("backbone")
    if not isinstance(name, str) or not name.startswith("./") or os.path.isdir(name):
        return dict(parameters)
    folder = located(name, (fingerprints or [None])[0])
    return {**parameters, "backbone": None if folder == name and fingerprints else folder}


def prefix_files(content: bytes) -> list[str]:
    """Return the names of the files that a manifest names, of this format version or another.

    Raises ValueError if this library has not written it.
    """
    try:
        manifest = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError(str(error)) from error
    if not isinstance(manifest, dict) or not {"format_version", "library_version"} <= set(manifest):
        raise ValueError("it is not the manifest of a bank")
    prefixes = manifest.get("prefixes")
    named = prefixes.values() if isinstance(prefixes, dict) else []
    return [_file_name(one) for one in named if isinstance(one, str) and _DIGEST.fullmatch(one)]


def _files_of_old(manifest: Path) -> list[str]:
    try:
        return prefix_files(manifest.read_bytes())
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ValueError(
            f"{os.fspath(manifest)!r} is not of a bank, or is damaged: {error}. Delete it, or save "
            "to another folder"
        ) from error


def _portable(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out where a backbone lies on this machine."""
    backbone = parameters.get("backbone")
    if not isinstance(backbone, str) or (name := shared_name(backbone)) == backbone:
        return dict(parameters)
    return {**parameters, "backbone": name, "revision": None}


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(content))


def _read(path: Path, manifest: bytes) -> BankFolder:
    try:
        content = _check_manifest(json.loads(manifest.decode("utf-8")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)!r} cannot be read: {error}") from error
    prefixes = {
        name: _read_prefix(path.parent / _file_name(digest), name, digest)
        for name, digest in content["prefixes"].items()
    }
    return BankFolder(prefixes, content["parameters"])


def _read_prefix(path: Path, name: str, digest: str) -> bytes:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"no file {os.fspath(path)!r} for prefix {name!r}") from None
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        raise ValueError(
            f"{os.fspath(path)!r} is damaged: it has digest {found} and is not prefix {name!r}"
        )
    return content


def _check_manifest(content: Any) -> dict[str, Any]:
    """Return the manifest if it is whole, and raise a ValueError otherwise."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not the manifest of a bank")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"format version is {version}, this version of prefixembed reads {FORMAT_VERSION}"
        )
    if set(content) != _KEYS:
        raise ValueError(f"its keys are {sorted(content)}, not {sorted(_KEYS)}")
    digest = content.pop("digest")
    if digest != _digest(content):
        raise ValueError(f"its content has digest {_digest(content)}, but it names {digest}")
    prefixes, parameters = content["prefixes"], content["parameters"]
    if not isinstance(prefixes, dict) or not isinstance(parameters, dict):
        raise ValueError("its prefixes and parameters are not objects")
    for name, one in prefixes.items():
        if not isinstance(one, str) or not _DIGEST.fullmatch(one):
            raise ValueError(f"prefix {name!r} has no digest: {one!r}")
    return content


def _file_name(digest: str) -> str:
    return f"{digest}.safetensors"


def _is_whole(path: Path, digest: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except OSError:
        return False


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
