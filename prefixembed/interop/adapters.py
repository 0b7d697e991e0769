"""The library adapters: load flat prefixes that it saved."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from prefixembed._utils.docstrings import substitute
from prefixembed._utils.parameters import PATH, checked
from prefixembed.backbone import load_backbone
from prefixembed.interop._flat import OPTIONS, as_float32, from_flat, position_width
from prefixembed.prefix import Prefix


@substitute
@checked(state=[Mapping], backbone=PATH, **OPTIONS)
def load_adapters(
    state: Mapping[str, ArrayLike],
    backbone: str | os.PathLike[str],
    *,
    revision: str | None = None,
    pooling: str = "auto",
    max_length: int | None = None,
) -> Prefix:
    """Load a flat prefix of the library adapters (``PrefixTuningConfig(flat=True)``).

    Prefixes take no positions there: the first token of a text keeps position 0.

    Read more in the :doc:`user guide </guide/interop>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    state : mapping of str to array-like
        Tensors of the file that ``model.save_adapter`` wrote, for example from ``load_file`` of
        safetensors or from ``torch.load(path, weights_only=True)``.
    $backbone_name
    $revision
    $pooling
    $tokens_beside_prefix

    Returns
    -------
    $loaded_prefix

    Raises
    ------
    ValueError
        If the state does not have exactly one flat prefix, or the prefix does not fit the
        backbone.

    Examples
    --------
    >>> import numpy as np
    >>> from prefixembed.interop import load_adapters
    >>> from prefixembed.tasks import demo_backbone
    >>> pool = np.zeros(5 * 6 * 2 * 384, dtype=np.float32)  # 5 positions, 6 layers
    >>> load_adapters({"prefix_tunings.a.self_prefix.control_trans": pool}, demo_backbone()).length
    5
    """
    found = [as_float32(value) for key, value in state.items() if key.endswith("control_trans")]
    if not found:
        raise ValueError(
            f"state has no flat prefix ('...control_trans'), its first keys are {sorted(state)[:5]}"
        )
    # All layers share one prefix, which the file repeats for each.
    if any(not np.array_equal(other, found[0]) for other in found[1:]):
        raise ValueError(f"state has several prefixes, its first keys are {sorted(state)[:5]}")
    loaded = load_backbone(backbone, revision, "float32")
    width = position_width(loaded)
    if found[0].size % width:
        raise ValueError(
            f"state has a prefix of {found[0].size} numbers, which is not a multiple of the "
            f"{width} numbers per position that backbone {loaded.name!r} needs"
        )
    flat = found[0].reshape(-1, width)
    return from_flat(flat, loaded, pooling=pooling, max_length=max_length, takes_positions=False)
