"""Masked arrays of numpy, whose masked entries are no values."""

from __future__ import annotations

from typing import Any

import numpy as np


def unmasked(values: Any, name: str) -> Any:
    """Return the data of a masked array, and anything else as it is.

    Raises a ValueError that names the position if an entry is masked: to numpy, what lies under a
    mask is an ordinary value.
    """
    if not isinstance(values, np.ma.MaskedArray):
        return values
    masked = np.argwhere(np.ma.getmaskarray(values))
    if len(masked):
        position = ", ".join(map(str, masked[0]))
        raise ValueError(f"{name}[{position}] is masked: leave masked entries out, or fill them")
    return np.ma.getdata(values)
