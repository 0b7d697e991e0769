"""Training of a prefix on a small backbone."""

import contextlib
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import TEXTS
from helpers import ratings

from prefixembed import load_backbone
from prefixembed._embed.batches import pad_batch
from prefixembed._embed.encoding import embed_tokens
from prefixembed._embed.tokens import tokenize
from prefixembed._fit import checkpoints, prefix_learner
from prefixembed._fit.examples import prepare, read_rows
from prefixembed._fit.learning import train
from prefixembed._fit.optimization import Recipe
from prefixembed._fit.prefix_learner import PrefixLearner, initial_keys_values
from prefixembed.reading import Reading

RECIPE = Recipe(
    max_steps=8, eval_steps=4, batch_size=4, learning_rate=0.01, weight_decay=0.0, patience=None
)
READING = Reading("mean", 64)


@pytest.fixture
def backbone(tiny):
    return load_backbone(tiny(), dtype="float32", device="cpu")


def make_examples(backbone, validation_fraction=None):
    texts = [f"{'good' if k % 2 else 'bad'} {k}" for k in range(16)]
    rows = read_rows("classification", texts, np.arange(16) % 2)
    return prepare(rows, backbone, READING, validation_fraction, np.random.default_rng(0))


def make_learner(
    backbone,
    hidden_size=None,
    init="normal",
    examples=None,
    lengths=(4, 3),
    background=(),
    **params,
):
    prefix_length, ffn_length = lengths
    return PrefixLearner(
        backbone,
        make_examples(backbone) if examples is None else examples,
        READING,
        prefix_length=prefix_length,
        ffn_length=ffn_length,
        init=init,
        reparameterize=hidden_size,
        slot_rate=1.0,
        background=background,
        background_weight=3.0,
        rng=np.random.default_rng(0),
        **({"dropout": 0.0} | params),
    )


def learn(learner, batch_tokens=10_000):
    rng = np.random.default_rng(0)
    outcome = train({"": learner.examples}, learner, RECIPE, batch_tokens=batch_tokens, rng=rng)
    outcome.reraise(None)
    return outcome.history


def keys_values(learner):
    return learner.model.tensors().keys_values


def make_start(backbone, texts, length, init, seed=0):
    tokens = tokenize(backbone, texts, READING)
    rng = np.random.default_rng(seed)
    return initial_keys_values(backbone, tokens, READING, length, init, rng)


# Positions in attention, slots in feed-forward layers, and the hidden size of the MLP.
KINDS = {
    "both": (4, 3, None),
    "both, mlp": (4, 3, 6),
    "positions": (4, 0, None),
    "positions, mlp": (4, 0, 6),
    "slots": (0, 3, None),
    "slots, mlp": (0, 3, 6),  # there is nothing that the MLP could compute
}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_prefix_and_head_and_nothing_else(backbone, kind):
    *lengths, hidden_size = KINDS[kind]
    learner = make_learner(backbone, hidden_size, lengths=lengths)
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    attributes = {name: sorted(vars(module)) for name, module in backbone.model.named_modules()}
    start = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    assert ("mlp.0.weight" in start) == (hidden_size is not None and lengths[0] > 0)
    assert ("slots.0" in start) == (lengths[1] > 0)
    trained = {id(p) for some, _ in learner.groups for p in some}
    assert trained == {id(p) for p in learner.model.parameters()}
    learn(learner)
    for name, parameter in learner.model.named_parameters():
        assert not parameter.numel() or not torch.equal(parameter, start[name]), name
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert not any(module.training for module in backbone.model.modules())
    after = backbone.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    for name, module in backbone.model.named_modules():
        assert sorted(vars(module)) == attributes[name]


def test_each_layer_and_slot_is_learned(backbone):
    learner = make_learner(backbone)
    start = [tensor.detach().clone() for tensor in learner.model.slots]
    assert not start[1].any() and not start[2].any() and start[0].any()
    learn(learner)
    for name, tensor, before in zip(
        ("keys", "biases", "values"), learner.model.slots, start, strict=True
    ):
        moved = (tensor - before).abs().reshape(3, 3, -1).amax(dim=2)  # (layer, slot)
        assert (moved > 1e-4).all(), name


