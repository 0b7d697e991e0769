"""Read how a backbone was trained to read texts, from the files next to its weights."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from transformers.utils import cached_file

from prefixembed._utils.warnings import warn
from prefixembed.reading import Reading

# Written by MultiTaskEncoder.save: a whole reading, which the files below cannot express.
_OWN = "prefixembed.json"
_MODULES, _POOLING_CONFIG = "modules.json", "1_Pooling/config.json"
_LENGTH_CONFIG = "sentence_bert_config.json"
_PROMPT_CONFIG = "config_sentence_transformers.json"
# From their names to ours, where we have the mode.
_NAMES = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}
_OLD_NAMES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
# Normalize does not change directions; callers that compare vectors normalize them.
_IGNORED = ("Transformer", "Pooling", "Normalize")


def own_reading(name: str, revision: str | None, default_pooling: str, longest: int) -> Reading:
    """Return how a backbone was trained to read texts, of at most `longest` tokens.

    Pairs are read apart if ``modules.json`` says that the backbone embeds sentences, and jointly
    otherwise. Modules and poolings that this library does not have raise a warning.
    """
    own = _read(name, revision, _OWN)
    if isinstance(own, dict):
        try:
            return Reading(**own["reading"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{_OWN} of backbone {name!r} cannot be read: {error}") from error
    modules = _read(name, revision, _MODULES)
    if not isinstance(modules, list):
        longest = _limit(_read_dict(name, revision, _LENGTH_CONFIG), longest)
        return Reading(default_pooling, longest, pairs="joint")
    modules = [module for module in modules if isinstance(module, dict)]
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    paths = {kind: str(module.get("path", "")) for kind, module in zip(kinds, modules, strict=True)}
    if unknown := [kind for kind in kinds if kind not in _IGNORED]:
        warn(
            f"modules.json of backbone {name!r} has {', '.join(unknown)} behind the transformer, "
            "which is not used here: vectors are pooled token vectors"
        )
    pooling = default_pooling
    if "Pooling" in paths:
        config = _read_dict(name, revision, str(PurePosixPath(paths["Pooling"]) / "config.json"))
        pooling = _pooling(name, config, default_pooling)
    length_path = PurePosixPath(paths.get("Transformer", "")) / _LENGTH_CONFIG
    return Reading(
        pooling=pooling,
        max_length=_limit(_read_dict(name, revision, str(length_path)), longest),
        pairs="apart" if "Pooling" in paths else "joint",
        prompt=_default_prompt(_read_dict(name, revision, _PROMPT_CONFIG)),
    )


def reading_files(reading: Reading, n_features: int) -> dict[str, bytes]:
    """Return the files that record a reading, by path.

    One holds all of it for :func:`own_reading`; the others hold what sentence-transformers knows.
    """
    theirs = {ours: name for name, ours in _NAMES.items()}[reading.pooling]
    modules = [
        {"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for k, (kind, path) in enumerate([("Transformer", ""), ("Pooling", "1_Pooling")])
    ]
    config: dict[str, Any] = {"word_embedding_dimension": n_features}
    config |= {old: name == theirs for old, name in _OLD_NAMES.items()}
    files: dict[str, Any] = {
        _OWN: {"reading": reading.to_dict()},
        _MODULES: modules,
        _POOLING_CONFIG: config,
        _LENGTH_CONFIG: {"max_seq_length": reading.max_length, "do_lower_case": False},
    }
    if reading.prompt:
        files[_PROMPT_CONFIG] = {
            "prompts": {"default": reading.prompt},
            "default_prompt_name": "default",
        }
    return {path: json.dumps(content, indent=2).encode() for path, content in files.items()}


def _pooling(name: str, config: dict[str, Any], default: str) -> str:
    mode = config.get("pooling_mode")
    if mode is None:
        modes = [known for old, known in _OLD_NAMES.items() if config.get(old)]
    else:
        modes = [str(one) for one in mode] if isinstance(mode, list) else [str(mode)]
    if len(modes) == 1 and modes[0] in _NAMES:
        return _NAMES[modes[0]]
    warn(
        f"backbone {name!r} was trained with pooling {' and '.join(modes) or 'unknown'}, which is "
        f"not one of {', '.join(_NAMES.values())}: {default!r} is used instead"
    )
    return default


def _limit(config: dict[str, Any], longest: int) -> int:
    limit = config.get("max_seq_length")
    return min(longest, limit) if isinstance(limit, int) and limit >= 8 else longest


def _default_prompt(config: dict[str, Any]) -> str:
    prompts, name = config.get("prompts"), config.get("default_prompt_name")
    prompt = prompts.get(name, "") if isinstance(prompts, dict) and name is not None else ""
    return prompt if isinstance(prompt, str) else ""


def _read_dict(name: str, revision: str | None, path: str) -> dict[str, Any]:
    content = _read(name, revision, path)
    return content if isinstance(content, dict) else {}


def _read(name: str, revision: str | None, path: str) -> Any:
    """Return the content of a JSON file, or None if the backbone does not have it."""
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
