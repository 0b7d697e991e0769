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
# What reading a damaged file raises beside errors of safetensors itself.
_UNREADABLE = (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)


def pack_tensors(header: Mapping[str, Any], tensors: Mapping[str, NDArray[Any] | Tensor]) -> bytes:
    """Return the content of a safetensors file.

    Parameters
    ----------
    header : mapping of str to object
        Facts as JSON types. Floats keep every bit.
    tensors : mapping of str to ndarray or Tensor
        Arrays of numpy or tensors of PyTorch, not both. Memory that tensors share is refused.

    Returns
    -------
    content : bytes
        Equal for equal arguments.
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
    """Read what :func:`pack_tensors` returned; nothing in it is executed.

    Parameters
    ----------
    content : bytes
        Content of a file, which may be damaged.
    name : str
        What error messages call the file.
    framework : {"numpy", "torch"}, default="numpy"
        Whether tensors are returned as ndarrays or as tensors of PyTorch on the CPU. Only
        PyTorch knows dtypes such as bfloat16.

    Returns
    -------
    header : dict of str to object
        Facts.
    tensors : dict of str to ndarray or Tensor
        Tensors by name.

    Raises
    ------
    ValueError
        If the content is damaged or was not written by :func:`pack_tensors`.
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
