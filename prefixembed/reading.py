"""How texts are read: the one value that says how a text becomes a vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from numbers import Integral
from typing import Any

POOLINGS = ("cls", "mean", "max", "last")
PAIRS = ("joint", "apart")
# Width of a pair's vector relative to a single text's when pairs are read apart: [u, v, |u - v|].
PAIR_WIDTH = 3


@dataclass(frozen=True)
class Reading:
    """Describe how texts become vectors.

    A :class:`~prefixembed.Prefix` records the reading that it was learned with, and the key of a
    cached vector contains it.

    Read more in the :doc:`user guide </guide/prefix>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    pooling : {"cls", "mean", "max", "last"}
        How token vectors become one vector per text.
    max_length : int
        Longest text in tokens, special tokens included; prefixes do not count. At least 8.
    pooled_layers : int, default=1
        Number of last layers whose token vectors are averaged before pooling.
    pairs : {"joint", "apart"}, default=None
        How pairs of texts are read: as one sequence, or each text by itself. None if no pairs
        have been seen.
    prompt : str, default=""
        Text that is put before each text; before the first text of a joint pair only.
    windows : bool, default=False
        Whether a text longer than `max_length` is read in overlapping windows instead of being
        cut.
    first_position : int, default=0
        Position of the first token. It is not 0 for prefixes from libraries that give positions
        to prefixes too, such as PEFT.

    Raises
    ------
    ValueError
        If a field has a value that it cannot have.

    Examples
    --------
    >>> from prefixembed.reading import Reading
    >>> Reading("mean", 256, pairs="apart").to_dict()
    {'pooling': 'mean', 'max_length': 256, 'pairs': 'apart'}
    """

    pooling: str
    max_length: int
    pooled_layers: int = 1
    pairs: str | None = None
    prompt: str = ""
    windows: bool = False
    first_position: int = 0

    def __post_init__(self) -> None:
        _check_option("pooling", self.pooling, POOLINGS)
        if self.pairs is not None:
            _check_option("pairs", self.pairs, PAIRS)
        for name, minimum in (("max_length", 8), ("pooled_layers", 1), ("first_position", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
                raise ValueError(f"{name} must be an int of at least {minimum}, got {value!r}")
            object.__setattr__(self, name, int(value))
        if not isinstance(self.prompt, str):
            raise ValueError(f"prompt must be a str, got {self.prompt!r}")
        if not isinstance(self.windows, bool):
            raise ValueError(f"windows must be a bool, got {self.windows!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, without those that have their default value.

        Cache keys, file headers, digests and corpus recipes are made of this. A later field
        leaves them unchanged while it has its default.

        Returns
        -------
        values : dict of str to object
            Arguments that build an equal reading.
        """
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.default is MISSING or getattr(self, field.name) != field.default
        }

    def width(self, n_features: int, of_pairs: bool) -> int:
        """Return the length of a vector.

        Parameters
        ----------
        n_features : int
            Number of features of the backbone.
        of_pairs : bool
            Whether the vector belongs to a pair.

        Returns
        -------
        width : int
            ``3 * n_features`` for pairs that are read apart, otherwise `n_features`.
        """
        return n_features * (PAIR_WIDTH if of_pairs and self.pairs == "apart" else 1)


def _check_option(name: str, value: Any, options: Sequence[str]) -> None:
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}")
