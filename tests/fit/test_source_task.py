import numpy as np
import pytest
import torch
from conftest import TEXTS

from prefixembed import load_backbone
from prefixembed._embed.batching import pad_batch, tokenize
from prefixembed._fit import prefix_learner as _source_task
from prefixembed._fit.examples import Examples
from prefixembed._fit.objectives import OBJECTIVES, Targets
from prefixembed._fit.optimization import Recipe
from prefixembed._fit.prefix_learner import (
    PrefixModel,
    initial_keys_values,
    learn_prefix,
)
from prefixembed._model.pooling import Reading

RECIPE = Recipe(max_epochs=2, batch_size=4, learning_rate=0.01, weight_decay=0.0, patience=None)


@pytest.fixture
def backbone(tiny):
    return load_backbone(tiny("bert"), dtype="float32", device="cpu")


def make_model(backbone, hidden_size=None, seed=0, init="normal"):
    rng = np.random.default_rng(seed)
    tokens = tokenize(backbone.tokenizer(64), TEXTS)
    start = initial_keys_values(backbone, tokens, 4, init, rng)
    generator = torch.Generator().manual_seed(seed)
    return PrefixModel(start, backbone.n_features, 2, hidden_size, generator)


def make_data(backbone, n_valid=0):
    texts = [f"{'good' if k % 2 else 'bad'} {k}" for k in range(16)]
    tokens = tokenize(backbone.tokenizer(64), texts)
    targets = Targets(np.arange(16) % 2, np.arange(2), 2)
    return Examples(
        tokens, np.ones(16, dtype=np.intp), OBJECTIVES["classification"], targets,
        np.ones(16, dtype=np.float32), np.arange(16 - n_valid), np.arange(16 - n_valid, 16),
    )  # fmt: skip


def learn(backbone, model, data=None, budget=10_000, seed=0):
    history = {}
    learn_prefix(
        backbone, data or make_data(backbone), model, RECIPE, reading=Reading("mean"),
        batch_tokens=budget, rng=np.random.default_rng(seed), history=history,
    )  # fmt: skip
    return history


@pytest.mark.parametrize("hidden_size", [None, 6])
def test_gradient_reaches_prefix_and_head_and_nothing_else(backbone, hidden_size):
    model = make_model(backbone, hidden_size)
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    learn(backbone, model)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, start[name]), name
    assert ("keys_values" in names) == (hidden_size is None)
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert not any(module.training for module in backbone.model.modules())
    after = backbone.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_every_layer_and_position_of_a_prefix_is_learned(backbone):
    model = make_model(backbone, init="text")
    start = model.prefix().detach().clone()
    learn(backbone, model)
    moved = (model.prefix() - start).abs().amax(dim=(2, 4))  # (layer, 2, position)
    assert (moved > 1e-4).all()


def test_text_start_is_the_backbones_own_keys_and_values(backbone):
    tokens = tokenize(backbone.tokenizer(64), TEXTS)
    start = initial_keys_values(backbone, tokens, 5, "text", np.random.default_rng(3))
    with torch.no_grad():
        hidden = []
        for k in range(len(TEXTS)):
            batch = pad_batch(tokens, np.array([k]), backbone.pad_id)
            outputs = backbone.model(torch.from_numpy(batch.ids), output_hidden_states=True)
            hidden.append([h[0] for h in outputs.hidden_states])
        for layer in range(3):
            own = backbone.model.encoder.layer[layer].attention.self
            for which, project in enumerate((own.key, own.value)):
                real = torch.cat([project(rows[layer]) for rows in hidden])  # (token, feature)
                got = start[layer, which].transpose(0, 1).flatten(1)  # (position, feature)
                distance = torch.cdist(got, real, compute_mode="donot_use_mm_for_euclid_dist")
                assert distance.min(dim=1).values.max() < 1e-4


def test_starts_differ_by_seed_and_repeat(backbone):
    tokens = tokenize(backbone.tokenizer(64), TEXTS)
    for init in ("text", "normal"):
        one, same, other = (
            initial_keys_values(backbone, tokens, 5, init, np.random.default_rng(seed))
            for seed in (0, 0, 1)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_more_positions_than_texts_can_start(backbone):
    tokens = tokenize(backbone.tokenizer(64), ["one text"])
    start = initial_keys_values(backbone, tokens, 12, "text", np.random.default_rng(0))
    assert start.shape == (3, 2, 4, 12, 8)


def test_mlp_starts_at_its_start_and_folds_to_plain_keys_and_values(backbone):
    model = make_model(backbone, hidden_size=6)
    assert (model.prefix() - model.start).abs().max() < 0.1
    learn(backbone, model)
    assert (model.prefix() - model.start).abs().max() > 1e-3
    # Position by position, the MLP's output is laid out as (layer, key or value, head, head_dim).
    flat = model.mlp(torch.arange(4)).detach()
    folded = (model.prefix() - model.start).detach()
    for position in range(4):
        torch.testing.assert_close(folded[:, :, :, position].flatten(), flat[position])


def test_small_budgets_give_the_same_training(backbone):
    models = [make_model(backbone) for _ in range(3)]
    histories = [
        learn(backbone, model, make_data(backbone, n_valid=4), budget)
        for model, budget in zip(models, (10_000, 25, 1), strict=True)
    ]
    for model, history in zip(models[1:], histories[1:], strict=True):
        torch.testing.assert_close(model.prefix(), models[0].prefix(), atol=1e-3, rtol=1e-3)
        for name in ("train_loss", "valid_loss"):
            np.testing.assert_allclose(history[name], histories[0][name], rtol=1e-4)


def test_out_of_memory_halves_and_repeats_the_step(backbone, monkeypatch):
    expected, model = make_model(backbone), make_model(backbone)
    learn(backbone, expected)
    real = _source_task.encode_batch
    failures = []

    def small_device(backbone, tokens, positions, *args):
        if len(positions) > 1 and len(failures) < 3:
            failures.append(len(positions))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(backbone, tokens, positions, *args)

    monkeypatch.setattr(_source_task, "encode_batch", small_device)
    learn(backbone, model)
    assert len(failures) >= 2
    torch.testing.assert_close(model.prefix(), expected.prefix(), atol=1e-3, rtol=1e-3)


def test_other_errors_of_a_step_are_raised(backbone, monkeypatch):
    def broken(*args):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(_source_task, "encode_batch", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        learn(backbone, make_model(backbone))


def test_the_global_random_state_is_left_alone(backbone):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    learn(backbone, make_model(backbone, hidden_size=6))
    assert torch.equal(torch.rand(3), expected)
