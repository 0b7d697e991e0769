"""A bank as a table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from prefixembed.prefix import Prefix

_HEAD = ("prefix", "active", "weight", "source task", "positions", "texts", "held out", "kB")


def bank_table(
    prefixes: Mapping[str, Prefix],
    active: Sequence[str],
    weights: Mapping[str, float],
    backbone: str,
    combine: str,
) -> str:
    """Lay out what a bank holds.

    Parameters
    ----------
    prefixes : mapping of str to Prefix
        By name.
    active : sequence of str
        Those that are used.
    weights : mapping of str to float
        Of each.
    backbone : str
        Its name.
    combine : str
        How they are combined.

    Returns
    -------
    html : str
        Names are escaped.
    """
    caption = (
        f"{len(active)} of {len(prefixes)} prefixes active, combined by {escape(combine)}, on "
        f"{escape(backbone)}"
    )
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    rows = "".join(_row(name, p, name in active, weights[name]) for name, p in prefixes.items())
    return (
        f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _row(name: str, prefix: Prefix, active: bool, weight: float) -> str:
    task = prefix.objective.replace("_", " ")
    if prefix.classes is not None:
        task += f", {len(prefix.classes)} classes"
    if prefix.pairs is not None:
        task += f", pairs {prefix.pairs}"
    facts = prefix.training
    scores = [
        f"{key.removeprefix('valid_')} {value:.3f}"
        for key, value in facts.items()
        if key.startswith("valid_") and key != "valid_loss" and isinstance(value, float)
    ]
    n_texts = facts.get("n_texts")
    size = sum(array.nbytes for array in prefix._tensors().values())
    cells = (
        name,
        "yes" if active else "no",
        f"{weight:g}",
        task,
        str(prefix.length),
        f"{n_texts:,}" if isinstance(n_texts, int) else "",
        ", ".join(scores),
        f"{size / 1000:,.0f}",
    )
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
