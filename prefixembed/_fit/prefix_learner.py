"""What is trained on a source task: a prefix, its linear head, and where they start."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefixembed._embed.batching import Tokens, pad_batch, shuffle_batches
from prefixembed._embed.encoding import embed_tokens, encode_batch
from prefixembed._fit.examples import Examples
from prefixembed._fit.learning import Learner, learn
from prefixembed._fit.optimization import History, Recipe, Step
from prefixembed._model.attention import Attend, Record, combined_attention
from prefixembed._model.pooling import Reading
from prefixembed.backbone import Backbone

_NORMAL_SCALE = 0.02
# Share of the learning rate that an MLP gets: at the full rate of bare keys and values its layers
# saturate in the first steps, and the loss stays at chance.
_MLP_RATE = 0.1


class PrefixModel(nn.Module):
    """Keys and values, by themselves or as the output of a small MLP, and a linear head.

    Parameters
    ----------
    start : Tensor of shape (layer, 2, head, position, head_dim)
        Initial keys and values, on the CPU.
    width, n_outputs : int
        Shape of the head, which starts at zero: at chance.
    hidden_size : int or None
        Width of the MLP of P-Tuning v2 (arXiv 2110.07602), whose output is added
        to `start`; None for no MLP.
    generator : torch.Generator
        Where the MLP's weights are drawn from.
    """

    def __init__(
        self,
        start: Tensor,
        width: int,
        n_outputs: int,
        hidden_size: int | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.shape = start.shape
        length = start.shape[3]
        # skip_init: torch's global random state is left alone, other threads may use it.
        self.head = nn.utils.skip_init(nn.Linear, width, n_outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.mlp: nn.Sequential | None = None
        if hidden_size is None:
            self.keys_values = nn.Parameter(start)
            return
        self.start: Tensor
        self.register_buffer("start", start)
        features = start.shape[2] * start.shape[4]
        embedding = nn.utils.skip_init(nn.Embedding, length, features)
        first = nn.utils.skip_init(nn.Linear, features, hidden_size)
        last = nn.utils.skip_init(nn.Linear, hidden_size, start.numel() // length)
        nn.init.normal_(embedding.weight, generator=generator)
        nn.init.normal_(first.weight, std=features**-0.5, generator=generator)
        # Small at first, so that training starts where `start` is.
        nn.init.normal_(last.weight, std=_NORMAL_SCALE * hidden_size**-0.5, generator=generator)
        nn.init.zeros_(first.bias)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(embedding, first, nn.Tanh(), last)

    def prefix(self) -> Tensor:
        """Give the keys and values, of shape (layer, 2, head, position, head_dim)."""
        if self.mlp is None:
            return self.keys_values
        layer, two, head, length, head_dim = self.shape
        flat = self.mlp(torch.arange(length, device=self.start.device))  # (position, rest)
        return self.start + flat.view(length, layer, two, head, head_dim).permute(1, 2, 3, 0, 4)

    def groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """Give the parameters with the share of the learning rate that they get."""
        head = list(self.head.parameters())
        if self.mlp is None:
            return [([self.keys_values, *head], 1.0)]
        return [(head, 1.0), (list(self.mlp.parameters()), _MLP_RATE)]

    def attention(self) -> Attend | None:
        """Give what a forward call carries, gradients and all."""
        return combined_attention([self.prefix()], [1.0], "concat")


def initial_keys_values(
    backbone: Backbone, tokens: Tokens, length: int, init: str, rng: np.random.Generator
) -> Tensor:
    """Give where a prefix starts.

    Parameters
    ----------
    backbone : Backbone
        The frozen encoder.
    tokens : Tokens
        Training texts.
    length : int
        Prefix positions.
    init : {"text", "normal"}
        The backbone's own keys and values at random tokens of random texts, or Gaussian noise.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    keys_values : Tensor of shape (layer, 2, head, length, head_dim)
        In float32 on the backbone's device.
    """
    n_layers, n_heads, head_dim = backbone.layout
    if init == "normal":
        noise = _NORMAL_SCALE * rng.standard_normal((n_layers, 2, n_heads, length, head_dim))
        return torch.from_numpy(noise.astype(np.float32)).to(backbone.device)
    rows = rng.choice(len(tokens.ids), size=length, replace=len(tokens.ids) < length)
    columns = rng.integers(tokens.lengths[rows])
    parts = []
    for row, column in zip(rows, columns, strict=True):
        record = Record(
            torch.tensor([0], device=backbone.device),
            torch.tensor([column], device=backbone.device),
        )
        with torch.no_grad():
            backbone.forward(pad_batch(tokens, np.array([row]), backbone.pad_id), record)
        parts.append(record.keys_values())
    return torch.cat(parts, dim=3)


def learned(model: PrefixModel, data: Examples) -> dict[str, Any]:
    """Give what :class:`~prefixembed.Prefix` is to hold of a model, by the names it has there."""
    with torch.no_grad():
        keys_values = model.prefix().cpu().numpy()
    head = model.head
    weight, bias = data.objective.finish(
        head.weight.detach().cpu().numpy(), head.bias.detach().cpu().numpy(), data.targets
    )
    return {
        "keys_values": keys_values,
        "classes": data.targets.classes,
        "head_weight": weight,
        "head_bias": bias,
    }


def learn_prefix(
    backbone: Backbone,
    data: Examples,
    model: PrefixModel,
    recipe: Recipe,
    *,
    reading: Reading,
    batch_tokens: int,
    rng: np.random.Generator,
    history: History,
    progress: bool = False,
    checkpoint_dir: str | os.PathLike[str] | None = None,
) -> None:
    """Train a model in place; gradients reach its prefix and its head and nothing else.

    Parameters
    ----------
    backbone : Backbone
        The frozen encoder; prefixes enter as an argument, so it does not change.
    data : Examples
        What to learn from.
    model : PrefixModel
        What is learned.
    recipe : Recipe
        How.
    reading : Reading
        How texts are read and token vectors become one.
    batch_tokens : int
        Most tokens that go through the backbone at once.
    rng : numpy.random.Generator
        Order of the texts.
    history : dict of str to list of float
        Empty; :func:`~prefixembed._fit.learning.learn` fills it.
    progress : bool, default=False
        Show a progress bar.
    checkpoint_dir : str or path-like, default=None
        Where states are kept, and looked for first. None: nowhere.
    """

    def encode(tokens: Tokens, texts: NDArray[np.intp]) -> Tensor:
        return encode_batch(backbone, tokens, texts, model.attention(), reading)

    def embed(tokens: Tokens, budget: int) -> NDArray[np.float32]:
        with torch.no_grad():
            prefix = model.attention()
        return embed_tokens(backbone, tokens, prefix, reading, budget)

    def draw(rng: np.random.Generator) -> list[Step]:
        longest = data.longest[data.train]
        return [Step(0, data.train[b]) for b in shuffle_batches(longest, recipe.batch_size, rng)]

    identity = (backbone.fingerprint, str(backbone.dtype), reading)
    learn(
        {"": data}, Learner(encode, embed, [model.head], model.groups(), identity), draw, recipe,
        batch_tokens=batch_tokens, rng=rng, history=history, progress=progress,
        checkpoint_dir=checkpoint_dir,
    )  # fmt: skip
