"""Prefixes of other libraries: PEFT, P-Tuning v2, adapters; and a model for MTEB."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

from prefixembed._embed.transformer import TextTransformer
from prefixembed._utils.parameters import PATH, Count, checked
from prefixembed._utils.warnings import warn
from prefixembed.backbone import Backbone, load_backbone
from prefixembed.interop.mteb import MTEBEncoder
from prefixembed.prefix import POOLINGS, Prefix, write_atomically

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = "prompt_embeddings"


@checked(
    folder=PATH,
    backbone=[str, None],
    revision=[str, None],
    pooling=[StrOptions({"auto", *POOLINGS})],
    max_length=[Count(8), None],
)
def load_peft(
    folder: str | os.PathLike[str],
    backbone: str | None = None,
    *,
    revision: str | None = None,
    pooling: str = "auto",
    max_length: int | None = None,
) -> Prefix:
    """Read a prefix-tuning adapter that PEFT saved.

    PEFT hands prefixes to the backbone as past keys and values, so that they take the first
    positions and the first token of a text has the position behind them. The prefix records that
    (``first_position``), and its vectors are those that PEFT's model gives.

    Parameters
    ----------
    folder : str or path-like
        With ``adapter_config.json`` and ``adapter_model.safetensors``.
    backbone : str, default=None
        Hub name or folder of the backbone. None for the one that the adapter names.
    revision : str, default=None
        Revision of the backbone on the Hub. None for the one that the adapter names.
    pooling : {"auto", "mean", "cls", "max", "last"}, default="auto"
        How token vectors become one vector a text. An adapter does not say: ``"auto"`` takes the
        backbone's own.
    max_length : int, default=None
        Longest text in tokens. None for as much as the backbone takes beside the prefix.

    Returns
    -------
    prefix : Prefix
        Without a head.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the adapter is none of prefix tuning, is damaged, or does not fit the backbone.

    Warns
    -----
    UserWarning
        If the backbone has layers that see a window only, and texts may be longer than that.

    Notes
    -----
    PEFT leaves segments out where it tunes prefixes. For pairs of texts in one sequence, on
    backbones that have segments (BERT, ELECTRA), its model gives other vectors.

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
        raise ValueError(f"{os.fspath(path)!r} has no {_TENSOR!r}, but {sorted(tensors)}")
    name = backbone or config.get("base_model_name_or_path")
    if not name:
        raise ValueError(f"backbone must be given: {os.fspath(folder)!r} names none")
    loaded = load_backbone(name, revision or config.get("revision"), "float32")
    length = len(tensors[_TENSOR])
    prefix = _from_flat(
        tensors[_TENSOR],
        loaded,
        pooling=pooling,
        max_length=max_length,
        first_position=length,
    )
    window = getattr(loaded.model.config, "sliding_window", None)
    if window is not None and window < length + prefix.max_length:
        warn(
            f"layers of backbone {loaded.name!r} see the last {window} positions, and from tokens "
            f"farther on PEFT's model no longer sees the prefix; here every token does: "
            f"max_length={max(8, window - length)} keeps vectors equal to those of PEFT"
        )
    return prefix