def test_training_begins_at_the_backbone_with_slots_alone(backbone):
    learner = make_learner(backbone, lengths=(0, 3))
    tokens = learner.examples.tokens
    bare = embed_tokens(backbone, tokens, None, READING, 1000)
    np.testing.assert_array_equal(learner.embed(tokens, 1000), bare)


def test_gradient_of_a_slot_begins_with_its_value(backbone):
    # The head begins at zero and passes no gradient on. So do the values of slots: their keys and
    # biases get a gradient once the values have had one.
    learner = make_learner(backbone, lengths=(0, 3))
    data = learner.examples
    rows = data.train[:8]
    for step in range(3):
        learner.model.zero_grad()
        vectors = learner.encode(data.tokens, data.texts(rows))
        data.losses(learner.model.head(vectors), rows).sum().backward()
        keys, biases, values = (tensor.grad for tensor in learner.model.slots)
        for first, gradient in ((1, values), (2, keys), (2, biases[..., None])):
            assert ((gradient.abs().amax(dim=2) > 0) == (step >= first)).all()  # (layer, slot)
        with torch.no_grad():
            learner.model.slots[2] -= 0.1 * values
            learner.model.head.weight -= 0.1 * learner.model.head.weight.grad


def test_without_slots_the_method_of_the_paper_is_learned(backbone):
    # With slots that stay zero and are not trained, the rest learns the same, bit for bit.
    without = make_learner(backbone, lengths=(4, 0), init="text")
    frozen = make_learner(backbone, lengths=(4, 3), init="text")
    frozen.groups = [([frozen.model.keys_values, *frozen.model.head.parameters()], 1.0)]
    histories = [learn(learner) for learner in (without, frozen)]
    assert histories[0]["train_loss"] == histories[1]["train_loss"]
    assert torch.equal(keys_values(without), keys_values(frozen))
    assert torch.equal(without.model.head.weight, frozen.model.head.weight)
    extension = without._extension()
    assert extension.add_slots is None and without.learned()["slots"] is None


def test_learned_slots_are_those_of_the_model(backbone):
    learner = make_learner(backbone)
    learn(learner)
    numbers, slots = learner.learned()["keys_values"], learner.learned()["slots"]
    assert numbers.shape == (3, 2, 4, 4, 8) and slots.length == 3
    for array, tensor in zip(slots.tensors().values(), learner.model.slots, strict=True):
        np.testing.assert_array_equal(array, tensor.detach().numpy())


def test_each_layer_and_position_of_a_prefix_is_learned(backbone):
    learner = make_learner(backbone, init="text")
    start = keys_values(learner).detach().clone()
    learn(learner)
    moved = (keys_values(learner) - start).abs().amax(dim=(2, 4))  # (layer, 2, position)
    assert (moved > 1e-4).all()


def test_text_start_has_keys_and_values_of_the_backbone(backbone):
    start = make_start(backbone, TEXTS, 5, "text", seed=3)
    tokens = tokenize(backbone, TEXTS, READING)
    with torch.no_grad():
        hidden = []
        for k in range(len(TEXTS)):
            batch = pad_batch(tokens, np.array([k]), backbone.pad_id)
            outputs = backbone.model(torch.from_numpy(batch.ids), output_hidden_states=True)
            hidden.append([h[0] for h in outputs.hidden_states])
        for layer in range(3):
            attention = backbone.model.encoder.layer[layer].attention.self
            for which, project in enumerate((attention.key, attention.value)):
                real = torch.cat([project(rows[layer]) for rows in hidden])  # (token, feature)
                chosen = start[layer, which].transpose(0, 1).flatten(1)  # (position, feature)
                distance = torch.cdist(chosen, real, compute_mode="donot_use_mm_for_euclid_dist")
                assert distance.min(dim=1).values.max() < 1e-4


