"""P-Tuning v2: load prefixes from checkpoints of its own code."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from prefixembed._utils.docstrings import substitute
from prefixembed._utils.parameters import PATH, checked
from prefixembed.backbone import load_backbone
from prefixembed.interop._flat import OPTIONS, as_float32, from_flat
from prefixembed.prefix import Prefix

_ENCODER = "prefix_encoder."


@substitute
@checked(state=[Mapping], backbone=PATH, **OPTIONS)
def load_p_tuning(
    state: Mapping[str, ArrayLike],
    backbone: str | os.PathLike[str],
    *,
    revision: str | None = None,
    pooling: str = "cls",
    max_length: int | None = None,
) -> Prefix:
    """Load a prefix from a checkpoint of P-Tuning v2's own code.

    That code passes prefixes on as past keys and values [1]_, so that the first token of a text
    comes after the prefix. The prefix records that in ``reading.first_position``.

    Read more in the :doc:`user guide </guide/interop>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    state : mapping of str to array-like
        State of the model, for example from ``torch.load(path, weights_only=True)``. If its
        prefix encoder has an MLP, the output of the MLP becomes the prefix.
    $backbone_name
    $revision
    pooling : {"auto", "mean", "cls", "max", "last"}, default="cls"
        How token vectors become one vector per text. ``"auto"`` for the pooling that the backbone
        was trained with. P-Tuning v2 classifies texts by their first token.
    $tokens_beside_prefix

    Returns
    -------
    $loaded_prefix

    Raises
    ------
    ValueError
        If the state has no prefix encoder, or the prefix does not fit the backbone.

    References
    ----------
    .. [1] Liu, X., et al., "P-Tuning v2", arXiv 2110.07602, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from prefixembed.interop import load_p_tuning
    >>> from prefixembed.tasks import demo_backbone
    >>> flat = np.zeros((5, 6 * 2 * 384), dtype=np.float32)  # 6 layers, keys and values
    >>> load_p_tuning({"prefix_encoder.embedding.weight": flat}, demo_backbone()).length
    5
    """
    found = {key.partition(_ENCODER)[2]: value for key, value in state.items() if _ENCODER in key}
    weights = {key: as_float32(value) for key, value in found.items()}
    if "embedding.weight" not in weights:
        raise ValueError(
            f"state has no '{_ENCODER}embedding.weight', its first keys are {sorted(state)[:5]}"
        )
    flat = weights["embedding.weight"]  # (position, feature)
    if "trans.0.weight" in weights:
        hidden = np.tanh(flat @ weights["trans.0.weight"].T + weights["trans.0.bias"])
        flat = hidden @ weights["trans.2.weight"].T + weights["trans.2.bias"]
    loaded = load_backbone(backbone, revision, "float32")
    return from_flat(flat, loaded, pooling=pooling, max_length=max_length, takes_positions=True)
