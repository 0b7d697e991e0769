"""The prefix: what is learned from one source task, as an immutable value."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefixembed._files.atomic import write_atomically
from prefixembed._files.cards import backbone_argument, model_card
from prefixembed._files.hub import HubMixin
from prefixembed._files.places import located, shared_name
from prefixembed._files.tensors import pack_tensors, unpack_tensors
from prefixembed._utils.properties import cached_property
from prefixembed._version import __version__
from prefixembed.head import Head, decode_classes, encode_classes, read_only
from prefixembed.reading import PAIRS, POOLINGS, Reading
from prefixembed.slots import Slots

FORMAT_VERSION = 6
# Files of version 4 have no slots, and those of versions 4 and 5 no mean and scale of a regression.
_READ_VERSIONS = (4, 5, FORMAT_VERSION)
__all__ = ["FORMAT_VERSION", "PAIRS", "POOLINGS", "Head", "Prefix", "Slots"]

PREFIX_FILE = "prefix.safetensors"
_SCALING = ("mean", "scale")  # of a head
_SLOT_TENSORS = ("slot_keys", "slot_biases", "slot_values")
_TENSORS = ("keys_values", *_SLOT_TENSORS, "head_weight", "head_bias")


@dataclass(frozen=True, eq=False, repr=False)
class Prefix(HubMixin):
    """Hold what was learned from one source task, and all that is needed to use it.

    A prefix extends the two memories of each layer of its backbone: the keys and values of
    attention, and the hidden units of the feed-forward layer, by slots.

    A prefix is a value: its arrays are read-only, a copy is the prefix itself, and two prefixes
    are equal if their content is.

    Read more in the :doc:`user guide </guide/prefix>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    keys_values : ndarray of shape (n_layers, 2, n_heads, prefix_length, head_dim)
        Keys (index 0) and values (index 1) that every token attends to, in each attention
        layer. There may be no position (``prefix_length`` is 0) if there are slots.
    backbone : str or path-like
        Hub name or folder of the backbone that the prefix was learned on.
    fingerprint : str
        Fingerprint of that backbone; see :class:`~prefixembed.Backbone`.
    n_features : int
        Number of features of the backbone.
    reading : Reading
        How texts were read. ``reading.pairs`` is None if the source task has single texts.
    head : Head, default=None
        Linear head of the source task. None for a prefix that gives vectors but no predictions.
    slots : Slots, default=None
        Hidden units that are added to each feed-forward layer. None for none, as in the paper.
    revision : str, default=None
        Revision of the backbone on the Hub.
    training : mapping, default={}
        Facts about the training: sizes, steps, losses. They do not enter the digest.

    Raises
    ------
    ValueError
        If shapes or types do not fit each other, or a number is not finite.

    See Also
    --------
    PrefixEncoder : Learns a prefix.
    PrefixBank : Combines prefixes.

    References
    ----------
    .. [1] Huang, K.-H., et al., "Learning Easily Updated General Purpose Text
       Representations with Adaptable Task-Specific Prefixes", arXiv 2305.13499, 2023.
    .. [2] Liu, X., et al., "P-Tuning v2", arXiv 2110.07602, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from prefixembed import Prefix
    >>> from prefixembed.reading import Reading
    >>> prefix = Prefix(
    ...     keys_values=np.zeros((2, 2, 4, 5, 8), dtype=np.float32), backbone="tiny",
    ...     fingerprint="0" * 64, n_features=32, reading=Reading("mean", 64))
    >>> prefix
    Prefix(backbone='tiny', length=5, ffn_length=0, objective=None, digest='00751de4de14')
    """

    _MAIN_FILE = _SAVED_AS = PREFIX_FILE

    keys_values: NDArray[np.float32]  # (layer, 2, head, position, head_dim)
    backbone: str
    fingerprint: str
    n_features: int
    reading: Reading
    head: Head | None = None
    slots: Slots | None = None
    revision: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys_values", read_only("keys_values", self.keys_values))
        if isinstance(self.backbone, os.PathLike):
            object.__setattr__(self, "backbone", os.fspath(self.backbone))
        shape = self.keys_values.shape
        if len(shape) != 5 or shape[1] != 2 or 0 in (*shape[:3], shape[4]):
            expected = "(layer, 2, head, position, head_dim)"
            raise ValueError(f"keys_values must have shape {expected}, got {shape}")
        for name, kind in (
            ("backbone", str), ("fingerprint", str), ("n_features", int), ("reading", Reading),
            ("head", Head), ("slots", Slots),
        ):  # fmt: skip
            value = getattr(self, name)
            may_be_none = value is None and name in ("head", "slots")
            if not (isinstance(value, kind) and value) and not may_be_none:
                raise ValueError(f"{name} must be a {kind.__name__}, got {value!r}")
        if self.slots is None:
            if not self.length:
                raise ValueError("a prefix must have a position or slots, got neither")
        elif self.slots.keys.shape != (shape[0], self.slots.length, self.n_features):
            raise ValueError(
                f"slot_keys must have {shape[0]} layers and {self.n_features} features as the "
                f"backbone has, got shape {self.slots.keys.shape}"
            )
        if self.head is not None and self.head.width != self.width:
            raise ValueError(
                f"head_weight must have {self.width} columns, got {self.head.width}: that is the "
                f"width of the vectors of {'pairs' if self.of_pairs else 'texts'}"
            )
        object.__setattr__(self, "training", MappingProxyType(dict(self.training)))

    @property
    def length(self) -> int:
        """Number of prefix positions."""
        return int(self.keys_values.shape[3])

    @property
    def ffn_length(self) -> int:
        """Number of slots in each feed-forward layer."""
        return 0 if self.slots is None else self.slots.length

    @property
    def layout(self) -> tuple[int, int, int]:
        """Number of layers, number of heads, and length of a head."""
        n_layers, _, n_heads, _, head_dim = self.keys_values.shape
        return n_layers, n_heads, head_dim

    @property
    def of_pairs(self) -> bool:
        """Whether the source task has pairs of texts."""
        return self.reading.pairs is not None

    @property
    def width(self) -> int:
        """Length of the vectors that the head reads."""
        return self.reading.width(self.n_features, self.of_pairs)

    @property
    def objective(self) -> str | None:
        """Objective of the head, or None without a head."""
        return None if self.head is None else self.head.objective

    @property
    def classes(self) -> NDArray[Any] | None:
        """Labels of the source task, or None where there are none."""
        return None if self.head is None else self.head.classes

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the content, equal on every platform.

        Facts about the training and the name of the backbone do not enter it.
        """
        content = self._header()
        for key in ("training", "backbone", "revision"):
            del content[key]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
        for name, array in self._tensors().items():
            digest.update(f"{name}{array.shape}".encode())
            digest.update(array.astype("<f4", copy=False).tobytes())
        return digest.hexdigest()

    def facts(self) -> dict[str, Any]:
        """Return what a model card says about the prefix.

        Returns
        -------
        facts : dict of str to object
            Objective, number of classes, length, digest, size in bytes, reading, and facts
            about the training, as JSON types.
        """
        return {
            "objective": self.objective,
            "n_classes": None if self.classes is None else len(self.classes),
            "length": self.length,
            "ffn_length": self.ffn_length,
            "digest": self.digest,
            "n_bytes": sum(array.nbytes for array in self._tensors().values()),
            "reading": self.reading.to_dict(),
            "training": dict(self.training),
        }

    def to_bytes(self) -> bytes:
        """Return the content of the file that :meth:`save` writes.

        Returns
        -------
        content : bytes
            Safetensors with a JSON header.
        """
        header = {
            "format_version": FORMAT_VERSION,
            "library_version": __version__,
            "digest": self.digest,
            **self._header(),
        }
        return pack_tensors(header, self._tensors())

    @classmethod
    def from_bytes(cls, content: bytes, name: str = "content") -> Prefix:
        """Read what :meth:`to_bytes` returned; nothing in it is executed.

        Parameters
        ----------
        content : bytes
            Content of a file.
        name : str, default="content"
            What error messages call it.

        Returns
        -------
        prefix : Prefix
            Equal to the one that was written.

        Raises
        ------
        ValueError
            If the content is damaged, holds no prefix, or has another format version.
        """
        header, tensors = unpack_tensors(content, name)
        try:
            return cls._from_header(header, tensors)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(f"{name} cannot be read: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the prefix as a safetensors file; a kill leaves the old file or the new one.

        A backbone in a folder is written by the name of the folder, as ``./name``, and by its
        fingerprint: no path of this machine is in the file. :meth:`load` finds the folder again
        if this process has loaded the backbone from it; otherwise, say where it lies with the
        parameter ``backbone`` of the bank or the encoder.

        Parameters
        ----------
        path : str or path-like
            File to write, by convention ending in ``.safetensors``.
        """
        content = self.to_bytes()
        write_atomically(Path(path), lambda temporary: Path(temporary).write_bytes(content))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Prefix:
        """Read a prefix that :meth:`save` wrote; nothing in the file is executed.

        Parameters
        ----------
        path : str or path-like
            File to read.

        Returns
        -------
        prefix : Prefix
            Equal to the one that was saved.

        Raises
        ------
        FileNotFoundError
            If the file does not exist.
        ValueError
            If the file is damaged, holds no prefix, or has another format version.
        """
        name = repr(os.fspath(path))
        try:
            content = Path(path).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            raise FileNotFoundError(f"no prefix file at {name}") from None
        return cls.from_bytes(content, name)

    @staticmethod
    def _other_files(content: bytes) -> list[str]:
        unpack_tensors(content, PREFIX_FILE)
        return []

    def _card(self, repo_id: str) -> str:
        usage = (
            f"from prefixembed import Prefix, PrefixBank\n\n"
            f"prefix = Prefix.from_pretrained({repo_id!r})\n"
            f'bank = PrefixBank({{"it": prefix}}{backbone_argument(self.backbone)})\n'
            f'vectors = bank.transform(["a text"])'
        )
        facts = {repo_id: self.facts()}
        return model_card(repo_id, facts, self.backbone, self.fingerprint, usage)

    @classmethod
    def _from_header(cls, header: dict[str, Any], tensors: dict[str, Any]) -> Prefix:
        version = header.pop("format_version")
        if version not in _READ_VERSIONS:
            known = " and ".join([", ".join(map(str, _READ_VERSIONS[:-1])), str(FORMAT_VERSION)])
            raise ValueError(
                f"format version is {version}, this version of prefixembed reads {known}"
            )
        digest = header.pop("digest")
        header.pop("library_version")
        if unknown := set(tensors) - set(_TENSORS):
            raise ValueError(f"unknown tensors {sorted(unknown)}")
        if wrong := [name for name, array in tensors.items() if array.dtype != np.float32]:
            raise ValueError(f"tensors {wrong} are not float32")
        head = header.pop("head")
        if head is not None:
            classes = None if head["classes"] is None else decode_classes(head["classes"])
            weight, bias = tensors["head_weight"], tensors["head_bias"]
            scaling = {name: head[name] for name in _SCALING if name in head}
            head = Head(head["objective"], classes, weight, bias, **scaling)
        slots = None
        if any(name in tensors for name in _SLOT_TENSORS):
            slots = Slots(*(tensors[name] for name in _SLOT_TENSORS))
        reading = Reading(**header.pop("reading"))
        prefix = cls(tensors["keys_values"], reading=reading, head=head, slots=slots, **header)
        if prefix.digest != digest:
            raise ValueError(f"content has digest {prefix.digest}, its header says {digest}")
        object.__setattr__(prefix, "backbone", located(prefix.backbone, prefix.fingerprint))
        return prefix

    def _header(self) -> dict[str, Any]:
        head = None
        if self.head is not None:
            classes = None if self.head.classes is None else encode_classes(self.head.classes)
            head = {"objective": self.head.objective, "classes": classes}
            if self.head.is_scaled:  # otherwise, digests are those of older versions
                head |= {name: getattr(self.head, name) for name in _SCALING}
        return {
            "backbone": shared_name(self.backbone),
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "n_features": self.n_features,
            "reading": self.reading.to_dict(),
            "head": head,
            "training": dict(self.training),
        }

    def _tensors(self) -> dict[str, NDArray[np.float32]]:
        tensors = {"keys_values": self.keys_values}
        if self.slots is not None:
            tensors |= self.slots.tensors()
        if self.head is not None:
            tensors |= {"head_weight": self.head.weight, "head_bias": self.head.bias}
        return tensors

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuild through the constructor, which checks arrays and makes them read-only.
        values = [getattr(self, name) for name in self.__dataclass_fields__ if name != "training"]
        return type(self), (*values, dict(self.training))

    def __copy__(self) -> Prefix:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Prefix:
        # sklearn.clone deep-copies the dict of a bank: an immutable value needs no copy.
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prefix) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return (
            f"Prefix(backbone={self.backbone!r}, length={self.length}, "
            f"ffn_length={self.ffn_length}, objective={self.objective!r}, "
            f"digest={self.digest[:12]!r})"
        )
