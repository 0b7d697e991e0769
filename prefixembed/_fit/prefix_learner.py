"""The learner of a prefix: keys and values, slots, a linear head, and their initial values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefixembed._embed.batches import pad_batch
from prefixembed._embed.encoding import embed_tokens, encode_batch
from prefixembed._embed.tokens import Tokens, tokenize
from prefixembed._fit.examples import Examples
from prefixembed._fit.heads import initial_head, learned_head
from prefixembed._fit.learning import Learner
from prefixembed._model.attention import RecordedAttention
from prefixembed._model.extension import Extension, PrefixTensors, combine
from prefixembed._model.modes import own_modes
from prefixembed._model.slots import AddedSlots, MeasuredSlots, SlotTensors
from prefixembed.backbone import Backbone
from prefixembed.reading import Reading
from prefixembed.slots import Slots

_NORMAL_SCALE = 0.02
# Share of the learning rate for the MLP. At the full rate, its layers saturate in the first steps
# and the loss stays at chance.
_MLP_RATE = 0.1


class PrefixLearner(Learner):
    """Learn a prefix and its head; the backbone does not change.

    `reparameterize` is the hidden width of the MLP that computes the prefix, or None for no MLP.
    `slot_rate` is the share of the learning rate for slots. `dropout` is a share of keys and values
    and of the activations of slots. Background texts are for prefixes with slots; there may be
    none.
    """

    @own_modes(gradients=True)
    def __init__(
        self,
        backbone: Backbone,
        examples: Examples,
        reading: Reading,
        *,
        prefix_length: int,
        ffn_length: int,
        init: str,
        reparameterize: int | None,
        slot_rate: float,
        dropout: float,
        background: Sequence[str],
        background_weight: float,
        rng: np.random.Generator,
    ) -> None:
        self.backbone, self.examples, self.reading = backbone, examples, reading
        tokens = examples.tokens.take(examples.texts(examples.train)).sequences()
        start = initial_keys_values(backbone, tokens, reading, prefix_length, init, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        slots = None
        if ffn_length:
            shape = backbone.layout[0], ffn_length, backbone.n_features
            slots = initial_slots(shape, generator)
        head = initial_head(examples, backbone.n_features)
        model = PrefixModel(start.cpu(), slots, head, reparameterize, generator)
        self.model = model.to(backbone.device)
        self.heads = [self.model.head]
        self.groups = self.model.groups(slot_rate)
        if dropout:
            self.generator = torch.Generator(backbone.device)
            self.generator.manual_seed(int(rng.integers(2**31)))
        self.dropout = dropout
        self.background = tokenize(backbone, background, replace(reading, pairs=None))
        self.n_background = len(background)
        self.background_weight = background_weight
        self.identity = (
            backbone.fingerprint, str(backbone.dtype), reading, list(background), background_weight,
            dropout,
        )  # fmt: skip

    def encode(self, tokens: Tokens, positions: NDArray[np.intp]) -> Tensor:
        extension = self._extension(dropped=bool(self.dropout))
        return encode_batch(self.backbone, tokens, positions, extension, self.reading)

    def penalty(self, background: NDArray[np.intp]) -> Tensor:
        extension = self._extension()
        assert extension is not None and isinstance(extension.add_slots, AddedSlots)
        batch = pad_batch(self.background, background, self.backbone.pad_id)
        mask = None
        if batch.mask is not None:
            mask = torch.from_numpy(batch.mask).to(self.backbone.device)
        measured = MeasuredSlots(extension.add_slots, mask)
        self.backbone.forward(batch, replace(extension, add_slots=measured), self.reading)
        return self.background_weight * torch.stack(measured.effects).mean()

    def embed(self, tokens: Tokens, batch_tokens: int) -> NDArray[np.float32]:
        with torch.no_grad():
            extension = self._extension()
        return embed_tokens(self.backbone, tokens, extension, self.reading, batch_tokens)

    @own_modes(gradients=False)
    def learned(self) -> dict[str, Any]:
        """Return the fields of `Prefix` that were learned, and those that the backbone decides."""
        tensors = self.model.tensors()
        slots = None
        if tensors.slots is not None:
            slots = Slots(*(tensor.detach().cpu().numpy() for tensor in tensors.slots))
        return {
            "keys_values": tensors.keys_values.detach().cpu().numpy(),
            "slots": slots,
            "head": learned_head(self.model.head, self.examples),
            "fingerprint": self.backbone.fingerprint,
            "n_features": self.backbone.n_features,
        }

    def _extension(self, dropped: bool = False) -> Extension | None:
        """Return what the prefix adds to the layers, with gradients, and with dropout if asked."""
        backbone, tensors = self.backbone, self.model.tensors()
        if dropped:
            tensors = replace(tensors, keys_values=self._drop(tensors.keys_values))
        extension = combine([tensors], [1.0], "concat", backbone.activation, backbone.dtype)
        if dropped and extension is not None and isinstance(extension.add_slots, AddedSlots):
            slots = replace(extension.add_slots, dropout=self._drop)
            extension = replace(extension, add_slots=slots)
        return extension

    def _drop(self, states: Tensor) -> Tensor:
        """Set random entries to zero and scale the others up; threads share no generator."""
        kept = torch.rand(states.shape, generator=self.generator, device=states.device)
        return states * (kept >= self.dropout) / (1 - self.dropout)


class PrefixModel(nn.Module):
    """Keys and values, as they are or computed by a small MLP, slots, and a linear head.

    The MLP is that of P-Tuning v2 (arXiv 2110.07602). Its output is added to the initial keys and
    values. There is none if `hidden_size` is None.
    """

    def __init__(
        self,
        start: Tensor,  # (layer, 2, head, position, head_dim), on the CPU
        slots: SlotTensors | None,
        head: nn.Linear,
        hidden_size: int | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.shape = start.shape
        self.head = head
        self.slots = None if slots is None else nn.ParameterList(slots)
        self.mlp: nn.Sequential | None = None
        length = start.shape[3]
        if hidden_size is None or not length:
            self.keys_values = nn.Parameter(start)
            return
        self.start: Tensor
        self.register_buffer("start", start)
        features = start.shape[2] * start.shape[4]
        # skip_init: other threads may use the global random state of torch.
        dtype = torch.float32
        embedding = nn.utils.skip_init(nn.Embedding, length, features, dtype=dtype)
        first = nn.utils.skip_init(nn.Linear, features, hidden_size, dtype=dtype)
        last = nn.utils.skip_init(nn.Linear, hidden_size, start.numel() // length, dtype=dtype)
        nn.init.normal_(embedding.weight, generator=generator)
        nn.init.normal_(first.weight, std=features**-0.5, generator=generator)
        # Small, so that training begins near `start`.
        nn.init.normal_(last.weight, std=_NORMAL_SCALE * hidden_size**-0.5, generator=generator)
        nn.init.zeros_(first.bias)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(embedding, first, nn.Tanh(), last)

    def tensors(self) -> PrefixTensors:
        """Return the prefix, with gradients."""
        slots = None if self.slots is None else SlotTensors(*self.slots)
        return PrefixTensors(self._keys_values(), slots)

    def _keys_values(self) -> Tensor:  # (layer, 2, head, position, head_dim)
        if self.mlp is None:
            return self.keys_values
        layer, two, head, length, head_dim = self.shape
        flat = self.mlp(torch.arange(length, device=self.start.device))  # (position, rest)
        return self.start + flat.view(length, layer, two, head, head_dim).permute(1, 2, 3, 0, 4)

    def groups(self, slot_rate: float) -> list[tuple[list[nn.Parameter], float]]:
        """Return groups of parameters, each with its share of the learning rate."""
        head = list(self.head.parameters())
        slots = [] if self.slots is None else list(self.slots)
        if self.mlp is None:
            return [([self.keys_values, *head], 1.0), (slots, slot_rate)]
        return [(head, 1.0), (list(self.mlp.parameters()), _MLP_RATE), (slots, slot_rate)]


def initial_slots(shape: tuple[int, int, int], generator: torch.Generator) -> SlotTensors:
    """Return slots of (layer, slot, feature) whose values are zero: they add nothing yet."""
    keys = torch.randn(shape, generator=generator, dtype=torch.float32) * shape[2] ** -0.5
    return SlotTensors(keys, torch.zeros_like(keys[..., 0]), torch.zeros_like(keys))


def initial_keys_values(
    backbone: Backbone,
    tokens: Tokens,
    reading: Reading,
    length: int,
    init: str,
    rng: np.random.Generator,
) -> Tensor:  # (layer, 2, head, position, head_dim), on the device of the backbone
    """Return the initial keys and values of a prefix, in float32.

    They are those of the backbone at random tokens of random texts (``init="text"``), or Gaussian
    noise (``init="normal"``).
    """
    n_layers, n_heads, head_dim = backbone.layout
    if not length:
        shape = n_layers, 2, n_heads, 0, head_dim
        return torch.zeros(shape, dtype=torch.float32, device=backbone.device)
    if init == "normal":
        noise = _NORMAL_SCALE * rng.standard_normal((n_layers, 2, n_heads, length, head_dim))
        return torch.from_numpy(noise.astype(np.float32)).to(backbone.device)
    rows = rng.choice(len(tokens.ids), size=length, replace=len(tokens.ids) < length)
    columns = rng.integers(tokens.lengths[rows])
    parts = []
    for row, column in zip(rows, columns, strict=True):
        recorded = RecordedAttention(
            torch.tensor([0], device=backbone.device),
            torch.tensor([column], device=backbone.device),
        )
        batch = pad_batch(tokens, np.array([row]), backbone.pad_id)
        with torch.no_grad():
            backbone.forward(batch, Extension(recorded), reading)
        parts.append(recorded.keys_values())
    return torch.cat(parts, dim=3)
