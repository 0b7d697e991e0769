"""The parameters of published methods, by name."""

from __future__ import annotations

from typing import Any

_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "prefix_length": 5, "ffn_length": 0, "init": "normal", "background": None, "pairs": "joint",
    },
}  # fmt: skip


def preset_params(name: str) -> dict[str, Any]:
    """Return the parameters of an encoder for a method; raise ValueError if it is unknown."""
    if name not in _PRESETS:
        raise ValueError(f"name must be one of {sorted(_PRESETS)}, got {name!r}")
    return _PRESETS[name]
