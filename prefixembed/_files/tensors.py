"""Tensors and a JSON header in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy as numpy_format
from numpy.typing import NDArray
from safetensors import SafetensorError

if TYPE_CHECKING:
    from torch import Tensor

_KEY = "prefixembed"
# What reading a damaged file raises besides errors of safetensors itself.
_UNREADABLE = (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)


def pack_tensors(header: Mapping[str, Any], tensors: Mapping[str, NDArray[Any] | Tensor]) -> bytes:
    """Return the content of a safetensors file, equal for equal arguments.

    The header holds JSON types, and floats keep every bit. Arrays of numpy and tensors of PyTorch
    cannot be mixed. Memory that tensors share is refused.
    """
    metadata = {_KEY: json.dumps(header)}
    given: Mapping[str, Any] = tensors
    if all(isinstance(tensor, np.ndarray) for tensor in given.values()):
        arrays = {name: np.asarray(array, order="C") for name, array in given.items()}
        return numpy_format.save(arrays, metadata)
    import safetensors.torch as torch_format

    contiguous = {name: tensor.contiguous() for name, tensor in given.items()}
    return torch_format.save(contiguous, metadata)


def unpack_tensors(
    content: bytes, name: str, *, framework: str = "numpy"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header and the tensors that :func:`pack_tensors` packed; nothing is executed.

    `framework` is ``"numpy"``, or ``"torch"``, which knows dtypes such as bfloat16. Damaged or
    foreign content raises a ValueError that names the file `name`.
    """
    load: Callable[[bytes], dict[str, Any]] = numpy_format.load
    if framework == "torch":
        import safetensors.torch as torch_format

        load = torch_format.load
    try:
        tensors = load(content)  # checks all lengths before it allocates anything
        n_bytes = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + n_bytes]).get("__metadata__") or {}
    except (*_UNREADABLE, SafetensorError) as error:
        raise ValueError(f"{name} is not a safetensors file: {error}") from error
    if _KEY not in metadata:
        raise ValueError(f"{name} holds no prefixembed header in its metadata")
    try:
        header = json.loads(metadata[_KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(
            f"{name} cannot be read: its header is a {type(header).__name__}, not an object"
        )
    return header, tensors
