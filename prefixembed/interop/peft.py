"""PEFT: load and save adapters of prefix tuning."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from prefixembed._files.atomic import make_folder, write_atomically
from prefixembed._files.places import shared_name
from prefixembed._utils.docstrings import substitute
from prefixembed._utils.parameters import PATH, checked
from prefixembed._utils.warnings import warn
from prefixembed.backbone import load_backbone
from prefixembed.interop._flat import OPTIONS, as_float32, from_flat, to_flat
from prefixembed.prefix import Prefix

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = "prompt_embeddings"


@substitute
@checked(folder=PATH, backbone=[*PATH, None], **OPTIONS)
def load_peft(
    folder: str | os.PathLike[str],
    backbone: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    pooling: str = "auto",
    max_length: int | None = None,
) -> Prefix:
    """Load a prefix-tuning adapter that PEFT saved.

    Vectors with the prefix equal those of PEFT's own model. PEFT gives the prefix the first
    positions, so that the first token of a text comes after it; the prefix records that in
    ``reading.first_position``.

    Read more in the :doc:`user guide </guide/interop>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    folder : str or path-like
        Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
    backbone : str or path-like, default=None
        Hub name or folder of the backbone. None for the one that the adapter names.
    revision : str, default=None
        Revision of the backbone on the Hub. None for the one that the adapter names.
    $pooling
    $tokens_beside_prefix

    Returns
    -------
    $loaded_prefix

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the adapter is not one of prefix tuning, is damaged, or does not fit the backbone.

    Warns
    -----
    UserWarning
        If layers of the backbone see only a window of positions, and texts may be longer than
        that. PEFT's model loses sight of the prefix there, and its vectors differ.

    See Also
    --------
    save_peft : Writes an adapter.

    Notes
    -----
    PEFT drops token types when it tunes prefixes. Its vectors of joint pairs therefore differ on
    backbones with token types, such as BERT and ELECTRA.

    Examples
    --------
    >>> from prefixembed import PrefixBank
    >>> from prefixembed.interop import load_peft
    >>> bank = PrefixBank({"peft": load_peft("adapter")})  # doctest: +SKIP
    """
    config = _read_config(Path(folder) / _CONFIG)
    path = Path(folder) / _WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"no adapter weights at {os.fspath(path)!r}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)!r} is not a safetensors file: {error}") from error
    if _TENSOR not in tensors:
        raise ValueError(f"{os.fspath(path)!r} has no {_TENSOR!r}, only {sorted(tensors)}")
    name = backbone or config.get("base_model_name_or_path")
    if not name:
        raise ValueError(
            f"backbone must be given: the adapter in {os.fspath(folder)!r} does not name one"
        )
    loaded = load_backbone(name, revision or config.get("revision"), "float32")
    flat = as_float32(tensors[_TENSOR])
    prefix = from_flat(flat, loaded, pooling=pooling, max_length=max_length, takes_positions=True)
    window = getattr(loaded.model.config, "sliding_window", None)
    if window is not None and window < prefix.length + prefix.reading.max_length:
        warn(
            f"layers of backbone {loaded.name!r} see the last {window} positions. In PEFT's model "
            "tokens farther on do not see the prefix, here every token does: "
            f"max_length={max(8, window - prefix.length)} keeps vectors equal to those of PEFT"
        )
    return prefix


@checked(prefix=[Prefix], folder=PATH)
def save_peft(prefix: Prefix, folder: str | os.PathLike[str]) -> None:
    """Save a prefix as a prefix-tuning adapter that PEFT loads, without its head.

    Read more in the :doc:`user guide </guide/interop>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    prefix : Prefix
        Prefix without slots that was learned with PEFT's positions: its
        ``reading.first_position`` equals its length.
    folder : str or path-like
        Folder to write to. It is created if it does not exist. It names a backbone that lies in
        a folder as ``./name``, not by its path; pass ``backbone`` to :func:`load_peft` then.

    Raises
    ------
    ValueError
        If the prefix has slots, which PEFT lacks, or was learned with other positions. PEFT's model
        would return other vectors.

    See Also
    --------
    load_peft : Loads an adapter.

    Examples
    --------
    >>> from prefixembed.interop import load_peft, save_peft
    >>> save_peft(load_peft("adapter"), "copy")  # doctest: +SKIP
    """
    flat = to_flat(prefix, "PEFT")
    if prefix.reading.first_position != prefix.length:
        raise ValueError(
            f"PEFT gives the first token position {prefix.length}, after the prefix, but this "
            f"prefix was learned with first_position={prefix.reading.first_position}: its vectors "
            "would change"
        )
    n_layers, n_heads, head_dim = prefix.layout
    config = {
        "base_model_name_or_path": shared_name(prefix.backbone),
        "revision": prefix.revision,
        "encoder_hidden_size": n_heads * head_dim,
        "inference_mode": True,
        "num_attention_heads": n_heads,
        "num_layers": n_layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prefix.length,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "task_type": "FEATURE_EXTRACTION",
        "token_dim": n_heads * head_dim,
    }
    target = make_folder(folder)
    tensors = {_TENSOR: torch.from_numpy(flat)}
    write_atomically(
        target / _WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"})
    )
    content = json.dumps(config, indent=2) + "\n"
    write_atomically(
        target / _CONFIG, lambda path: Path(path).write_text(content, encoding="utf-8")
    )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no adapter at {os.fspath(path)!r}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)!r} cannot be read: {error}") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "PREFIX_TUNING":
        raise ValueError(
            f"{os.fspath(path)!r} is not the configuration of a prefix-tuning adapter: its "
            f"peft_type is {kind!r}"
        )
    return dict(config)
