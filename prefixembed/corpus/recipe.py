"""The recipe of an embedded corpus: everything that decides what its files hold."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import transformers

from prefixembed._embed.representation import Representation
from prefixembed._files.atomic import write_atomically
from prefixembed._version import __version__

RECIPE = ".corpus.json"  # hidden from programs that read all files of a folder
_MADE_WITH = "made_with"  # versions, recorded for people and never compared


def make_recipe(representation: Representation, **settings: Any) -> dict[str, Any]:
    """Return what decides the files of a corpus, as JSON types.

    That is the representation, and settings such as ``output_dtype`` and ``shard_size``. Files may
    lie in one folder if their recipes are equal.
    """
    return json.loads(json.dumps({**representation.to_dict(), **settings}))


def check_recipe(folder: Path, recipe: dict[str, Any]) -> None:
    """Write a recipe to a folder without one, or compare it with the recipe that is there.

    Raise ValueError if the recipes differ, if the one in the folder is damaged, or if the folder
    holds shards and no recipe.
    """
    path = folder / RECIPE
    if not path.exists():
        if any(folder.glob("part-*")):
            raise ValueError(
                f"{os.fspath(folder)!r} holds part-* files that embed_dataset did not write: it "
                f"has no {RECIPE}"
            )
        content = json.dumps({_MADE_WITH: _versions(), **recipe}, indent=1)
        write_atomically(path, lambda temporary: Path(temporary).write_text(content))
        return
    try:
        there = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(there, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(there).__name__}, not a dict")
    there.pop(_MADE_WITH, None)
    if differences := _differences(there, recipe):
        raise ValueError(
            f"{os.fspath(folder)!r} holds vectors made with other settings: "
            + "; ".join(differences)
        )


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    return [
        f"{key} is {_shown(there, key)} there, {_shown(here, key)} here"
        for key in {**here, **there}
        if _shown(here, key) != _shown(there, key)
    ]


def _shown(recipe: dict[str, Any], key: str) -> str:
    # A representation leaves out what has its default value.
    return repr(recipe[key]) if key in recipe else "the default"


def _versions() -> dict[str, str]:
    return {
        "prefixembed": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pyarrow": pa.__version__,
    }