@pytest.mark.parametrize("init", ["text", "normal"])
def test_starts_repeat_with_the_seed_and_differ_between_seeds(backbone, init):
    one, same, other = (make_start(backbone, TEXTS, 5, init, seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_prefix_can_be_longer_than_there_are_texts(backbone):
    assert make_start(backbone, ["one text"], 12, "text").shape == (3, 2, 4, 12, 8)


def test_mlp_begins_at_its_start_and_folds_to_keys_and_values(backbone):
    learner = make_learner(backbone, hidden_size=6)
    model = learner.model
    assert (keys_values(learner) - model.start).abs().max() < 0.1
    learn(learner)
    assert (keys_values(learner) - model.start).abs().max() > 1e-3
    # The output of the MLP for each position is laid out as (layer, 2, head, head_dim).
    flat = model.mlp(torch.arange(4)).detach()
    folded = (keys_values(learner) - model.start).detach()
    for position in range(4):
        torch.testing.assert_close(folded[:, :, :, position].flatten(), flat[position])
    head = learner.learned()["head"]
    np.testing.assert_array_equal(
        learner.learned()["keys_values"], keys_values(learner).detach().numpy()
    )
    assert head.objective == "classification" and head.classes.tolist() == [0, 1]


def test_learned_head_of_a_regression_predicts_on_the_scale_of_the_labels(backbone):
    texts, numbers = ratings(24)
    rows = read_rows("regression", texts, numbers)
    data = prepare(rows, backbone, READING, None, np.random.default_rng(0))
    learner = make_learner(backbone, examples=data)
    learn(learner)
    head = learner.learned()["head"]
    vectors = learner.embed(data.tokens, 1000)
    standardized = learner.model.head(torch.from_numpy(vectors)).detach().numpy()
    expected = standardized * numbers.std() + numbers.mean()
    np.testing.assert_allclose(head.decision_function(vectors), expected, rtol=1e-5)


def test_small_budgets_give_the_same_training(backbone):
    examples = make_examples(backbone, validation_fraction=0.25)
    learners = [make_learner(backbone, examples=examples) for _ in range(3)]
    assert len(examples.valid) == 4
    histories = [
        learn(learner, batch_tokens)
        for learner, batch_tokens in zip(learners, (10_000, 25, 1), strict=True)
    ]
    expected = keys_values(learners[0])
    for learner, history in zip(learners[1:], histories[1:], strict=True):
        torch.testing.assert_close(keys_values(learner), expected, atol=1e-3, rtol=1e-3)
        for name in ("train_loss", "valid_loss"):
            np.testing.assert_allclose(history[name], histories[0][name], rtol=1e-4)


def test_step_is_repeated_in_parts_when_the_device_runs_out_of_memory(backbone, monkeypatch):
    expected, learner = make_learner(backbone), make_learner(backbone)
    learn(expected)
    real = prefix_learner.encode_batch
    failures = []

    def small_device(backbone, tokens, positions, *args):
        if len(positions) > 1 and len(failures) < 3:
            failures.append(len(positions))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(backbone, tokens, positions, *args)

    monkeypatch.setattr(prefix_learner, "encode_batch", small_device)
    learn(learner)
    assert len(failures) >= 2
    torch.testing.assert_close(keys_values(learner), keys_values(expected), atol=1e-3, rtol=1e-3)


def test_other_errors_of_a_step_are_raised(backbone, monkeypatch):
    def broken(*args):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(prefix_learner, "encode_batch", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        learn(make_learner(backbone))


def test_memory_of_a_failed_run_is_freed_at_once(backbone, monkeypatch):
    def broken(*args):
        raise RuntimeError("lost")

    monkeypatch.setattr(prefix_learner, "encode_batch", broken)
    learner = make_learner(backbone)
    model = weakref.ref(learner.model)
    gc.disable()
    try:
        with contextlib.suppress(RuntimeError):
            learn(learner)
        del learner
        assert model() is None
    finally:
        gc.enable()


def test_global_random_state_does_not_change(backbone):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    learn(make_learner(backbone, hidden_size=6))
    assert torch.equal(torch.rand(3), expected)


def filled_learner(backbone, lengths, dropout):
    """Return a learner whose slots have values and whose head has weights."""
    learner = make_learner(backbone, lengths=lengths, dropout=dropout)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in [*(learner.model.slots or ()), learner.model.head.weight]:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return learner


@pytest.mark.parametrize("lengths", [(4, 0), (0, 3), (4, 3)])
def test_dropout_is_for_steps_alone(backbone, lengths):
    learner, without = (filled_learner(backbone, lengths, rate) for rate in (0.5, 0.0))
    tokens = learner.examples.tokens
    positions = np.arange(4)

    def vectors(some):
        with torch.no_grad():
            return some.encode(tokens, positions).numpy()

    one, other = vectors(learner), vectors(learner)
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one - vectors(without)).max() > 1e-3
    np.testing.assert_array_equal(learner.embed(tokens, 1000), without.embed(tokens, 1000))


def test_penalty_has_no_dropout(backbone):
    background = ["one thing", "another thing"]
    learner, without = (
        make_learner(backbone, background=background, dropout=rate) for rate in (0.5, 0.0)
    )
    with torch.no_grad():
        for some in (learner, without):
            some.model.slots[2].fill_(0.1)
        penalties = [float(some.penalty(np.arange(2))) for some in (learner, learner, without)]
    assert penalties[0] == penalties[1] == penalties[2] > 0


def test_share_that_is_dropped_and_mean_of_what_is_kept(backbone):
    learner = make_learner(backbone, dropout=0.3)
    ones = torch.ones(400, 500)
    dropped = learner._drop(ones)
    assert abs(float((dropped == 0).float().mean()) - 0.3) < 0.01
    assert abs(float(dropped.mean()) - 1) < 0.01
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.7))


