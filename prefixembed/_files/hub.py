"""Prefixes and banks on the Hub: what is uploaded, and what is fetched."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefixembed._version import __version__

PREFIX_FILE = "prefix.safetensors"
_PAPER = "[arXiv 2305.13499](https://arxiv.org/abs/2305.13499)"


def fetch_folder(name: str | os.PathLike[str], revision: str | None, token: Any) -> Path:
    """Give a folder as it is, or fetch a repository's data files from the Hub.

    Parameters
    ----------
    name : str or path-like
        A folder, or a repository on the Hub.
    revision : str or None
        Branch, tag or commit of the repository.
    token : str, bool or None
        As huggingface_hub takes it.

    Returns
    -------
    folder : Path
        On this machine.

    Raises
    ------
    OSError
        If it is no folder, and the Hub does not have it or cannot be reached.
    ValueError
        If a revision is asked for of a folder.
    """
    if os.path.isdir(name):
        if revision is not None:
            raise ValueError(f"revision is for the Hub, and {os.fspath(name)!r} is a folder")
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        # Data alone: whatever else a repository holds stays there.
        return Path(
            snapshot_download(
                os.fspath(name), revision=revision, token=token,
                allow_patterns=["*.safetensors", "*.json"],
                library_name="prefixembed", library_version=__version__,
            )
        )  # fmt: skip
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise OSError(
            f"{os.fspath(name)!r} is no folder, and could not be fetched from the Hub: {error}"
        ) from error


def push(
    repo_id: str,
    write: Callable[[Path], None],
    card: str,
    *,
    private: bool | None,
    token: Any,
    revision: str | None,
    commit_message: str | None,
) -> str:
    """Upload files and a model card as one commit; a repository that is not there is made.

    Parameters
    ----------
    repo_id : str
        ``"user/name"``.
    write : callable
        Writes the files to the folder that it is given.
    card : str
        README.md.
    private, token, revision, commit_message
        As huggingface_hub takes them.

    Returns
    -------
    url : str
        Of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="prefixembed", library_version=__version__)
    api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        (Path(folder) / "README.md").write_text(card, encoding="utf-8")
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message or f"Upload with prefixembed {__version__}",
            # Prefixes that are no longer in the bank; those that are stay.
            delete_patterns="*.safetensors",
            ignore_patterns=".*",
        )
    return str(commit.commit_url)


def model_card(
    repo_id: str,
    prefixes: Mapping[str, Mapping[str, Any]],
    backbone: str,
    usage: str,
    how: str = "",
) -> str:
    """Describe prefixes: what they were learned from, how well, and how to use them.

    Parameters
    ----------
    repo_id : str
        Title.
    prefixes : mapping of str to mapping
        Of each name: ``objective``, ``n_classes``, ``length``, ``digest`` and ``training``.
    backbone : str
        Its name.
    usage : str
        Lines of Python.
    how : str, default=""
        A sentence on how they are used.

    Returns
    -------
    card : str
        Markdown with a YAML header.
    """
    header = ["library_name: prefixembed", "pipeline_tag: feature-extraction"]
    if not os.path.isdir(backbone):
        header.append(f"base_model: {json.dumps(backbone)}")
    header.append("tags: [prefix-tuning, text-embeddings, arxiv:2305.13499]")
    lines = ["---", *header, "---", "", f"# {_plain(repo_id)}", ""]
    lines.append(
        f"Prefixes of {len(prefixes)} source task{'s' * (len(prefixes) != 1)} on the frozen "
        f"backbone `{_plain(backbone)}`, for the library prefixembed ({_PAPER}). {how}"
    )
    lines += ["", "| source task | kind | classes | texts | held-out texts | positions | digest |"]
    lines.append("|---" * 7 + "|")
    for name, prefix in prefixes.items():
        facts = prefix["training"]
        scores = [
            f"{key.removeprefix('valid_')} {value:.3f}"
            for key, value in facts.items()
            if key.startswith("valid_") and key != "valid_loss" and isinstance(value, float)
        ]
        cells = (
            name, prefix["objective"], prefix["n_classes"] or "", facts.get("n_texts", ""),
            ", ".join(scores), prefix["length"], prefix["digest"][:12],
        )  # fmt: skip
        lines.append(f"| {' | '.join(_plain(str(cell)) for cell in cells)} |")
    return "\n".join([*lines, "", "```python", usage, "```", ""])


def _plain(text: str) -> str:
    """Keep a name from being taken for Markdown."""
    shown = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join(shown.split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
