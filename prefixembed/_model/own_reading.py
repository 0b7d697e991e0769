"""The pooling that a backbone was trained with, as sentence-transformers writes it down."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from transformers.utils import cached_file

from prefixembed._utils.warnings import warn

_MODULES, _POOLING_CONFIG = "modules.json", "1_Pooling/config.json"
# Their names of ours. What else they have (several at once, weighted means) has no name here.
_NAMES = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}
_OLD_NAMES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
# What changes no direction is left to whoever compares vectors.
_SILENT = ("Transformer", "Pooling", "Normalize")


def own_pooling(name: str, revision: str | None, default: str) -> str:
    """Tell how a backbone makes one vector of token vectors.

    Parameters
    ----------
    name : str
        Hub name or folder.
    revision : str or None
        Revision on the Hub.
    default : str
        What to take where the backbone does not say.

    Returns
    -------
    pooling : {"mean", "cls", "max", "last"}
        As its ``modules.json`` has it.

    Warns
    -----
    UserWarning
        If it has modules, or a pooling, that there is none of here.
    """
    modules = _read(name, revision, _MODULES)
    if not isinstance(modules, list):
        return default
    known = [module for module in modules if isinstance(module, dict)]
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in known]
    further = [kind for kind in kinds if kind not in _SILENT]
    if further:
        warn(
            f"modules.json of backbone {name!r} has {', '.join(further)} behind the transformer, "
            "which is not used here: vectors are pooled token vectors"
        )
    if "Pooling" not in kinds:
        return default
    folder = PurePosixPath(str(known[kinds.index("Pooling")].get("path", "")))
    config = _read(name, revision, str(folder / "config.json"))
    modes = _modes(config if isinstance(config, dict) else {})
    if len(modes) == 1 and modes[0] in _NAMES:
        return _NAMES[modes[0]]
    warn(
        f"backbone {name!r} was trained with pooling {' and '.join(modes) or 'unknown'}, which is "
        f"none of {', '.join(_NAMES.values())}: {default!r} is taken in its place"
    )
    return default


def pooling_files(pooling: str, n_features: int) -> dict[str, bytes]:
    """Write down how a backbone makes one vector, as :func:`own_pooling` reads it.

    Parameters
    ----------
    pooling : {"mean", "cls", "max", "last"}
        How.
    n_features : int
        Length of a vector.

    Returns
    -------
    files : dict of str to bytes
        Their content by path.
    """
    theirs = {ours: name for name, ours in _NAMES.items()}[pooling]
    modules = [
        {"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for k, (kind, path) in enumerate([("Transformer", ""), ("Pooling", "1_Pooling")])
    ]
    config: dict[str, Any] = {"word_embedding_dimension": n_features}
    config |= {old: name == theirs for old, name in _OLD_NAMES.items()}
    files = {_MODULES: modules, _POOLING_CONFIG: config}
    return {path: json.dumps(content, indent=2).encode() for path, content in files.items()}


def _modes(config: dict[str, Any]) -> list[str]:
    mode = config.get("pooling_mode")
    if mode is None:
        return [name for old, name in _OLD_NAMES.items() if config.get(old)]
    return [str(one) for one in mode] if isinstance(mode, list) else [str(mode)]


def _read(name: str, revision: str | None, path: str) -> Any:
    found = cached_file(
        name,
        path,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return None
    try:
        with open(found, encoding="utf-8") as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} of backbone {name!r} cannot be read: {error}") from error