def test_threads_that_learn_with_dropout_learn_as_alone(backbone):
    examples = make_examples(backbone)

    def run(_=None):
        learner = make_learner(backbone, examples=examples, dropout=0.3)
        learn(learner)
        return [p.detach().numpy().tobytes() for p in learner.model.parameters()]

    expected = run()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(4))) == [expected] * 4


@pytest.mark.parametrize("kind", ["both", "both, mlp", "slots", "slots, mlp", "dropout"])
def test_run_with_slots_continues_from_its_checkpoint_bit_for_bit(
    backbone, tmp_path, monkeypatch, kind
):
    monkeypatch.setattr(checkpoints, "INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "_MAX_SHARE_OF_TIME", float("inf"))
    *lengths, hidden_size = KINDS[kind.replace("dropout", "both")]
    params = {"dropout": 0.3} if kind == "dropout" else {}
    examples = make_examples(backbone, validation_fraction=0.25)

    def run(stopped_at=None):
        learner = make_learner(backbone, hidden_size, examples=examples, lengths=lengths, **params)
        real, n_steps = learner.encode, []

        def encode(tokens, positions):
            n_steps.append(1)
            if len(n_steps) == stopped_at:
                raise RuntimeError("the device is lost")
            return real(tokens, positions)

        learner.encode = encode
        outcome = train(
            {"": examples}, learner, RECIPE, batch_tokens=10_000, rng=np.random.default_rng(0),
            checkpoint_dir=tmp_path / str(stopped_at and "run"),
        )  # fmt: skip
        numbers = [p.detach().numpy().tobytes() for p in learner.model.parameters()]
        history = {name: some for name, some in outcome.history.items() if name != "seconds"}
        return numbers, history, len(n_steps), outcome.error

    expected = run()
    assert expected[2:] == (RECIPE.max_steps, None)
    for _ in range(2):
        assert isinstance(run(stopped_at=4)[3], RuntimeError)  # three steps, then three more
    continued = run(stopped_at=99)
    assert continued[:2] == expected[:2]
    assert continued[2] == RECIPE.max_steps - 6
