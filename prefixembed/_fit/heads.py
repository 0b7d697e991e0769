"""Create heads of source tasks, and convert trained ones to `Head`."""

from __future__ import annotations

from torch import nn

from prefixembed._fit.examples import Examples
from prefixembed.head import Head


def initial_head(examples: Examples, n_features: int) -> nn.Linear:
    """Return a head of zeros for a task, on the CPU: training starts at chance.

    The global random state of torch, which other threads may use, does not change.
    """
    width = examples.tokens.vector_width(n_features)
    head = nn.utils.skip_init(nn.Linear, width, examples.targets.n_outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def learned_head(head: nn.Linear, examples: Examples) -> Head:
    """Return a trained head, with mean and scale of numeric labels folded into it."""
    weight, bias = (tensor.detach().cpu().numpy() for tensor in (head.weight, head.bias))
    weight, bias = examples.objective.finish(weight, bias, examples.targets)
    return Head(examples.objective.name, examples.targets.classes, weight, bias)
