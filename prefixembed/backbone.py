"""The backbone: a frozen pre-trained encoder, loaded once per process and shared."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.utils._param_validation import StrOptions
from tokenizers import Tokenizer
from torch import Tensor

from prefixembed._files.places import remember
from prefixembed._model.batch import Batch
from prefixembed._model.devices import resolve_device, resolve_dtype
from prefixembed._model.extension import Extension
from prefixembed._model.families import (
    DECODERS,
    activation,
    default_pooling,
    layout,
    longest_text,
    padding_id,
    position_offset,
)
from prefixembed._model.folder import Stamp, folder_stamp
from prefixembed._model.hook import extended
from prefixembed._model.loading import load_files, load_own_reading
from prefixembed._model.own_reading import own_reading
from prefixembed._utils.docstrings import substitute
from prefixembed._utils.parameters import PATH, checked
from prefixembed._utils.warnings import warn
from prefixembed.prefix import Prefix
from prefixembed.reading import Reading

_Key = tuple[str, str | None, torch.dtype, torch.device]
# What the files looked like before they were read, and what was read.
_loaded: dict[_Key, tuple[Stamp, Backbone]] = {}
# One lock per name: while a backbone is fetched, others are loaded and used.
_locks: dict[str, Any] = {}
if hasattr(os, "register_at_fork"):
    # A child of a process that was loading inherits locks that nobody will release.
    os.register_at_fork(after_in_child=_locks.clear)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen encoder and its tokenizer; :func:`load_backbone` returns one.

    It holds no state beyond its weights. Prefixes come with each call, so that threads can share
    one backbone.

    Read more in the :doc:`user guide </guide/backbone>`.

    .. versionadded:: 0.1

    Attributes
    ----------
    name : str
        Hub name or folder.
    revision : str or None
        Revision on the Hub.
    fingerprint : str
        Hexadecimal SHA-256 of weights, configuration and tokenizer. It depends on the files
        only, not on device and dtype.
    model : transformers.PreTrainedModel
        In eval mode, without gradients and without a pooler.
    device : torch.device
        Device of the weights.
    dtype : torch.dtype
        Dtype of the weights.
    layout : tuple of int
        Number of layers, number of key heads, and length of a head.
    n_features : int
        Length of a token vector.
    max_length : int
        Longest text in tokens that the backbone can take, special tokens included.
    reading : Reading
        How the backbone was trained to read texts: its pooling, length limit, pairs and prompt
        as the files of sentence-transformers say.

    See Also
    --------
    load_backbone : Loads a backbone.
    release_backbones : Frees the memory.
    """

    name: str
    revision: str | None
    fingerprint: str
    model: Any
    tokenizer_json: str = field(repr=False)
    device: torch.device
    dtype: torch.dtype
    layout: tuple[int, int, int]
    n_features: int
    max_length: int
    reading: Reading
    pad_id: int
    has_segments: bool
    _tokenizers: dict[tuple[int, int], Tokenizer] = field(default_factory=dict, repr=False)

    @property
    def activation(self) -> Callable[[Tensor], Tensor]:
        """Activation function of the feed-forward layers."""
        return activation(self.model.config)

    def tokenizer(self, max_length: int, overlap: int = 0) -> Tokenizer:
        """Return a tokenizer that cuts texts.

        Parameters
        ----------
        max_length : int
            Longest text in tokens, special tokens included. The longer text of a pair is cut
            first.
        overlap : int, default=0
            Number of tokens at the end of a window that are repeated at the start of the next
            one, where texts are read in windows.

        Returns
        -------
        tokenizer : tokenizers.Tokenizer
            Safe to share among threads as long as nobody changes it.

        Raises
        ------
        ValueError
            If the backbone has fewer than `max_length` positions, or `max_length` is below 8.
        """
        if not 8 <= max_length <= self.max_length:
            raise ValueError(
                f"max_length must lie between 8 and the {self.max_length} tokens that backbone "
                f"{self.name!r} takes, got {max_length}"
            )
        key = max_length, overlap
        if key not in self._tokenizers:
            tokenizer = Tokenizer.from_str(self.tokenizer_json)
            tokenizer.no_padding()
            tokenizer.enable_truncation(max_length, stride=overlap, strategy="longest_first")
            self._tokenizers[key] = tokenizer
        return self._tokenizers[key]

    def forward(
        self, batch: Batch, extension: Extension | None = None, reading: Reading | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the encoder once.

        Parameters
        ----------
        batch : Batch
            Padded on the right.
        extension : Extension, default=None
            What prefixes add to the layers. None for the layers as they are.
        reading : Reading, default=None
            Its `pooled_layers` and `first_position` are obeyed. None for the backbone's own.

        Returns
        -------
        hidden : Tensor of shape (batch, position, feature)
            The last layer in the backbone's dtype, or the mean over the last layers in float32.
        mask : bool Tensor of shape (batch, position) or None
            The mask of the batch, on the device.
        """
        reading = self.reading if reading is None else reading
        inputs: dict[str, Any] = {"input_ids": self._to_device(batch.ids)}
        mask = None
        if batch.mask is not None:
            mask = self._to_device(batch.mask)
            inputs["attention_mask"] = mask
        if self.has_segments:
            inputs["token_type_ids"] = self._to_device(batch.type_ids)
        if reading.first_position:
            start = reading.first_position + position_offset(self.model.config)
            stop = start + batch.ids.shape[1]
            inputs["position_ids"] = torch.arange(start, stop, device=self.device)[None]
        if self.model.config.model_type in DECODERS:
            inputs["use_cache"] = False  # no tokens follow that would need keys and values
        with extended(extension):
            if reading.pooled_layers == 1:
                return self.model(**inputs).last_hidden_state, mask
            output = self.model(**inputs, output_hidden_states=True)
        last = output.hidden_states[-reading.pooled_layers :]
        return torch.stack(last).float().mean(dim=0), mask  # (batch, position, feature)

    def check_reading(self, reading: Reading) -> None:
        """Check that the backbone has the layers and positions that a reading needs.

        Parameters
        ----------
        reading : Reading
            How texts are to be read.

        Raises
        ------
        ValueError
            If there are too few layers or positions.
        """
        if reading.pooled_layers > self.layout[0]:
            raise ValueError(
                f"pooled_layers must be at most the {self.layout[0]} layers of backbone "
                f"{self.name!r}, got {reading.pooled_layers}"
            )
        self.tokenizer(reading.max_length)
        first, longest = reading.first_position, self.max_length
        if first and first + reading.max_length > longest:
            raise ValueError(
                f"max_length must be at most {longest - first} where the first of {longest} "
                f"positions is {first}, got {reading.max_length}"
            )

    def check(self, prefix: Prefix, name: str = "prefix") -> None:
        """Check that a prefix was learned on this backbone.

        Parameters
        ----------
        prefix : Prefix
            Prefix to use with this backbone.
        name : str, default="prefix"
            What the error message calls it.

        Raises
        ------
        ValueError
            If fingerprints or shapes differ.
        """
        if prefix.fingerprint != self.fingerprint:
            raise ValueError(
                f"{name} was learned on backbone {prefix.backbone!r} with fingerprint "
                f"{prefix.fingerprint[:12]}, but backbone {self.name!r} has fingerprint "
                f"{self.fingerprint[:12]}: weights, configuration or tokenizer differ"
            )
        if prefix.layout != self.layout or prefix.n_features != self.n_features:
            raise ValueError(
                f"{name} has (layers, heads, head_dim) {prefix.layout} and {prefix.n_features} "
                f"features, backbone {self.name!r} has {self.layout} and {self.n_features}"
            )

    def _to_device(self, array: Any) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


@substitute
@checked(
    name_or_path=PATH,
    revision=[str, None],
    dtype=[StrOptions({"auto", "float32", "bfloat16", "float16"})],
    device=[str],
)
def load_backbone(
    name_or_path: str | os.PathLike[str],
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
) -> Backbone:
    """Load a pre-trained encoder, or return the one that this process has already loaded.

    Read more in the :doc:`user guide </guide/backbone>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    name_or_path : str or path-like
        Hub name or folder.
    revision : str, default=None
        Branch, tag or commit on the Hub.
    $dtype
    $device

    Returns
    -------
    backbone : Backbone
        Frozen and in eval mode. The same object for the same arguments, as long as the files of a
        folder keep their sizes and times of change; otherwise, it is loaded again.

    Raises
    ------
    ValueError
        If the family, dtype or device is not supported, a file is damaged, weights are missing
        from the checkpoint, or there is no tokenizer in Rust.
    OSError
        If there is no such folder and no such model on the Hub, or if the folder has no
        ``config.json``.

    Examples
    --------
    >>> from prefixembed import load_backbone
    >>> from prefixembed.tasks import demo_backbone
    >>> backbone = load_backbone(demo_backbone(), device="cpu")
    >>> backbone.layout, backbone.n_features
    ((6, 12, 32), 384)
    >>> backbone is load_backbone(demo_backbone(), device="cpu")
    True
    """
    where = resolve_device(device)
    resolved = resolve_dtype(dtype, where)
    name = os.fspath(name_or_path)
    key = (_key(name), revision, resolved, where)
    if (backbone := _unchanged(key)) is not None:
        return backbone
    with _locks.setdefault(key[0], threading.RLock()):
        if (backbone := _unchanged(key)) is None:
            _warn_about_other_workers(where)
            stamp = folder_stamp(key[0])
            backbone = _read_backbone(name, revision, resolved, where)
            _loaded[key] = stamp, backbone
        return backbone


@checked(name_or_path=[*PATH, None])
def release_backbones(name_or_path: str | os.PathLike[str] | None = None) -> int:
    """Release loaded backbones, so that their memory can be used for something else.

    A backbone that is used again is loaded again.

    Read more in the :doc:`user guide </guide/backbone>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    name_or_path : str or path-like, default=None
        Hub name or folder of the backbone to release. None for all of them.

    Returns
    -------
    n_released : int
        Number of backbones that were released.
    """
    name = None if name_or_path is None else _key(os.fspath(name_or_path))
    keys = [key for key in list(_loaded) if name is None or key[0] == name]
    n_released = sum(_loaded.pop(key, None) is not None for key in keys)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return n_released


def own_facts(name_or_path: str, revision: str | None = None) -> tuple[int, Reading]:
    """Return the number of features and the own reading of a backbone, without loading weights."""
    for key in list(_loaded):
        if key[:2] == (_key(name_or_path), revision) and (backbone := _unchanged(key)) is not None:
            return backbone.n_features, backbone.reading
    # The files of a folder may change; those of a name on the Hub are asked for once.
    read = load_own_reading if os.path.isdir(name_or_path) else _load_own_reading_once
    return read(name_or_path, revision)


_load_own_reading_once = functools.lru_cache(maxsize=64)(load_own_reading)


def _unchanged(key: _Key) -> Backbone | None:
    """Return what is loaded, unless its files have changed since; a folder may be gone."""
    stamp, backbone = _loaded.get(key, ((), None))
    now = folder_stamp(key[0])
    return backbone if now in (stamp, ()) else None


def _key(name: str) -> str:
    return os.path.realpath(name) if os.path.isdir(name) else name


def _warn_about_other_workers(device: torch.device) -> None:
    several = device.type == "cuda" and torch.cuda.device_count() > 1
    if device.type != "cpu" and not several and multiprocessing.parent_process() is not None:
        warn(
            f"a worker process loads a backbone of its own on {device}, in addition to those "
            "of other workers: n_jobs=1 fills the device too. Workers of a search that was passed "
            "to fill_cache, with the path of a file as cache, load none"
        )


def _read_backbone(
    name: str, revision: str | None, dtype: torch.dtype, device: torch.device
) -> Backbone:
    files = load_files(name, revision, dtype, device)
    if os.path.isdir(name):
        remember(name, files.fingerprint)
    config, wrapper = files.model.config, files.wrapper
    longest = longest_text(config, wrapper.model_max_length)
    return Backbone(
        name=name,
        revision=revision,
        fingerprint=files.fingerprint,
        model=files.model,
        tokenizer_json=files.tokenizer.to_str(),
        device=device,
        dtype=dtype,
        layout=layout(config),
        n_features=config.hidden_size,
        max_length=longest,
        reading=own_reading(name, revision, default_pooling(config.model_type), longest),
        pad_id=padding_id(config, wrapper.pad_token_id),
        has_segments=(
            "token_type_ids" in wrapper.model_input_names
            and getattr(config, "type_vocab_size", 0) > 1
        ),
    )
