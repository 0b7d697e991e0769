"""Slot share: how much of the output of feed-forward layers comes from slots of each prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sklearn.utils import Bunch
from torch import Tensor

from prefixembed._embed.combination import prefix_tensors
from prefixembed._model.extension import slot_factors
from prefixembed._model.slots import AddedSlots, FeedForwardOutput, combined_slots
from prefixembed._utils.docstrings import substitute
from prefixembed._utils.parameters import checked
from prefixembed.bank import PrefixBank
from prefixembed.inspection.arguments import active_names, check_some_texts
from prefixembed.inspection.forward import LayerSums, mean_over_texts


@substitute
@checked(bank=[PrefixBank], X="no_validation")
def slot_share(bank: PrefixBank, X: Any) -> Bunch:
    """Measure how much the slots of each prefix add to feed-forward layers.

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
        - ``shares`` : ndarray of shape (n_layers, n_prefixes), the norm of what the slots of a
          prefix add to the output of a feed-forward layer, divided by the norm of the output with
          the slots of all active prefixes; the mean over texts of the mean over their tokens. It
          is 0 for prefixes without slots

    Raises
    ------
    ValueError
        If no active prefix of the bank has slots, `X` contains no text, or a text would be cut
        and ``bank.on_truncate`` is ``"raise"``.

    See Also
    --------
    prefixembed.inspection.SlotShareDisplay : Plots the result.
    prefixembed.inspection.attention_share : Measures attention to positions of prefixes.

    Notes
    -----
    Vectors can cancel each other, so shares of several prefixes do not add up, and a single one
    may exceed 1. Texts longer than `max_length` are cut, even if the bank reads them in windows.

    Examples
    --------
    >>> from prefixembed import PrefixBank, PrefixEncoder
    >>> from prefixembed.inspection import slot_share
    >>> from prefixembed.tasks import demo_backbone
    >>> texts, labels = ["what a film", "dull and long", "a joy", "a bore"] * 8, [1, 0, 1, 0] * 8
    >>> encoder = PrefixEncoder(demo_backbone(), max_steps=5, random_state=0).fit(texts, labels)
    >>> slot_share(PrefixBank({"stars": encoder}), texts[:4]).shares.shape
    (6, 1)
    """
    names = active_names(bank)
    texts = check_some_texts(X)
    combination = bank.combination()
    if not any(prefix.ffn_length for prefix in combination.prefixes):
        raise ValueError(
            "bank must have an active prefix with slots (ffn_length), got none: attention_share "
            "measures prefixes of positions alone"
        )
    backbone = bank.load_backbone()
    extension = combination.extension(backbone)
    assert extension is not None  # there is an active prefix
    factors = slot_factors(combination.weights, combination.combine)
    parts: list[AddedSlots | None] = []
    for prefix, factor in zip(combination.prefixes, factors, strict=True):
        slots = prefix_tensors(prefix, backbone).slots
        own = None if slots is None else combined_slots([slots], [factor], backbone.dtype)
        parts.append(None if own is None else AddedSlots(own, backbone.activation))
    measured = _SlotsByPrefix(parts)
    extension = replace(extension, add_slots=measured)
    return Bunch(names=names, shares=mean_over_texts(bank, texts, extension, measured.sums))


@dataclass
class _SlotsByPrefix:
    """Add the slots of each prefix by itself, and measure how much it adds."""

    parts: Sequence[AddedSlots | None]  # one per prefix; None without slots
    sums: LayerSums = field(default_factory=LayerSums)  # (prefix,) each

    def __call__(self, layer: FeedForwardOutput) -> Tensor:
        """Return the output of a layer with slots; no text of the batch may be padded."""
        output = layer.output
        norms = [torch.zeros_like(output[..., 0], dtype=torch.float32) for _ in self.parts]
        for k, part in enumerate(self.parts):
            if part is not None:
                hidden, values = part.hidden(layer)
                added = (hidden @ values).view(output.shape)  # (batch, position, feature)
                norms[k] = added.float().norm(dim=-1)
                output = output + added
        whole = output.float().norm(dim=-1, keepdim=True)
        shares = torch.stack(norms, dim=-1) / whole.clamp(min=torch.finfo(whole.dtype).tiny)
        self.sums.add(layer.layer, shares)  # (batch, position, prefix)
        return output
