"""The prefix: what is learned from one source task, as an immutable value."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from prefixembed._embed.texts import PAIR_WIDTH
from prefixembed._files.hub import PREFIX_FILE, fetch_folder, model_card, push
from prefixembed._version import __version__

FORMAT_VERSION = 3
_METADATA_KEY = "prefixembed"
_TENSORS = ("keys_values", "head_weight", "head_bias")
_TYPES = {
    "backbone": str,
    "fingerprint": str,
    "objective": str,
    "max_length": int,
    "n_features": int,
    "pooled_layers": int,
}
# As a file may name them: nothing that numpy would have to parse or could take for more.
_CLASSES_DTYPE = re.compile(r"[<|][biufU]\d{1,9}")
_MOST_CLASSES_BYTES = 2**28
_WITHOUT_CLASSES = ("regression", "multiple_choice")
POOLINGS = ("cls", "mean", "max", "last")
PAIRS = ("joint", "apart")
# What prefixes must have in common to be combined.
_ALIKE = (
    "fingerprint", "pooling", "pooled_layers", "prompt", "first_position", "layout", "n_features",
)  # fmt: skip
_SHAPE_WORDS = "(layer, 2, head, position, head_dim)"


@dataclass(frozen=True, eq=False, repr=False)
class Prefix:
    """Trainable keys and values of one source task, with all that is needed to use them.

    A prefix is a value: its arrays are read-only, copies of it are itself, and two
    prefixes are equal when their content is.

    Parameters
    ----------
    keys_values : ndarray of shape (n_layers, 2, n_heads, prefix_length, head_dim)
        Keys (index 0) and values (index 1) that every token attends to, in every
        attention layer.
    backbone : str
        Hub name or folder of the backbone that the prefix was learned with.
    fingerprint : str
        Fingerprint of that backbone, see :class:`~prefixembed.backbone.Backbone`.
    pooling : {"cls", "mean", "max", "last"}
        How token vectors became one vector a text.
    max_length : int
        Longest text in tokens, special tokens included, but not the prefix.
    n_features : int
        Length of a vector.
    pooled_layers : int, default=1
        Number of last layers whose token vectors were averaged.
    pairs : {"joint", "apart"}, default=None
        How the pairs of the source task were read. None if it has no pairs.
    prompt : str, default=""
        What was put before each text.
    first_position : int, default=0
        Position that the first token had: 0, or where the prefix was learned by a library that
        gives positions to prefixes too, such as PEFT, the number of those.
    revision : str, default=None
        Revision of the backbone on the Hub.
    objective : str, default="classification"
        What the head was trained for.
    classes : ndarray of shape (n_classes,), default=None
        Labels of the source task, in the order of the head's outputs. None for an objective
        that has none: regression and multiple choice.
    head_weight : ndarray of shape (n_classes, n_features), default=None
        Weight of the source task's linear head; three times as wide for pairs read apart.
    head_bias : ndarray of shape (n_classes,), default=None
        Bias of the source task's linear head.
    training : mapping, default={}
        Facts on the training: sizes, epochs, losses. They do not enter the digest.

    Attributes
    ----------
    digest : str
        Hexadecimal SHA-256 of the content, the same on every platform.
    length : int
        Number of prefix positions.

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
    .. [1] K.-H. Huang et al., "Learning Easily Updated General Purpose Text
       Representations with Adaptable Task-Specific Prefixes", arXiv 2305.13499, 2023.
    .. [2] X. Liu et al., "P-Tuning v2", arXiv 2110.07602, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from prefixembed import Prefix
    >>> prefix = Prefix(
    ...     keys_values=np.zeros((2, 2, 4, 5, 8), dtype=np.float32), backbone="tiny",
    ...     fingerprint="0" * 64, pooling="mean", max_length=64, n_features=32)
    >>> prefix
    Prefix(backbone='tiny', length=5, objective='classification', digest='ea1b6c379ebd')
    """

    keys_values: NDArray[np.float32]  # (layer, 2, head, position, head_dim)
    backbone: str
    fingerprint: str
    pooling: str
    max_length: int
    n_features: int
    pooled_layers: int = 1
    pairs: str | None = None
    prompt: str = ""
    first_position: int = 0
    revision: str | None = None
    objective: str = "classification"
    classes: NDArray[Any] | None = None  # (class,)
    head_weight: NDArray[np.float32] | None = None  # (class, feature)
    head_bias: NDArray[np.float32] | None = None  # (class,)
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _TENSORS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _frozen_array(name, getattr(self, name)))
        shape = self.keys_values.shape
        if len(shape) != 5 or shape[1] != 2 or 0 in shape:
            raise ValueError(f"keys_values must have shape {_SHAPE_WORDS}, got {shape}")
        for name, kind in _TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or value == 0:
                raise ValueError(f"{name} must be a {kind.__name__}, got {value!r}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")
        if type(self.first_position) is not int or self.first_position < 0:
            raise ValueError(f"first_position must be an int from 0, got {self.first_position!r}")
        if self.pairs not in (None, *PAIRS):
            raise ValueError(f"pairs must be one of {', '.join(PAIRS)}, got {self.pairs!r}")
        if not isinstance(self.prompt, str):
            raise ValueError(f"prompt must be a str, got {self.prompt!r}")
        if self.classes is not None:
            classes = np.array(self.classes)
            _encode_classes(classes)
            classes.flags.writeable = False
            object.__setattr__(self, "classes", classes)
        if self.head_weight is not None:
            n_outputs = self.head_weight.shape[0]
            expected = (n_outputs, self.width)
            if self.head_weight.shape != expected:
                raise ValueError(
                    f"head_weight must have shape {expected}, got {self.head_weight.shape}"
                )
            if self.head_bias is None or self.head_bias.shape != (n_outputs,):
                raise ValueError(f"head_bias must have shape {(n_outputs,)}")
            needs_classes = self.objective not in _WITHOUT_CLASSES
            if needs_classes and (self.classes is None or self.classes.shape != (n_outputs,)):
                raise ValueError(f"classes must have shape {(n_outputs,)}")
        object.__setattr__(self, "training", MappingProxyType(dict(self.training)))

    @property
    def length(self) -> int:
        """Number of prefix positions."""
        return int(self.keys_values.shape[3])

    @property
    def layout(self) -> tuple[int, int, int]:
        """Number of layers, number of heads and length of a head, as the backbone has them."""
        n_layers, _, n_heads, _, head_dim = self.keys_values.shape
        return n_layers, n_heads, head_dim

    @property
    def width(self) -> int:
        """Length of the vectors that the head reads: three of a text's for pairs read apart."""
        return self.n_features * (PAIR_WIDTH if self.pairs == "apart" else 1)

    @functools.cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the content; training facts and the backbone's name apart."""
        content = self._header()
        for key in ("training", "backbone", "revision"):
            content.pop(key)
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
        for name, array in self._tensors().items():
            digest.update(f"{name}{array.shape}".encode())
            digest.update(array.astype("<f4", copy=False).tobytes())
        return digest.hexdigest()

    def decision_function(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Apply the source task's head.

        Parameters
        ----------
        vectors : ndarray of shape (n_texts, width)
            What the backbone gives with this prefix alone.

        Returns
        -------
        logits : ndarray of shape (n_texts, n_classes)
            One score a class.

        Raises
        ------
        ValueError
            If the prefix was saved without a head, or vectors have another width than it.
        """
        if self.head_weight is None or self.head_bias is None:
            raise ValueError(f"{self!r} has no head: it gives vectors, but no predictions")
        if np.shape(vectors)[1:] != (self.width,):
            what = "pairs read apart" if self.pairs == "apart" else "texts"
            raise ValueError(
                f"the head of {self!r} reads vectors of {what}, of width {self.width}, "
                f"got shape {np.shape(vectors)}"
            )
        weight, bias = self.head_weight.astype(np.float64), self.head_bias.astype(np.float64)
        return np.asarray(vectors, dtype=np.float64) @ weight.T + bias  # (text, class)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the prefix as safetensors with a JSON header; the old file or the new one stands.

        Parameters
        ----------
        path : str or path-like
            File to write, by custom ending in ``.safetensors``.
        """
        header = {
            "format_version": FORMAT_VERSION,
            "library_version": __version__,
            "digest": self.digest,
            **self._header(),
        }
        metadata = {_METADATA_KEY: json.dumps(header)}
        write_atomically(
            Path(path), lambda temporary: save_file(self._tensors(), temporary, metadata=metadata)
        )

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
            If there is no such file.
        ValueError
            If the file is damaged, is no prefix, or comes from a newer version.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no prefix file at {os.fspath(path)!r}")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:  # it has gone this moment
            raise FileNotFoundError(f"no prefix file at {os.fspath(path)!r}") from None
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{os.fspath(path)!r} is not a safetensors file: {error}") from error
        if _METADATA_KEY not in metadata:
            raise ValueError(f"{os.fspath(path)!r} holds no prefix: its header says nothing of one")
        try:
            return cls._from_file(json.loads(metadata[_METADATA_KEY]), tensors)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(f"{os.fspath(path)!r} cannot be read: {error}") from error

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the prefix and a model card to the Hub, as one commit.

        Parameters
        ----------
        repo_id : str
            ``"user/name"`` on the Hub.
        private : bool, default=None
            Whether a repository that is made is private. None for the account's default.
        token : str or bool, default=None
            As huggingface_hub takes it. None for the one that was logged in with.
        revision : str, default=None
            Branch. None for the main one.
        commit_message : str, default=None
            None for one that names the library.

        Returns
        -------
        url : str
            Of the commit.
        """
        usage = (
            f"from prefixembed import Prefix, PrefixBank\n\n"
            f"prefix = Prefix.from_pretrained({repo_id!r})\n"
            f'vectors = PrefixBank({{"it": prefix}}).transform(["a text"])'
        )
        card = model_card(repo_id, {repo_id: self.facts()}, self.backbone, usage)
        return push(
            repo_id, lambda folder: self.save(folder / PREFIX_FILE), card, private=private,
            token=token, revision=revision, commit_message=commit_message,
        )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        revision: str | None = None,
        *,
        token: str | bool | None = None,
    ) -> Prefix:
        """Read a prefix from the Hub or from a folder; nothing in it is executed.

        Parameters
        ----------
        name : str or path-like
            Repository on the Hub, or a folder with ``prefix.safetensors``.
        revision : str, default=None
            Branch, tag or commit of the repository.
        token : str or bool, default=None
            As huggingface_hub takes it.

        Returns
        -------
        prefix : Prefix
            Equal to the one that was pushed.

        Raises
        ------
        OSError
            If it is no folder and cannot be fetched, or there is no prefix in it.
        ValueError
            If the file is damaged or comes from another version, or a revision is asked for of a
            folder.
        """
        return cls.load(fetch_folder(name, revision, token) / PREFIX_FILE)

    def facts(self) -> dict[str, Any]:
        """Tell what a card says of it: kind, classes, length, digest, training.

        Returns
        -------
        facts : dict of str to object
            What is JSON.
        """
        return {
            "objective": self.objective,
            "n_classes": None if self.classes is None else len(self.classes),
            "length": self.length,
            "digest": self.digest,
            "training": dict(self.training),
        }

    @classmethod
    def _from_file(cls, header: Any, tensors: dict[str, Any]) -> Prefix:
        if not isinstance(header, dict):
            raise ValueError(f"its header is a {type(header).__name__}, and no object")
        version = header.pop("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"format version is {version}, this version of prefixembed reads {FORMAT_VERSION}"
            )
        digest = header.pop("digest")
        header.pop("library_version")
        if unknown := set(tensors) - set(_TENSORS):
            raise ValueError(f"unknown tensors {sorted(unknown)}")
        if wrong := [name for name, array in tensors.items() if array.dtype != np.float32]:
            raise ValueError(f"tensors {wrong} are not float32")
        if header["classes"] is not None:
            header["classes"] = _decode_classes(header["classes"])
        prefix = cls(**tensors, **header)
        if prefix.digest != digest:
            raise ValueError(f"content has digest {prefix.digest}, its header says {digest}")
        return prefix

    def _header(self) -> dict[str, Any]:
        return {
            "backbone": self.backbone,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "pooling": self.pooling,
            "max_length": self.max_length,
            "n_features": self.n_features,
            "pooled_layers": self.pooled_layers,
            "pairs": self.pairs,
            # Only where there is one, so that digests of those without stay as they were.
            **({"prompt": self.prompt} if self.prompt else {}),
            "first_position": self.first_position,
            "objective": self.objective,
            "classes": None if self.classes is None else _encode_classes(self.classes),
            "training": dict(self.training),
        }

    def _tensors(self) -> dict[str, NDArray[np.float32]]:
        tensors = {name: getattr(self, name) for name in _TENSORS}
        return {name: array for name, array in tensors.items() if array is not None}

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the constructor, so that what is unpickled is checked and read-only again.
        fields = (getattr(self, name) for name in self.__dataclass_fields__ if name != "training")
        return type(self), (*fields, dict(self.training))

    def __copy__(self) -> Prefix:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Prefix:
        # sklearn.clone deep-copies a bank's dict: an immutable value needs no copy.
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prefix) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return (
            f"Prefix(backbone={self.backbone!r}, length={self.length}, "
            f"objective={self.objective!r}, digest={self.digest[:12]!r})"
        )


def concatenate(prefixes: Sequence[Prefix]) -> NDArray[np.float32]:
    """Lay the keys and values of prefixes behind each other, layer by layer.

    Parameters
    ----------
    prefixes : sequence of Prefix
        At least one; their layouts must agree, their lengths need not.

    Returns
    -------
    keys_values : ndarray of shape (n_layers, 2, n_heads, sum of lengths, head_dim)
        The combined prefix of arXiv 2305.13499.
    """
    return np.concatenate([prefix.keys_values for prefix in prefixes], axis=3)


def check_compatible(prefixes: Mapping[str, Prefix]) -> None:
    """Refuse prefixes that cannot be combined.

    Parameters
    ----------
    prefixes : mapping of str to Prefix
        By the names that a message is to call them.

    Raises
    ------
    ValueError
        If two of them differ in backbone, pooling, pooled layers, prompt, first position or shape;
        the message names both.
    """
    names = list(prefixes)
    for name in names[1:]:
        one, other = prefixes[names[0]], prefixes[name]
        for attribute in _ALIKE:
            if getattr(one, attribute) != getattr(other, attribute):
                raise ValueError(
                    f"prefixes {names[0]!r} and {name!r} cannot be combined, "
                    f"their {attribute} differs: {_describe(one, attribute)} of {names[0]!r} and "
                    f"{_describe(other, attribute)} of {name!r}"
                )


def _describe(prefix: Prefix, attribute: str) -> str:
    if attribute == "fingerprint":
        return f"{prefix.fingerprint[:12]!r} (backbone {prefix.backbone!r})"
    if attribute == "layout":
        return f"{prefix.layout} (layers, heads, head_dim)"
    return repr(getattr(prefix, attribute))


def _frozen_array(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    frozen = np.array(array, dtype=np.float32)
    if not np.isfinite(frozen).all():
        raise ValueError(f"{name} has numbers that are not finite")
    frozen.flags.writeable = False
    return frozen


def _encode_classes(classes: NDArray[Any]) -> dict[str, Any]:
    if classes.dtype.kind not in "biufU":
        raise ValueError(
            f"labels must be numbers, booleans or strings, got classes of dtype {classes.dtype}"
        )
    return {"dtype": classes.dtype.str.replace(">", "<"), "values": classes.tolist()}


def _decode_classes(encoded: Mapping[str, Any]) -> NDArray[Any]:
    dtype, values = encoded["dtype"], encoded["values"]
    if not isinstance(dtype, str) or not _CLASSES_DTYPE.fullmatch(dtype):
        raise ValueError(f"labels of dtype {dtype!r} are not numbers, booleans or strings")
    size = np.dtype(dtype).itemsize * len(values)
    if size > _MOST_CLASSES_BYTES:
        raise ValueError(f"{len(values)} labels of dtype {dtype} take {size} bytes")
    return np.array(values, dtype=dtype)


def write_atomically(target: Path, write: Callable[[str], Any]) -> None:
    """Write a file; a kill or an error leaves the old one as it was.

    Parameters
    ----------
    target : Path
        Where it is to be.
    write : callable
        Writes to the path that it is given, which is beside `target`.
    """
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        write(temporary)
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    # mkstemp makes files for the owner's eyes only; a saved prefix follows the umask instead.
    mask = os.umask(0)
    os.umask(mask)
    return mask
