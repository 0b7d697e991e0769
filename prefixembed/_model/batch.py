"""A batch: what one forward call of a backbone reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """Padded token ids of several texts."""

    ids: NDArray[np.int64]  # (batch, position)
    type_ids: NDArray[np.int64]  # (batch, position), 1 in the second text of a pair
    mask: NDArray[np.bool_] | None  # (batch, position), True for tokens; None without padding
