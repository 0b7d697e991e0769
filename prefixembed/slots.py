"""Slots: the hidden units that a prefix adds to feed-forward layers, as an immutable value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefixembed.head import read_only


@dataclass(frozen=True, eq=False)
class Slots:
    """Hold the hidden units that a prefix adds to each feed-forward layer of its backbone.

    A feed-forward layer is a memory of keys and values, as attention is [1]_. Slot t adds
    ``act(k_t . x + b_t) v_t`` to the output of the layer, where x is the layer's input and ``act``
    the activation function of the backbone. Slots of several prefixes add up.

    Read more in the :doc:`user guide </guide/prefix>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    keys : ndarray of shape (n_layers, n_slots, n_features)
        The vectors k that the input is multiplied with.
    biases : ndarray of shape (n_layers, n_slots)
        The biases b.
    values : ndarray of shape (n_layers, n_slots, n_features)
        The vectors v that are added.

    Raises
    ------
    ValueError
        If shapes do not fit each other, or a number is not finite.

    References
    ----------
    .. [1] Geva, M., et al., "Transformer Feed-Forward Layers Are Key-Value Memories",
       arXiv 2012.14913, 2020.
    .. [2] He, J., et al., "Towards a Unified View of Parameter-Efficient Transfer Learning",
       arXiv 2110.04366, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from prefixembed.slots import Slots
    >>> Slots(np.ones((6, 16, 384)), np.zeros((6, 16)), np.zeros((6, 16, 384))).length
    16
    """

    keys: NDArray[np.float32]  # (layer, slot, feature)
    biases: NDArray[np.float32]  # (layer, slot)
    values: NDArray[np.float32]  # (layer, slot, feature)

    def __post_init__(self) -> None:
        for name in ("keys", "biases", "values"):
            object.__setattr__(self, name, read_only(f"slot_{name}", getattr(self, name)))
        shape = self.keys.shape
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"slot_keys must have shape (layer, slot, feature), got {shape}")
        for name, expected in (("biases", shape[:2]), ("values", shape)):
            if getattr(self, name).shape != expected:
                found = getattr(self, name).shape
                raise ValueError(f"slot_{name} must have shape {expected}, got {found}")

    @property
    def length(self) -> int:
        """Number of slots per layer."""
        return int(self.keys.shape[1])

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Return the arrays by the names that a file gives them.

        Returns
        -------
        tensors : dict of str to ndarray
            ``slot_keys``, ``slot_biases`` and ``slot_values``.
        """
        return {f"slot_{name}": getattr(self, name) for name in ("keys", "biases", "values")}

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuild through the constructor, which checks arrays and makes them read-only.
        return type(self), (self.keys, self.biases, self.values)