@checked(prefix=[Prefix], folder=PATH)
def save_peft(prefix: Prefix, folder: str | os.PathLike[str]) -> None:
    """Write a prefix as a prefix-tuning adapter that PEFT loads; its head is left out.

    Parameters
    ----------
    prefix : Prefix
        With token positions as PEFT has them: behind the prefix.
    folder : str or path-like
        Made where there is none.

    Raises
    ------
    ValueError
        If token positions are not those of PEFT, whose model would give other vectors.
    """
    if prefix.first_position != prefix.length:
        raise ValueError(
            f"PEFT gives the first token position {prefix.length}, behind the prefix; this prefix "
            f"was learned with first_position={prefix.first_position}, and would give other vectors"
        )
    n_layers, n_heads, head_dim = prefix.layout
    config = {
        "base_model_name_or_path": prefix.backbone,
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
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {_TENSOR: _to_flat(prefix)}
    write_atomically(
        target / _WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"})
    )
    write_atomically(
        target / _CONFIG,
        lambda path: Path(path).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8"),
    )


@checked(
    state=[Mapping],
    backbone=[str],
    revision=[str, None],
    pooling=[StrOptions(set(POOLINGS))],
    max_length=[Count(8), None],
)
def load_p_tuning(
    state: Mapping[str, ArrayLike],
    backbone: str,
    *,
    revision: str | None = None,
    pooling: str = "cls",
    max_length: int | None = None,
) -> Prefix:
    """Take a prefix from a checkpoint of P-Tuning v2's own code.

    Parameters
    ----------
    state : mapping of str to array-like
        The checkpoint's state, such as ``torch.load(path, weights_only=True)`` gives it. With an
        MLP, what it gives is computed here.
    backbone : str
        Hub name or folder of the backbone.
    revision : str, default=None
        Revision of the backbone on the Hub.
    pooling : {"cls", "mean", "max", "last"}, default="cls"
        How token vectors become one vector a text.
    max_length : int, default=None
        Longest text in tokens. None for as much as the backbone takes beside the prefix.

    Returns
    -------
    prefix : Prefix
        Without a head. Its ``first_position`` is its length, since that code hands prefixes on as
        past keys and values.

    Raises
    ------
    ValueError
        If there is no prefix encoder in the state, or it does not fit the backbone.

    References
    ----------
    .. [1] X. Liu et al., "P-Tuning v2", arXiv 2110.07602, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from prefixembed.interop import load_p_tuning
    >>> from prefixembed.tasks import demo_backbone
    >>> flat = np.zeros((5, 6 * 2 * 384), dtype=np.float32)  # 6 layers, keys and values
    >>> load_p_tuning({"prefix_encoder.embedding.weight": flat}, demo_backbone()).length
    5
    """
    own = {
        key.split("prefix_encoder.", 1)[1]: np.asarray(value, dtype=np.float32)
        for key, value in state.items()
        if "prefix_encoder." in key
    }
    if "embedding.weight" not in own:
        raise ValueError(f"state has no 'prefix_encoder.embedding.weight': {sorted(state)[:5]}")
    flat = own["embedding.weight"]
    if "trans.0.weight" in own:
        hidden = np.tanh(flat @ own["trans.0.weight"].T + own["trans.0.bias"])
        flat = hidden @ own["trans.2.weight"].T + own["trans.2.bias"]
    loaded = load_backbone(backbone, revision, "float32")
    return _from_flat(
        flat, loaded, pooling=pooling, max_length=max_length, first_position=len(flat)
    )


@checked(
    state=[Mapping],
    backbone=[str],
    revision=[str, None],
    pooling=[StrOptions({"auto", *POOLINGS})],
    max_length=[Count(8), None],
)
def load_adapters(
    state: Mapping[str, ArrayLike],
    backbone: str,
    *,
    revision: str | None = None,
    pooling: str = "auto",
    max_length: int | None = None,
) -> Prefix:
    """Take a flat prefix of the library adapters (``PrefixTuningConfig(flat=True)``).

    Parameters
    ----------
    state : mapping of str to array-like
        Tensors by name, as ``load_file`` of safetensors or ``torch.load`` gives the file that
        ``model.save_adapter`` wrote.
    backbone : str
        Hub name or folder of the backbone.
    revision : str, default=None
        Revision of the backbone on the Hub.
    pooling : {"auto", "mean", "cls", "max", "last"}, default="auto"
        How token vectors become one vector a text; ``"auto"`` takes the backbone's own.
    max_length : int, default=None
        Longest text in tokens. None for as much as the backbone takes.

    Returns
    -------
    prefix : Prefix
        Without a head. Its ``first_position`` is 0: adapters gives prefixes no positions.

    Raises
    ------
    ValueError
        If there is no flat prefix in the state, or it does not fit the backbone.

    Examples
    --------
    >>> import numpy as np
    >>> from prefixembed.interop import load_adapters
    >>> from prefixembed.tasks import demo_backbone
    >>> pool = np.zeros(5 * 6 * 2 * 384, dtype=np.float32)
    >>> load_adapters({"prefix_tunings.a.self_prefix.control_trans": pool}, demo_backbone()).length
    5
    """
    flat = [
        np.asarray(value, dtype=np.float32)
        for key, value in state.items()
        if key.endswith("control_trans")
    ]
    if not flat:
        raise ValueError(f"state has no flat prefix ('...control_trans'): {sorted(state)[:5]}")
    # All layers share one pool, which the file therefore has several times.
    if any(not np.array_equal(part, flat[0]) for part in flat):
        raise ValueError(f"state has several prefixes, and must have one: {sorted(state)[:5]}")
    loaded = load_backbone(backbone, revision, "float32")
    width = _width(loaded)
    if flat[0].size % width:
        raise ValueError(
            f"state has a prefix of {flat[0].size} numbers, and backbone {backbone!r} wants "
            f"{width} a position"
        )
    return _from_flat(
        flat[0].reshape(-1, width), loaded, pooling=pooling, max_length=max_length,
        first_position=0,
    )  # fmt: skip


@checked(estimator=[TextTransformer], name=[str])
def to_mteb(estimator: TextTransformer, name: str = "prefixembed/bank") -> MTEBEncoder:
    """Give a model that MTEB evaluates.

    Parameters
    ----------
    estimator : PrefixBank, PrefixEncoder or MultiTaskEncoder
        Fitted. It is copied: what is done to it later has no effect.
    name : str, default="prefixembed/bank"
        What MTEB calls it, as ``"organisation/model"``.

    Returns
    -------
    model : MTEBEncoder
        For ``mteb.evaluate``. Its revision is a digest of all that decides vectors, so that MTEB,
        which keeps results by name and revision, never takes those of one bank for another's.

    Raises
    ------
    ImportError
        If MTEB is not installed.
    ValueError
        If the name has no slash, or the estimator gives vectors of words or in fewer bits.

    Notes
    -----
    Vectors are those of ``transform``, the cache included: what several tasks have in common is
    encoded once. Similarity is the cosine. Prompts of tasks are not used.

    Examples
    --------
    >>> from prefixembed.interop import to_mteb
    >>> model = to_mteb(bank, "me/three-sources")  # doctest: +SKIP
    >>> mteb.evaluate(model, mteb.get_tasks(["STSBenchmark"]))  # doctest: +SKIP
    """
    try:
        from mteb.models.model_meta import ModelMeta, ScoringFunction
    except ImportError as error:
        raise ImportError("to_mteb needs MTEB: pip install 'prefixembed[mteb]'") from error
    check_is_fitted(estimator)
    if name.count("/") != 1:
        raise ValueError(f"name must be 'organisation/model', got {name!r}")
    if estimator.output != "texts" or estimator.output_dtype != "float32":
        raise ValueError(
            "MTEB takes one float32 vector a text, got "
            f"output={estimator.output!r} and output_dtype={estimator.output_dtype!r}"
        )
    estimator = deepcopy(estimator)
    n_features = np.asarray(estimator.transform([""])).shape[1]  # also checks that it can
    representation = estimator._representation()
    meta = ModelMeta.create_empty(
        {
            "name": name,
            "revision": representation.digest,
            "max_tokens": representation.max_length,
            "embed_dim": n_features,
            "similarity_fn_name": ScoringFunction.COSINE,
            "framework": ["PyTorch"],
            "use_instructions": False,
        }
    )
    return MTEBEncoder(estimator, meta)


def _from_flat(
    flat: NDArray[np.float32],
    backbone: Backbone,
    *,
    pooling: str,
    max_length: int | None,
    first_position: int,
) -> Prefix:
    """Make a prefix of one row a position: keys of layer 0, its values, keys of layer 1, ....

    Parameters
    ----------
    flat : ndarray of shape (position, n_layers * 2 * n_heads * head_dim)
        Keys and values.
    backbone : Backbone
        What they were learned on.
    pooling : {"auto", "mean", "cls", "max", "last"}
        How token vectors become one vector a text; ``"auto"`` for the backbone's own.
    max_length : int or None
        Longest text in tokens. None for as much as the backbone takes.
    first_position : int
        Position of the first token.

    Returns
    -------
    prefix : Prefix
        Without a head.

    Raises
    ------
    ValueError
        If the shape does not fit the backbone.
    """
    if flat.ndim != 2 or flat.shape[1] != _width(backbone):
        raise ValueError(
            f"a prefix for backbone {backbone.name!r} has shape (positions, {_width(backbone)}), "
            f"got {flat.shape}"
        )
    n_layers, n_heads, head_dim = backbone.layout
    by_position = flat.reshape(len(flat), n_layers, 2, n_heads, head_dim)
    longest = backbone.max_length - first_position
    backbone.check_positions(first_position, max_length or longest)
    return Prefix(
        keys_values=np.ascontiguousarray(by_position.transpose(1, 2, 3, 0, 4), dtype=np.float32),
        backbone=backbone.name,
        revision=backbone.revision,
        fingerprint=backbone.fingerprint,
        pooling=backbone.pooling if pooling == "auto" else pooling,
        max_length=max_length or longest,
        n_features=backbone.n_features,
        first_position=first_position,
    )


def _to_flat(prefix: Prefix) -> NDArray[np.float32]:
    """Lay a prefix out as :func:`_from_flat` takes it."""
    by_position = prefix.keys_values.transpose(3, 0, 1, 2, 4)
    return np.ascontiguousarray(by_position).reshape(prefix.length, -1)


def _width(backbone: Backbone) -> int:
    n_layers, n_heads, head_dim = backbone.layout
    return n_layers * 2 * n_heads * head_dim


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no adapter at {os.fspath(path)!r}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)!r} cannot be read: {error}") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "PREFIX_TUNING":
        raise ValueError(f"{os.fspath(path)!r} is no prefix tuning: its peft_type is {kind!r}")
    found: dict[str, Any] = config
    return found
