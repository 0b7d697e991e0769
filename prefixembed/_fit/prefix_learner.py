"""The learner of a prefix: keys and values, a linear head, and their initial values."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefixembed._embed.batches import pad_batch
from prefixembed._embed.encoding import embed_tokens, encode_batch
from prefixembed._embed.tokens import Tokens
from prefixembed._fit.examples import Examples
from prefixembed._fit.heads import initial_head, learned_head
from prefixembed._fit.learning import Learner
from prefixembed._model.attention import Attend, RecordedAttention, combined_attention
from prefixembed.backbone import Backbone
from prefixembed.head import Head
from prefixembed.reading import Reading

_NORMAL_SCALE = 0.02
# Share of the learning rate for the MLP. At the full rate, its layers saturate in the first steps
# and the loss stays at chance.
_MLP_RATE = 0.1


class PrefixLearner(Learner):
    """Learn a prefix and its head; the backbone does not change.

    `reparameterize` is the hidden width of the MLP that computes the prefix, or None for no MLP.
    """

    def __init__(
        self,
        backbone: Backbone,
        examples: Examples,
        reading: Reading,
        *,
        prefix_length: int,
        init: str,
        reparameterize: int | None,
        rng: np.random.Generator,
    ) -> None:
        self.backbone, self.examples, self.reading = backbone, examples, reading
        tokens = examples.tokens.take(examples.texts(examples.train)).sequences()
        start = initial_keys_values(backbone, tokens, reading, prefix_length, init, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        head = initial_head(examples, backbone.n_features)
        model = PrefixModel(start.cpu(), head, reparameterize, generator)
        self.model = model.to(backbone.device)
        self.heads = [self.model.head]
        self.groups = self.model.groups()
        self.identity = (backbone.fingerprint, str(backbone.dtype), reading)

    def encode(self, tokens: Tokens, positions: NDArray[np.intp]) -> Tensor:
        return encode_batch(self.backbone, tokens, positions, self.model.attention(), self.reading)

    def embed(self, tokens: Tokens, batch_tokens: int) -> NDArray[np.float32]:
        with torch.no_grad():
            attend = self.model.attention()
        return embed_tokens(self.backbone, tokens, attend, self.reading, batch_tokens)

    def learned(self) -> tuple[NDArray[np.float32], Head]:
        """Return keys and values, (layer, 2, head, position, head_dim), and the head."""
        with torch.no_grad():
            keys_values: NDArray[np.float32] = self.model.prefix().cpu().numpy()
        return keys_values, learned_head(self.model.head, self.examples)


class PrefixModel(nn.Module):
    """Keys and values, as they are or computed by a small MLP, and a linear head.

    The MLP is that of P-Tuning v2 (arXiv 2110.07602). Its output is added to the initial keys and
    values. There is none if `hidden_size` is None.
    """

    def __init__(
        self,
        start: Tensor,  # (layer, 2, head, position, head_dim), on the CPU
        head: nn.Linear,
        hidden_size: int | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.shape = start.shape
        self.head = head
        self.mlp: nn.Sequential | None = None
        if hidden_size is None:
            self.keys_values = nn.Parameter(start)
            return
        self.start: Tensor
        self.register_buffer("start", start)
        length = start.shape[3]
        features = start.shape[2] * start.shape[4]
        # skip_init: other threads may use the global random state of torch.
        embedding = nn.utils.skip_init(nn.Embedding, length, features)
        first = nn.utils.skip_init(nn.Linear, features, hidden_size)
        last = nn.utils.skip_init(nn.Linear, hidden_size, start.numel() // length)
        nn.init.normal_(embedding.weight, generator=generator)
        nn.init.normal_(first.weight, std=features**-0.5, generator=generator)
        # Small, so that training begins near `start`.
        nn.init.normal_(last.weight, std=_NORMAL_SCALE * hidden_size**-0.5, generator=generator)
        nn.init.zeros_(first.bias)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(embedding, first, nn.Tanh(), last)

    def prefix(self) -> Tensor:
        """Return the keys and values, (layer, 2, head, position, head_dim)."""
        if self.mlp is None:
            return self.keys_values
        layer, two, head, length, head_dim = self.shape
        flat = self.mlp(torch.arange(length, device=self.start.device))  # (position, rest)
        return self.start + flat.view(length, layer, two, head, head_dim).permute(1, 2, 3, 0, 4)

    def groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return groups of parameters, each with its share of the learning rate."""
        head = list(self.head.parameters())
        if self.mlp is None:
            return [([self.keys_values, *head], 1.0)]
        return [(head, 1.0), (list(self.mlp.parameters()), _MLP_RATE)]

    def attention(self) -> Attend | None:
        """Return the attention to the prefix, with gradients."""
        return combined_attention([self.prefix()], [1.0], "concat")


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
            backbone.forward(batch, recorded, reading)
        parts.append(recorded.keys_values())
    return torch.cat(parts, dim=3)
