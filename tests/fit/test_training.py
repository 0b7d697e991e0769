import numpy as np
import pytest
import torch

from prefixembed._fit import optimization as _training
from prefixembed._fit.optimization import Recipe, Step, _rate


def optimise(*args, **options):
    history = {}
    _training.optimise(*args, history, **options)
    return history


def draw(rng):
    return [Step(0, rows) for rows in rng.permutation(64).reshape(4, 16)]


def recipe(**changes):
    fields = {
        "max_epochs": 6,
        "batch_size": 16,
        "learning_rate": 0.1,
        "weight_decay": 0.0,
        "patience": None,
    }
    return Recipe(**(fields | changes))


def quadratic(start=3.0):
    parameter = torch.nn.Parameter(torch.full((4,), start))

    def backward(step):
        loss = (parameter**2).mean()
        loss.backward()
        return float(loss.detach())

    return parameter, backward


def test_a_quadratic_gets_smaller_and_history_tells():
    parameter, backward = quadratic()
    history = optimise(
        [([parameter], 1.0)], backward, draw, recipe(), None, np.random.default_rng(0)
    )
    assert history["epoch"] == [1, 2, 3, 4, 5, 6]
    assert history["train_loss"] == sorted(history["train_loss"], reverse=True)
    assert history["seconds"] == sorted(history["seconds"])
    assert set(history) == {"epoch", "train_loss", "learning_rate", "seconds"}
    assert (parameter**2).mean() < 4


def test_rate_rises_then_falls_to_zero():
    rates = [_rate(step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == 0
    assert all(np.isfinite(_rate(step, 1)) for step in range(3))


def test_the_best_state_is_left_and_patience_ends():
    parameter, backward = quadratic()
    losses = iter([0.9, 0.5, 0.7, 0.6, 0.1])
    states = []

    def validate():
        states.append(parameter.detach().clone())
        return {"valid_loss": next(losses)}

    history = optimise(
        [([parameter], 1.0)], backward, draw, recipe(patience=2), validate,
        np.random.default_rng(0),
    )  # fmt: skip
    assert history["valid_loss"] == [0.9, 0.5, 0.7, 0.6]
    assert torch.equal(parameter, states[1])
    assert not torch.equal(parameter, states[3])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_reported(bad):
    parameter, backward = quadratic()
    calls = []

    def breaks(step):
        calls.append(step)
        return bad if len(calls) == 6 else backward(step)

    with pytest.raises(FloatingPointError, match=r"in epoch 2 at learning_rate=0\.1"):
        optimise([([parameter], 1.0)], breaks, draw, recipe(), None, np.random.default_rng(0))
    assert torch.isfinite(parameter).all()


def test_groups_get_their_share_of_the_rate():
    fast, slow = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))

    def backward(step):
        loss = fast.sum() + slow.sum()
        loss.backward()
        return float(loss.detach())

    optimise(
        [([fast], 1.0), ([slow], 0.1)], backward, draw, recipe(), None, np.random.default_rng(0)
    )
    torch.testing.assert_close((1 - slow) * 10, 1 - fast)


def test_gradients_are_clipped_over_all_parameters():
    parameter = torch.nn.Parameter(torch.ones(4))
    norms = []

    def backward(step):
        if parameter.grad is None:
            (1000 * parameter).sum().backward()
        return 1.0

    parameter.register_post_accumulate_grad_hook(lambda p: norms.append(p.grad))
    optimise(
        [([parameter], 1.0)], backward, draw, recipe(max_epochs=1), None,
        np.random.default_rng(0),
    )  # fmt: skip
    assert len(norms) == 4
    assert all(float(gradient.norm()) <= 1.0001 for gradient in norms)


def test_every_step_of_every_epoch_is_taken():
    parameter, backward = quadratic()
    seen = []
    optimise(
        [([parameter], 1.0)], lambda step: seen.append(step) or backward(step), draw,
        recipe(max_epochs=2), None, np.random.default_rng(0),
    )  # fmt: skip
    counts = np.bincount(np.concatenate([step.rows for step in seen]))
    assert (counts == 2).all() and len(counts) == 64
