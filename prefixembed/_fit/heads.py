"""Create heads of source tasks, fit them again on final vectors, and convert them to `Head`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefixembed._fit.examples import Examples
from prefixembed.head import Head

# Strengths of the penalty on standardized weights, relative to the mean loss of a row; the
# inverse of C times the number of rows for scikit-learn's LogisticRegression.
_PENALTIES = (1.0, 0.1, 0.01, 1e-3)
_MIN_VALID_ROWS = 20  # on fewer rows, a penalty cannot be chosen
_MAX_TRAIN_ROWS = 20_000  # more change a linear head little
_MAX_ITERATIONS = 100


def initial_head(examples: Examples, n_features: int) -> nn.Linear:
    """Return a head of zeros for a task, on the CPU: training starts at chance.

    The global random state of torch, which other threads may use, does not change.
    """
    width = examples.tokens.vector_width(n_features)
    head = nn.utils.skip_init(nn.Linear, width, examples.targets.n_outputs, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def learned_head(head: nn.Linear, examples: Examples) -> Head:
    """Return a trained head, with the mean and scale of numeric labels."""
    weight, bias = (tensor.detach().cpu().numpy() for tensor in (head.weight, head.bias))
    targets = examples.targets
    return Head(examples.objective.name, targets.classes, weight, bias, targets.mean, targets.scale)


def refit_head(
    head: nn.Linear,
    examples: Examples,
    embed: Callable[[NDArray[np.intp]], NDArray[np.float32]],
) -> None:
    """Rescale a trained head, or fit it again, in place: whatever lowers the validation loss most.

    `embed` returns the vectors of the units of some rows. They no longer change, so that the best
    head for them is a convex problem: training, whose rate falls to zero while vectors move,
    stops short of it. The penalty is chosen on the rows set aside for validation.
    """
    if len(examples.valid) < _MIN_VALID_ROWS:
        return
    stride = -(-len(examples.train) // _MAX_TRAIN_ROWS)
    rows, held_out = examples.train[::stride], examples.valid
    vectors, others = (torch.from_numpy(embed(some)).double() for some in (rows, held_out))
    center, scale = vectors.mean(dim=0), vectors.std(dim=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    start = head.weight.detach().cpu().double(), head.bias.detach().cpu().double()

    def validation_loss(weight: Tensor, bias: Tensor) -> float:
        return float(examples.losses(others @ weight.T + bias, held_out).sum())

    sureness = examples.best_scale(others @ start[0].T + start[1], held_out)
    best = start[0] * sureness, start[1] * sureness
    lowest = validation_loss(*best)
    weight, bias = start[0] * scale, start[1] + start[0] @ center
    for penalty in _PENALTIES:
        weight, bias = _minimize(examples, rows, (vectors - center) / scale, weight, bias, penalty)
        found = weight / scale, bias - (weight / scale) @ center
        loss = validation_loss(*found)
        if loss < lowest:
            best, lowest = found, loss
    with torch.no_grad():
        head.weight.copy_(best[0])
        head.bias.copy_(best[1])


def _minimize(
    examples: Examples,
    rows: NDArray[np.intp],
    vectors: Tensor,  # (unit, feature), standardized
    weight: Tensor,  # (output, feature)
    bias: Tensor,  # (output,)
    penalty: float,
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias with the lowest penalized loss."""
    weight, bias = (tensor.clone().requires_grad_() for tensor in (weight, bias))
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_MAX_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = examples.losses(vectors @ weight.T + bias, rows)
        loss = losses.mean() + penalty / 2 * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()
