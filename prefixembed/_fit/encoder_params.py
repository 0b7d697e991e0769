"""Parameters of `PrefixEncoder`: presets, learning rates, and those that a prefix records."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from prefixembed.prefix import Prefix
from prefixembed.reading import Reading

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "prefix_length": 5, "ffn_length": 0, "init": "normal", "background": None, "pairs": "joint",
    },
}  # fmt: skip
# learning_rate="auto": the peak rates of keys, values and head, and of slots.
_RATE, _SLOT_RATE = 1e-2, 2e-3


def learning_rates(learning_rate: float | str) -> tuple[float, float]:
    """Return the peak learning rate, and the share of it that slots have."""
    if isinstance(learning_rate, str):
        return _RATE, _SLOT_RATE / _RATE
    return float(learning_rate), 1.0


def recorded_params(
    prefix: Prefix, names: Collection[str], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the parameters, among some names, that a prefix records.

    A given parameter that contradicts the prefix is a ValueError.
    """
    known: dict[str, Any] = {"prefix_length": prefix.length, "ffn_length": prefix.ffn_length}
    known |= {field.name: getattr(prefix.reading, field.name) for field in fields(Reading)}
    known["objective"] = prefix.objective
    recorded = {k: value for k, value in known.items() if k in names and value is not None}
    for name, value in recorded.items():
        if given.get(name, value) != value:
            raise ValueError(f"{name} is {value!r} in the prefix, got {name}={given[name]!r}")
    return recorded
