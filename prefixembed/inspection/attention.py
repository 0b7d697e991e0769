"""Attention share: how much of the attention each prefix gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import Bunch
from torch import Tensor

from prefixembed._embed.batches import pad_batch
from prefixembed._embed.tokens import Tokens, tokenize
from prefixembed._embed.truncation import report_truncated
from prefixembed._model.attention import Attend, LayerInput, attention_mass, combined_attention
from prefixembed._utils.docstrings import substitute
from prefixembed._utils.parameters import checked
from prefixembed.backbone import Backbone
from prefixembed.bank import PrefixBank
from prefixembed.inspection.arguments import active_names, check_some_texts, reading_of
from prefixembed.reading import Reading

# Plain attention materializes all logits: small batches bound its memory.
_BATCH_TOKENS = 2048


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
          ``combine="mean"``, the share of each prefix is divided by the number of prefixes. Heads
          are key heads: where several query heads share one (decoders), the share is their mean

    Raises
    ------
    ValueError
        If the bank has no active prefix, `X` contains no text, or a text would be cut and
        ``bank.on_truncate`` is ``"raise"``.

    See Also
    --------
    prefixembed.inspection.AttentionShareDisplay : Plots the result.

    Notes
    -----
    Texts longer than `max_length` are cut, even if the bank reads them in windows.

    Examples
    --------
    >>> from prefixembed import PrefixBank, PrefixEncoder
    >>> from prefixembed.inspection import attention_share
    >>> from prefixembed.tasks import demo_backbone
    >>> texts, labels = ["what a film", "dull and long", "a joy", "a bore"] * 8, [1, 0, 1, 0] * 8
    >>> encoder = PrefixEncoder(demo_backbone(), max_epochs=5, random_state=0).fit(texts, labels)
    >>> attention_share(PrefixBank({"stars": encoder}), texts[:4]).shares.shape
    (6, 12, 1)
    """
    names = active_names(bank)
    texts = check_some_texts(X)
    combination = bank.combination()
    reading = replace(reading_of(bank, texts), windows=False)
    backbone = bank.load_backbone()
    tokens = tokenize(backbone, texts, reading)
    n_truncated = int(tokens.truncated.sum())
    report_truncated(n_truncated, len(texts), reading.max_length, bank.on_truncate)
    parts = [
        torch.tensor(prefix.keys_values, device=backbone.device, dtype=torch.float32)
        for prefix in combination.prefixes
    ]
    attend = combined_attention(parts, combination.weights, combination.combine)
    assert attend is not None  # there is an active prefix
    measured = _MeasuredAttention(attend, parts, combination.weights, combination.combine)
    return Bunch(names=names, shares=_mean_shares(backbone, tokens, measured, reading))


@dataclass
class _MeasuredAttention:
    """Attend as `attend` does, and add up the share of attention that each prefix gets."""

    attend: Attend
    parts: Sequence[Tensor]  # one per prefix: (layer, 2, head, position, head_dim)
    weights: Sequence[float]
    combine: str
    sums: dict[int, Tensor] = field(default_factory=dict)  # one per layer: (head, prefix)

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
        added = shares.mean(2).sum(0).double()  # (head, prefix)
        self.sums[layer] = self.sums.get(layer, torch.zeros_like(added)) + added
        return self.attend(inputs)


def _mean_shares(
    backbone: Backbone, tokens: Tokens, measured: _MeasuredAttention, reading: Reading
) -> NDArray[np.float64]:
    """Return the mean share of attention of each prefix: (layer, head, prefix)."""
    sequences = tokens.sequences()
    lengths = sequences.lengths
    with torch.inference_mode():
        for length in np.unique(lengths):  # texts of one length need no padding
            positions = np.flatnonzero(lengths == length)
            n_batches = min(len(positions), -(-len(positions) * int(length) // _BATCH_TOKENS))
            for some in np.array_split(positions, n_batches):
                batch = pad_batch(sequences, some, backbone.pad_id)
                backbone.forward(batch, measured, reading)
    sums = [measured.sums[layer] for layer in sorted(measured.sums)]
    return (torch.stack(sums) / len(lengths)).cpu().numpy()
