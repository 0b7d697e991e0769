"""A batch: what one forward call of a backbone reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """Padded token ids of several texts.

    Parameters
    ----------
    ids : int64 ndarray of shape (batch, position)
        Token ids.
    type_ids : int64 ndarray of shape (batch, position)
        Segment of each token: 1 in the second text of a pair.
    mask : bool ndarray of shape (batch, position) or None
        True for tokens, False for padding. None if nothing is padded.
    """

    ids: NDArray[np.int64]
    type_ids: NDArray[np.int64]
    mask: NDArray[np.bool_] | None
