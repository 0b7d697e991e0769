"""Linear heads of source tasks: their initial state, and what is kept of them."""

from __future__ import annotations

from torch import nn

from prefixembed._fit.examples import Examples
from prefixembed.head import Head


def initial_head(examples: Examples, n_features: int) -> nn.Linear:
    """Return a head of zeros for a task, so that training starts at chance.

    Parameters
    ----------
    examples : Examples
        Examples of the task.
    n_features : int
        Number of features of the backbone.

    Returns
    -------
    head : torch.nn.Linear
        On the CPU. The global random state of torch does not change: other threads may use it.
    """
    width = examples.tokens.vector_width(n_features)
    head = nn.utils.skip_init(nn.Linear, width, examples.targets.n_outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def learned_head(head: nn.Linear, examples: Examples) -> Head:
    """Return a trained head as a value that predicts on the scale of the labels.

    Parameters
    ----------
    head : torch.nn.Linear
        Trained head.
    examples : Examples
        Examples that it was trained on.

    Returns
    -------
    head : Head
        For regression, mean and scale of the labels are folded into weight and bias.
    """
    weight, bias = (tensor.detach().cpu().numpy() for tensor in (head.weight, head.bias))
    weight, bias = examples.objective.finish(weight, bias, examples.targets)
    return Head(examples.objective.name, examples.targets.classes, weight, bias)
