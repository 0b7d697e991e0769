"""Attention share: how much of the attention each prefix gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sklearn.utils import Bunch
from torch import Tensor

from prefixembed._model.attention import Attend, LayerInput, attention_mass
from prefixembed._utils.docstrings import substitute
from prefixembed._utils.parameters import checked
from prefixembed.bank import PrefixBank
from prefixembed.inspection.arguments import active_names, check_some_texts
from prefixembed.inspection.forward import LayerSums, mean_over_texts


@substitute
@checked(bank=[PrefixBank], X="no_validation")
def attention_share(bank: PrefixBank, X: Any) -> Bunch:
    """Measure the share of attention that goes to each prefix, by layer and head.

    Read more in the :doc:`user guide </guide/inspection>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    $inspected_bank
        They are combined and weighted as in the bank.
    $X
        A few hundred are enough.

    Returns
    -------
    result : Bunch
        With these attributes:

        - ``names`` : list of str, the active prefixes
        - ``shares`` : ndarray of shape (n_layers, n_heads, n_prefixes), the mean over texts of the
          mean over their tokens. The rest of the attention goes to tokens. With
          ``combine="mean"``, the share of each prefix is divided by the number of prefixes. It is 0
          for prefixes without positions. Heads are key heads: where several query heads share one
          (decoders), the share is their mean

    Raises
    ------
    ValueError
        If no active prefix of the bank has positions, `X` contains no text, or a text would be
        cut and ``bank.on_truncate`` is ``"raise"``.

    See Also
    --------
    prefixembed.inspection.AttentionShareDisplay : Plots the result.
    prefixembed.inspection.slot_share : Measures slots in feed-forward layers.

    Notes
    -----
    Texts longer than `max_length` are cut, even if the bank reads them in windows.

    Examples
    --------
    >>> from prefixembed import PrefixBank, PrefixEncoder
    >>> from prefixembed.inspection import attention_share
    >>> from prefixembed.tasks import demo_backbone
    >>> texts, labels = ["what a film", "dull and long", "a joy", "a bore"] * 8, [1, 0, 1, 0] * 8
    >>> encoder = PrefixEncoder(demo_backbone(), prefix_length=5, max_steps=5, random_state=0)
    >>> encoder = encoder.fit(texts, labels)
    >>> attention_share(PrefixBank({"stars": encoder}), texts[:4]).shares.shape
    (6, 12, 1)
    """
    names = active_names(bank)
    texts = check_some_texts(X)
    combination = bank.combination()
    if not any(prefix.length for prefix in combination.prefixes):
        raise ValueError(
            "bank must have an active prefix with positions (prefix_length), got none: "
            "slot_share measures prefixes of slots alone"
        )
    backbone = bank.load_backbone()
    extension = combination.extension(backbone)
    assert extension is not None and extension.attend is not None
    parts = [
        torch.tensor(prefix.keys_values, device=backbone.device, dtype=torch.float32)
        for prefix in combination.prefixes
    ]
    weights, mode = combination.weights, combination.combine
    measured = _MeasuredAttention(extension.attend, parts, weights, mode)
    extension = replace(extension, attend=measured)
    return Bunch(names=names, shares=mean_over_texts(bank, texts, extension, measured.sums))


@dataclass
class _MeasuredAttention:
    """Attend as `attend` does, and add up the share of attention that each prefix gets."""

    attend: Attend
    parts: Sequence[Tensor]  # one per prefix: (layer, 2, head, position, head_dim)
    weights: Sequence[float]
    combine: str
    sums: LayerSums = field(default_factory=LayerSums)  # (head, prefix) each

    def __call__(self, inputs: LayerInput) -> Tensor:
        """Attend in one layer, and measure; no text of the batch may be padded."""
        layer, query, key, _, mask, scaling = inputs
        tokens = attention_mass(query, key, mask, scaling).unsqueeze(-1)  # (batch, head, query, 1)
        prefixes = torch.stack(
            [
                attention_mass(query, part[layer, 0][None].to(query), None, scaling) + math.log(w)
                for part, w in zip(self.parts, self.weights, strict=True)
            ],
            dim=-1,
        )  # (batch, head, query, prefix)
        if self.combine == "mean":
            # Each prefix competes with the tokens alone, and the results are averaged.
            shares = torch.sigmoid(prefixes - tokens) / len(self.parts)
        else:
            shares = torch.cat([prefixes, tokens], dim=-1).softmax(-1)[..., :-1]
        self.sums.add(layer, shares.transpose(1, 2))  # (batch, query, head, prefix)
        return self.attend(inputs)
