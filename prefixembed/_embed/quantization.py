"""Smaller dtypes for vectors that are stored."""

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
# The largest int8 stands for this many root mean squares of a vector. In pre-trained encoders a few
# features are many times larger than all others. They are clipped, so that the others keep their
# resolution.
_INT8_RANGE = 4.0


def output_width(n_features: int, output_dtype: str) -> int:
    """Return the number of columns of vectors that are stored in `output_dtype`."""
    return -(-n_features // 8) if output_dtype == "binary" else n_features


def quantize(vectors: NDArray[np.float32], output_dtype: str) -> NDArray[Any]:
    """Convert vectors to a smaller dtype, each by itself (Du et al., arXiv 2004.14287).

    ``"binary"`` keeps signs only, packed as :func:`numpy.unpackbits` unpacks them.
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
