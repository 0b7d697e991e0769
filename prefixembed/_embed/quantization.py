"""Smaller vectors, for a store."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTPUT_DTYPES: dict[str, type[Any]] = {
    "float32": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "binary": np.uint8,
}
# Root mean squares of its vector that the largest int8 stands for. Pre-trained encoders have a few
# features many times larger than all others: these are cut, so that the others keep their steps.
_INT8_RANGE = 4.0


def output_width(n_features: int, output_dtype: str) -> int:
    """Give the number of columns that vectors of some features take."""
    return -(-n_features // 8) if output_dtype == "binary" else n_features


def quantize(vectors: NDArray[np.float32], output_dtype: str) -> NDArray[Any]:
    """Store vectors in fewer bytes, each by itself (Du et al., arXiv 2004.14287).

    Parameters
    ----------
    vectors : float32 ndarray of shape (n_texts, n_features)
        As they were pooled.
    output_dtype : {"float32", "float16", "int8", "binary"}
        ``"int8"`` gives each vector a scale of its own: 127 stands for four times its root mean
        square, and what is larger is cut. ``"binary"`` keeps signs, eight features a byte, the
        first one in the highest bit; :func:`numpy.unpackbits` gives zeros and ones again.

    Returns
    -------
    stored : ndarray of shape (n_texts, n_features), or (n_texts, ceil(n_features / 8)) of uint8
        For ``"binary"``, the last bits of a row that is not full are zero.
    """
    if output_dtype == "float32":
        return vectors
    if output_dtype == "float16":
        largest = np.finfo(np.float16).max
        return vectors.clip(-largest, largest).astype(np.float16)
    if output_dtype == "binary":
        return np.packbits(vectors > 0, axis=1)
    scale = np.sqrt(np.mean(np.square(vectors, dtype=np.float64), axis=1, keepdims=True))
    scale[scale == 0] = 1.0
    steps = np.rint(vectors * (127 / _INT8_RANGE / scale))
    return steps.clip(-127, 127).astype(np.int8)
