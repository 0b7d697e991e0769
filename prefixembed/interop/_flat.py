"""The flat layout of prefixes, which PEFT, P-Tuning v2 and adapters share.

A flat prefix has one row per position. A row holds the keys of layer 0, the values of layer 0,
the keys of layer 1, and so on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils._param_validation import StrOptions

from prefixembed._utils.parameters import Count
from prefixembed.backbone import Backbone
from prefixembed.prefix import Prefix
from prefixembed.reading import POOLINGS, Reading

# Constraints of the parameters that all loaders share.
OPTIONS: dict[str, list[Any]] = {
    "revision": [str, None],
    "pooling": [StrOptions({"auto", *POOLINGS})],
    "max_length": [Count(8), None],
}


def from_flat(
    flat: NDArray[np.float32],
    backbone: Backbone,
    *,
    pooling: str,
    max_length: int | None,
    takes_positions: bool,
) -> Prefix:
    """Build a prefix without a head from its flat layout, (position, width).

    If the prefix takes the first positions, the first token of a text comes after it; otherwise,
    that token has position 0. Raise ValueError if the prefix does not fit the backbone.
    """
    width = position_width(backbone)
    if flat.ndim != 2 or flat.shape[1] != width:
        raise ValueError(
            f"a prefix for backbone {backbone.name!r} has shape (positions, {width}), "
            f"got {flat.shape}"
        )
    first_position = len(flat) if takes_positions else 0
    reading = Reading(
        pooling=backbone.reading.pooling if pooling == "auto" else pooling,
        max_length=max_length or backbone.max_length - first_position,
        first_position=first_position,
    )
    backbone.check_reading(reading)
    n_layers, n_heads, head_dim = backbone.layout
    by_position = flat.reshape(len(flat), n_layers, 2, n_heads, head_dim)
    return Prefix(
        keys_values=np.ascontiguousarray(by_position.transpose(1, 2, 3, 0, 4), dtype=np.float32),
        backbone=backbone.name,
        revision=backbone.revision,
        fingerprint=backbone.fingerprint,
        n_features=backbone.n_features,
        reading=reading,
    )


def to_flat(prefix: Prefix, library: str) -> NDArray[np.float32]:
    """Return the flat layout of a prefix, as :func:`from_flat` takes it.

    Raise ValueError if the prefix has slots, which files of `library` cannot hold.
    """
    if prefix.slots is not None:
        raise ValueError(
            f"{library} holds keys and values of attention only, and this prefix has "
            f"{prefix.length} positions and {prefix.ffn_length} slots in each feed-forward layer: "
            "learn it with ffn_length=0 and at least one position (prefix_length)"
        )
    by_position = prefix.keys_values.transpose(3, 0, 1, 2, 4)
    return np.ascontiguousarray(by_position).reshape(prefix.length, -1)


def position_width(backbone: Backbone) -> int:
    """Return the number of keys and values per prefix position."""
    n_layers, n_heads, head_dim = backbone.layout
    return n_layers * 2 * n_heads * head_dim


def as_float32(value: Any) -> NDArray[np.float32]:
    """Return an array or a tensor of any dtype, bfloat16 included, as a float32 array."""
    if isinstance(value, torch.Tensor):
        value = value.detach().float().cpu().numpy()
    return np.asarray(value, dtype=np.float32)
