"""The linear head of a source task, as an immutable value."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The dtypes that a file may name: nothing that numpy would have to parse or could misread.
_CLASSES_DTYPE = re.compile(r"[<|][biufU]\d{1,9}")
_MAX_CLASSES_BYTES = 2**28
_WITHOUT_CLASSES = ("regression", "multiple_choice")


@dataclass(frozen=True, eq=False)
class Head:
    """The linear head of a source task.

    Read more in the :doc:`user guide </guide/prefix>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    objective : str
        What the head predicts; see the parameter `objective` of
        :class:`~prefixembed.PrefixEncoder`.
    classes : ndarray of shape (n_classes,) or None
        Labels, in the order of the head's outputs. None for objectives without classes:
        regression and multiple choice.
    weight : ndarray of shape (n_outputs, n_features)
        Weight of the head.
    bias : ndarray of shape (n_outputs,)
        Bias of the head.
    mean : float, default=0.0
        What is added to the output of a regression, after it was multiplied by `scale`: the mean
        of the numbers that were learned. It is apart from `bias`, which is in float32, so that
        numbers far from zero, such as timestamps, keep their digits.
    scale : float, default=1.0
        Standard deviation of the numbers that were learned, for a regression.

    Raises
    ------
    ValueError
        If shapes do not fit each other, a number is not finite, `scale` is not above zero, `mean`
        or `scale` is given for another objective than regression, or labels are not numbers,
        booleans or strings.

    Examples
    --------
    >>> import numpy as np
    >>> from prefixembed.head import Head
    >>> head = Head("classification", np.array(["no", "yes"]), np.eye(2), np.zeros(2))
    >>> head.decision_function([[0.5, 2.0]])
    array([[0.5, 2. ]])
    """

    objective: str
    classes: NDArray[Any] | None  # (class,)
    weight: NDArray[np.float32]  # (output, feature)
    bias: NDArray[np.float32]  # (output,)
    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.objective, str):
            raise ValueError(f"objective must be a str, got {self.objective!r}")
        for name in ("weight", "bias"):
            object.__setattr__(self, name, read_only(f"head_{name}", getattr(self, name)))
        if self.weight.ndim != 2:
            raise ValueError(
                f"head_weight must have shape (n_outputs, n_features), got {self.weight.shape}"
            )
        n_outputs = len(self.weight)
        if self.bias.shape != (n_outputs,):
            raise ValueError(f"head_bias must have shape {(n_outputs,)}, got {self.bias.shape}")
        if self.classes is not None:
            classes = np.array(self.classes)
            encode_classes(classes)
            classes.flags.writeable = False
            object.__setattr__(self, "classes", classes)
        shape = None if self.classes is None else self.classes.shape
        if self.objective not in _WITHOUT_CLASSES and shape != (n_outputs,):
            raise ValueError(f"classes must have shape {(n_outputs,)}, got {shape}")
        for name in ("mean", "scale"):
            object.__setattr__(self, name, _finite(f"head {name}", getattr(self, name)))
        if self.scale <= 0:
            raise ValueError(f"head scale must be above 0, got {self.scale}")
        if self.is_scaled and self.objective != "regression":
            raise ValueError(
                f"mean and scale are for objective='regression', got {self.objective!r} with "
                f"mean={self.mean} and scale={self.scale}"
            )

    @property
    def is_scaled(self) -> bool:
        """Whether `mean` and `scale` change the output."""
        return (self.mean, self.scale) != (0, 1)

    @property
    def width(self) -> int:
        """Length of the vectors that the head reads."""
        return int(self.weight.shape[1])

    def decision_function(self, vectors: Any) -> NDArray[np.float64]:
        """Apply the head.

        Parameters
        ----------
        vectors : array-like of shape (n_units, n_features)
            Vectors in float32 or float16.

        Returns
        -------
        logits : ndarray of shape (n_units, n_outputs)
            One score per output.

        Raises
        ------
        ValueError
            If the vectors have another width than the head, or are quantized to integers.
        """
        if np.shape(vectors)[1:] != (self.width,):
            raise ValueError(
                f"the head reads vectors of width {self.width}, got shape {np.shape(vectors)}"
            )
        if np.asarray(vectors).dtype.kind in "iub":
            raise ValueError(
                f"the head reads vectors of floats, got {np.asarray(vectors).dtype}: int8 and "
                "binary vectors have lost their scale"
            )
        vectors = np.asarray(vectors, dtype=np.float64)
        logits = vectors @ self.weight.astype(np.float64).T + self.bias  # (unit, output)
        return logits * self.scale + self.mean if self.is_scaled else logits

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuild through the constructor, which checks arrays and makes them read-only.
        values = (self.objective, self.classes, self.weight, self.bias, self.mean, self.scale)
        return type(self), values


def read_only(name: str, array: Any) -> NDArray[np.float32]:
    """Return a read-only float32 copy; raise a ValueError if a number is not finite."""
    copy = np.array(array, dtype=np.float32)
    if not np.isfinite(copy).all():
        raise ValueError(f"{name} has numbers that are not finite")
    copy.flags.writeable = False
    return copy


def _finite(name: str, value: Any) -> float:
    number = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return number


def encode_classes(classes: NDArray[Any]) -> dict[str, Any]:
    """Return labels as JSON types, with their dtype."""
    if classes.dtype.kind not in "biufU":
        raise ValueError(
            f"labels must be numbers, booleans or strings, got classes of dtype {classes.dtype}"
        )
    return {"dtype": classes.dtype.str.replace(">", "<"), "values": classes.tolist()}


def decode_classes(encoded: Mapping[str, Any]) -> NDArray[Any]:
    """Return the labels that :func:`encode_classes` was given."""
    dtype, values = encoded["dtype"], encoded["values"]
    if not isinstance(dtype, str) or not _CLASSES_DTYPE.fullmatch(dtype):
        raise ValueError(f"labels of dtype {dtype!r} are not numbers, booleans or strings")
    size = np.dtype(dtype).itemsize * len(values)
    if size > _MAX_CLASSES_BYTES:
        raise ValueError(f"{len(values)} labels of dtype {dtype} take {size} bytes")
    return np.array(values, dtype=dtype)
