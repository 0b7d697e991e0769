"""What is trained on a source task: a prefix, its linear head, and where they start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from prefixembed._attention import Attend, Record, combined_attention
from prefixembed._batching import Tokens, pad_batch, plan_batches
from prefixembed._embedding import embed_tokens, is_out_of_memory
from prefixembed._pooling import pool
from prefixembed._training import History, Recipe, optimise
from prefixembed._warnings import warn
from prefixembed.backbone import Backbone

_NORMAL_SCALE = 0.02
# A final training loss above this share of the labels' entropy means that nothing was learned.
_STUCK = 0.98
# Share of the learning rate that an MLP gets: at the full rate of bare keys and values its layers
# saturate in the first steps, and the loss stays at chance.
_MLP_RATE = 0.1


@dataclass(frozen=True)
class LabelledTokens:
    """Tokenized texts of one source task with their labels.

    Parameters
    ----------
    tokens : Tokens
        Of all texts.
    labels : int64 ndarray of shape (n_texts,)
        Positions into the classes.
    weights : float32 ndarray of shape (n_texts,)
        Weight of each text in the loss, 1 on average.
    train, valid : ndarray
        Positions of texts to learn from and to validate on; the latter may be empty.
    """

    tokens: Tokens
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    train: NDArray[np.intp]
    valid: NDArray[np.intp]


class PrefixModel(nn.Module):
    """Keys and values, by themselves or as the output of a small MLP, and a linear head.

    Parameters
    ----------
    start : Tensor of shape (layer, 2, head, position, head_dim)
        Initial keys and values, on the CPU.
    n_features, n_outputs : int
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
        n_features: int,
        n_outputs: int,
        hidden_size: int | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.shape = start.shape
        length = start.shape[3]
        # skip_init: torch's global random state is left alone, other threads may use it.
        self.head = nn.utils.skip_init(nn.Linear, n_features, n_outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.mlp: nn.Sequential | None = None
        if hidden_size is None:
            self.keys_values = nn.Parameter(start)
            return
        self.start: Tensor
        self.register_buffer("start", start)
        embedding = nn.utils.skip_init(nn.Embedding, length, n_features)
        first = nn.utils.skip_init(nn.Linear, n_features, hidden_size)
        last = nn.utils.skip_init(nn.Linear, hidden_size, start.numel() // length)
        nn.init.normal_(embedding.weight, generator=generator)
        nn.init.normal_(first.weight, std=n_features**-0.5, generator=generator)
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


def learn_prefix(
    backbone: Backbone,
    data: LabelledTokens,
    model: PrefixModel,
    recipe: Recipe,
    *,
    pooling: str,
    batch_tokens: int,
    rng: np.random.Generator,
    progress: bool,
) -> History:
    """Train a model in place; gradients reach its prefix and its head and nothing else.

    Parameters
    ----------
    backbone : Backbone
        The frozen encoder; prefixes enter as an argument, so it does not change.
    data : LabelledTokens
        What to learn from.
    model : PrefixModel
        What is learned.
    recipe : Recipe
        How.
    pooling : {"cls", "mean", "max", "last"}
        How token vectors become one.
    batch_tokens : int
        Most tokens that go through the backbone at once; a step's gradient is summed over as
        many parts as that takes. A device out of memory halves it.
    rng : numpy.random.Generator
        Order of the texts.
    progress : bool
        Show a progress bar.

    Returns
    -------
    history : dict of str to list of float
        As :func:`~prefixembed._training.optimise` gives it.

    Raises
    ------
    FloatingPointError
        If a loss is not finite.
    """
    parameters = list(model.parameters())
    lengths = data.tokens.lengths
    labels = torch.from_numpy(data.labels).to(backbone.device)
    weights = torch.from_numpy(data.weights).to(backbone.device)
    budget = batch_tokens

    def loss_of(positions: NDArray[np.intp]) -> Tensor:
        batch = pad_batch(data.tokens, positions, backbone.pad_id)
        hidden, mask = backbone.forward(batch, model.attention())
        logits = model.head(pool(hidden, mask, pooling))  # (batch, class)
        where = torch.from_numpy(positions).to(backbone.device)
        losses = nn.functional.cross_entropy(logits, labels[where], reduction="none")
        return (losses * weights[where]).sum()

    def backward(batch: NDArray[np.intp]) -> float:
        nonlocal budget
        positions = data.train[batch]
        while True:
            parts = [positions[part] for part in plan_batches(lengths[positions], budget)]
            try:
                return _backward_parts(parts, loss_of, len(positions))
            except (RuntimeError, MemoryError) as error:
                if max(len(part) for part in parts) == 1 or not is_out_of_memory(error):
                    raise
            for parameter in parameters:
                parameter.grad = None
            budget = max(1, min(budget, int(lengths[positions].max()) * len(positions)) // 2)

    def validate() -> dict[str, float]:
        return _validate(backbone, data, model, pooling, budget)

    return optimise(
        model.groups(),
        backward,
        lengths[data.train],
        recipe,
        validate if len(data.valid) else None,
        rng,
        progress,
    )


def _backward_parts(
    parts: Sequence[NDArray[np.intp]],
    loss_of: Callable[[NDArray[np.intp]], Tensor],
    n_texts: int,
) -> float:
    total = 0.0
    for part in parts:
        loss = loss_of(part) / n_texts
        torch.autograd.backward(loss)
        total += float(loss.detach())
    return total


def _validate(
    backbone: Backbone, data: LabelledTokens, model: PrefixModel, pooling: str, budget: int
) -> dict[str, float]:
    tokens = data.tokens.take(data.valid)
    with torch.no_grad():
        prefix = combined_attention([model.prefix()], [1.0], "concat")
    vectors = torch.from_numpy(embed_tokens(backbone, tokens, prefix, pooling, budget))
    labels, weights = torch.from_numpy(data.labels), torch.from_numpy(data.weights)
    labels, weights = labels[data.valid], weights[data.valid]
    with torch.no_grad():
        logits = model.head(vectors.to(backbone.device)).cpu()
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    right = (logits.argmax(dim=1) == labels).float()
    return {
        "valid_loss": float((losses * weights).sum() / weights.sum()),
        "valid_accuracy": float((right * weights).sum() / weights.sum()),
    }


def warn_if_stuck(history: History, data: LabelledTokens, learning_rate: float) -> None:
    """Warn if the loss says that nothing was learned."""
    mass = np.bincount(data.labels[data.train], weights=data.weights[data.train])
    share = mass[mass > 0] / mass.sum()
    chance = -float((share * np.log(share)).sum())
    loss = min(history["train_loss"])
    if loss > _STUCK * chance:
        warn(
            f"the training loss is stuck at chance or above ({loss:.3g}, and guessing by class "
            f"frequency gives {chance:.3g}): try another learning_rate than {learning_rate}, more "
            "max_epochs, or init='text'",
            ConvergenceWarning,
        )


def training_facts(data: LabelledTokens, recipe: Recipe, history: History) -> dict[str, Any]:
    """Tell how a prefix was trained, as its file will say."""
    facts: dict[str, Any] = {
        "n_texts": len(data.train),
        "n_validation_texts": len(data.valid),
        "n_truncated": int(data.tokens.truncated.sum()),
        "learning_rate": float(recipe.learning_rate),
        "batch_size": int(recipe.batch_size),
        "n_epochs": len(history["epoch"]),
        "seconds": history["seconds"][-1],
    }
    # Of the epoch whose state was kept.
    kept = int(np.argmin(history["valid_loss"])) if "valid_loss" in history else -1
    figures = ("train_loss", "valid_loss", "valid_accuracy")
    return facts | {name: history[name][kept] for name in figures if name in history}
