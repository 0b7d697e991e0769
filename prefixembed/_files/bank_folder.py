"""A bank as a folder: one file a prefix, and one that says what they are called and how used."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from prefixembed._version import __version__
from prefixembed.prefix import Prefix, write_atomically

FORMAT_VERSION = 2
MANIFEST = "bank.json"
_KEYS = {"format_version", "library_version", "prefixes", "parameters", "digest"}
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class BankFiles:
    """What a folder holds.

    Parameters
    ----------
    prefixes : mapping of str to Prefix
        By name, in the bank's order.
    parameters : mapping of str to object
        What the bank does with them.
    """

    prefixes: Mapping[str, Prefix]
    parameters: Mapping[str, Any]


def write_bank(folder: str | os.PathLike[str], files: BankFiles) -> None:
    """Write a bank; a kill at any moment leaves the old bank or the new one.

    Files of prefixes are named after what they hold, so that none of the old ones changes. The
    manifest is replaced next, and what it no longer names is deleted last.

    Parameters
    ----------
    folder : str or path-like
        Made where there is none.
    files : BankFiles
        What to write. Parameters must be JSON.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    # One writer at a time: what one is about to name, another must not delete.
    with FileLock(target / ".bank.lock"):
        _write(target, files)


def _write(target: Path, files: BankFiles) -> None:
    digests = {name: _digest_prefix(prefix) for name, prefix in files.prefixes.items()}
    for name, prefix in files.prefixes.items():
        path = target / _file_name(digests[name])
        if not _holds(path, digests[name]):
            prefix.save(path)
    content = {
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "prefixes": digests,
        "parameters": dict(files.parameters),
    }
    manifest = json.dumps({**content, "digest": _digest(content)}, indent=2)
    write_atomically(
        target / MANIFEST, lambda path: Path(path).write_text(manifest + "\n", encoding="utf-8")
    )
    named = {_file_name(digest) for digest in digests.values()}
    for path in target.glob("*.safetensors"):
        # Only what a bank may have written: other files of the folder are left alone.
        if _DIGEST.fullmatch(path.stem) and path.name not in named:
            path.unlink(missing_ok=True)


def read_bank(folder: str | os.PathLike[str]) -> BankFiles:
    """Read what :func:`write_bank` wrote; nothing in it is executed.

    Parameters
    ----------
    folder : str or path-like
        Where it is.

    Returns
    -------
    files : BankFiles
        Its content, every prefix checked against its digest.

    Raises
    ------
    FileNotFoundError
        If there is no bank, or the file of a prefix is missing.
    ValueError
        If a file is damaged, is none of a bank, or comes from another version.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no bank in {os.fspath(folder)!r}: it has no {MANIFEST}")
    manifest = path.read_bytes()
    while True:
        try:
            return _read(folder, manifest)
        except FileNotFoundError:
            # Another process may have replaced the bank meanwhile.
            before, manifest = manifest, path.read_bytes()
            if manifest == before:
                raise


def _read(folder: str | os.PathLike[str], manifest: bytes) -> BankFiles:
    path = Path(folder) / MANIFEST
    try:
        content = _check_manifest(json.loads(manifest.decode("utf-8")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)!r} cannot be read: {error}") from error
    prefixes = {}
    for name, digest in content["prefixes"].items():
        prefixes[name] = Prefix.load(Path(folder) / _file_name(digest))
        if (found := _digest_prefix(prefixes[name])) != digest:
            raise ValueError(
                f"{os.fspath(Path(folder) / _file_name(digest))!r} has digest {found}: it is not "
                f"the prefix {name!r} of {os.fspath(path)!r}"
            )
    return BankFiles(prefixes, content["parameters"])


def _check_manifest(content: Any) -> dict[str, Any]:
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
        raise ValueError(f"content has digest {_digest(content)}, and says {digest}")
    prefixes, parameters = content["prefixes"], content["parameters"]
    if not isinstance(prefixes, dict) or not isinstance(parameters, dict):
        raise ValueError("its prefixes and parameters are no objects")
    for name, one in prefixes.items():
        if not isinstance(one, str) or not _DIGEST.fullmatch(one):
            raise ValueError(f"prefix {name!r} has no digest: {one!r}")
    return content


def _file_name(digest: str) -> str:
    return f"{digest}.safetensors"


def _holds(path: Path, digest: str) -> bool:
    # A file of that name is that prefix, unless it is damaged.
    try:
        return _digest_prefix(Prefix.load(path)) == digest
    except (OSError, ValueError):
        return False


def _digest_prefix(prefix: Prefix) -> str:
    # With the facts that do not enter a prefix's own digest, such as where the backbone lies.
    facts = [prefix.digest, prefix.backbone, prefix.revision, dict(prefix.training)]
    return _digest({"prefix": facts})


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
