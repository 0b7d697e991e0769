"""Descriptions of prefixes: the model card of a repository, and the table of a notebook."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from prefixembed._files.places import shared_name

_PAPER = "[arXiv 2305.13499](https://arxiv.org/abs/2305.13499)"
_CARD_COLUMNS = (
    "source task", "objective", "classes", "texts", "held-out scores", "positions", "slots",
    "reading", "digest",
)  # fmt: skip
_TABLE_COLUMNS = (
    "prefix", "active", "weight", "source task", "positions", "slots", "texts", "held out", "kB",
)  # fmt: skip


def model_card(
    repo_id: str,
    prefixes: Mapping[str, Mapping[str, Any]],  # what Prefix.facts returns, by name
    backbone: str,
    fingerprint: str | None,  # of the backbone, if it is known
    usage: str,  # lines of Python that load and use the prefixes
    how: str = "",  # sentence on how the prefixes are combined
) -> str:
    """Return the model card of a prefix or a bank: Markdown with a YAML header.

    The last line holds a digest of the others; see :func:`is_own_card`.
    """
    header = ["library_name: prefixembed", "pipeline_tag: feature-extraction"]
    if not _is_folder(backbone):
        header.append(f"base_model: {json.dumps(backbone)}")
    header.append("tags: [prefix-tuning, text-embeddings, arxiv:2305.13499]")
    intro = (
        f"Prefixes of {len(prefixes)} source task{'s' * (len(prefixes) != 1)} on the frozen "
        f"backbone `{_plain(shared_name(backbone).removeprefix('./'))}`"
        f"{f' (fingerprint `{fingerprint[:12]}`)' if fingerprint else ''}, for the library "
        f"prefixembed ({_PAPER}). {how}"
    )
    table = [_markdown_row(_CARD_COLUMNS), "|---" * len(_CARD_COLUMNS) + "|"]
    for name, facts in prefixes.items():
        cells = (
            name, facts["objective"] or "none", facts["n_classes"] or "",
            facts["training"].get("n_texts", ""), _scores(facts["training"]), facts["length"],
            facts["ffn_length"], _reading(facts["reading"]), facts["digest"][:12],
        )  # fmt: skip
        table.append(_markdown_row([_plain(str(cell)) for cell in cells]))
    lines = ["---", *header, "---", "", f"# {_plain(repo_id)}", "", intro, "", *table]
    text = "\n".join([*lines, "", "```python", usage, "```", ""])
    return f"{text}\n{_signature(text)}\n"


def bank_card(
    repo_id: str,
    prefixes: Mapping[str, Mapping[str, Any]],  # what Prefix.facts returns, by name
    backbone: str,
    fingerprint: str | None,  # of the backbone, if it is known
    active: Sequence[str],  # names
    combine: str,
) -> str:
    """Return the model card of a bank."""
    usage = (
        f"from prefixembed import PrefixBank\n\n"
        f"bank = PrefixBank.from_pretrained({repo_id!r}{backbone_argument(backbone)})\n"
        f'vectors = bank.transform(["a text"])'
    )
    how = f"Combined by `{combine}`; active: {', '.join(active) or 'none'}."
    return model_card(repo_id, prefixes, backbone, fingerprint, usage, how)


def is_own_card(text: str) -> bool:
    """Return whether a model card is as :func:`model_card` returned it: nobody has edited it."""
    body, _, signature = text.rstrip("\n").rpartition("\n")
    return signature == _signature(body)


def backbone_argument(backbone: str) -> str:
    """Return the argument that a card shows where the reader must say where a folder lies."""
    if not _is_folder(backbone):
        return ""
    return f", backbone={'path/to/' + shared_name(backbone).removeprefix('./')!r}"


def bank_table(
    prefixes: Mapping[str, Mapping[str, Any]],  # what Prefix.facts returns, by name
    weights: Mapping[str, float],  # of the active prefixes
    backbone: str,
    combine: str,
) -> str:
    """Return an HTML table of the prefixes of a bank, with names escaped."""
    caption = (
        f"{len(weights)} of {len(prefixes)} prefixes active, combined by {combine}, on {backbone}"
    )
    rows = []
    for name, facts in prefixes.items():
        n_texts = facts["training"].get("n_texts")
        cells = (
            name, "yes" if name in weights else "no",
            f"{weights[name]:g}" if name in weights else "", _task(facts), str(facts["length"]),
            str(facts["ffn_length"]), f"{n_texts:,}" if isinstance(n_texts, int) else "",
            _scores(facts["training"]), f"{facts['n_bytes'] / 1000:,.0f}",
        )  # fmt: skip
        rows.append(_html_row(cells, "td"))
    return (
        f"<table><caption>{escape(caption)}</caption>"
        f"<thead>{_html_row(_TABLE_COLUMNS, 'th')}</thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _is_folder(backbone: str) -> bool:
    return shared_name(backbone).startswith(".") or os.path.isdir(backbone)


def _signature(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"<!-- written by prefixembed, which replaces it while it is unchanged: {digest} -->"


def _scores(training: Mapping[str, Any]) -> str:
    """Return the scores on held-out texts, such as ``"accuracy 0.875"``."""
    return ", ".join(
        f"{key.removeprefix('valid_')} {value:.3f}"
        for key, value in training.items()
        if key.startswith("valid_") and key != "valid_loss" and isinstance(value, float)
    )


def _reading(reading: Mapping[str, Any]) -> str:
    return ", ".join(f"{field}={value!r}" for field, value in reading.items())


def _task(facts: Mapping[str, Any]) -> str:
    task = (facts["objective"] or "none").replace("_", " ")
    if facts["n_classes"] is not None:
        task += f", {facts['n_classes']} classes"
    if facts["reading"].get("pairs") is not None:
        task += f", pairs {facts['reading']['pairs']}"
    return task


def _html_row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Keep a name from being read as Markdown."""
    shown = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join(shown.split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
