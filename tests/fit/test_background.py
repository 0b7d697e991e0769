"""Background text, and the penalty on what slots do to it."""

import numpy as np
import pytest
import torch
from helpers import make_encoder, reviews
from test_prefix_learner import READING, learn, make_learner

from prefixembed import Prefix, PrefixEncoder, load_backbone
from prefixembed._fit.background import background_texts, resolve_background
from prefixembed._fit.learning import _Supervised
from prefixembed._fit.optimization import Step
from prefixembed.slots import Slots

BACKGROUND = ["it rained all day", "a", "who sold the boat to them", "nine days later"]


@pytest.fixture
def backbone(tiny):
    return load_backbone(tiny(), dtype="float32", device="cpu")


def test_default_background_repeats_and_is_varied():
    texts = background_texts()
    assert texts == background_texts() != background_texts(seed=1)
    assert len(set(texts)) > 0.8 * len(texts) == 0.8 * 2400
    assert all(text[0].isupper() and text[-1] in ".?" and "  " not in text for text in texts)
    assert 0.2 < np.mean([text.endswith("?") for text in texts]) < 0.4
    assert len({text.split()[1] for text in texts}) > 100


@pytest.mark.parametrize(
    ("background", "ffn_length", "message"),
    [
        ([], 2, "background must hold one text or more, got none"),
        ([("a", "b")], 2, "background must hold one text or more, got pairs of texts"),
        ([3], 2, r"background\[0\] must be a str, got 3 of type int"),
        (["a"], 0, "background is for prefixes with slots, got ffn_length=0"),
    ],
)
def test_wrong_background_is_refused_before_a_backbone_is_loaded(background, ffn_length, message):
    with pytest.raises(ValueError, match=message):
        resolve_background(background, 1.0, ffn_length)
    lengths = {"prefix_length": 5, "ffn_length": ffn_length}
    encoder = PrefixEncoder("nowhere", background=background, **lengths)
    with pytest.raises(ValueError, match=message):
        encoder.fit(["a", "b"], [0, 1])


def test_none_and_weight_zero_are_no_penalty(tiny):
    texts, y = reviews(24)
    fits = [
        make_encoder(tiny(), max_steps=4, ffn_length=2, early_stopping=False, **params).fit(
            texts, y
        )
        for params in (
            {"background": None},
            {"background": BACKGROUND, "background_weight": 0},
            {"background": BACKGROUND},
        )
    ]
    assert fits[0].prefix_ == fits[1].prefix_ != fits[2].prefix_
    assert resolve_background("auto", 1.0, 0) == resolve_background(None, 1.0, 2) == []


def naive_penalty(backbone, slots, texts, weight):
    """Return the penalty text by text, from the inputs of the feed-forward layers."""
    added, size = np.zeros(3), np.zeros(3)
    inputs = {}
    hooks = [
        layer.intermediate.register_forward_pre_hook(
            lambda module, args, k=k: inputs.__setitem__(k, args[0][0].double().numpy())
        )
        for k, layer in enumerate(backbone.model.encoder.layer)
    ]
    bank = Prefix(
        np.zeros((3, 2, 4, 0, 8)), backbone.name, backbone.fingerprint, 32, READING, slots=slots
    )
    for text in texts:
        PrefixEncoder.from_prefix(bank, dtype="float32", device="cpu", cache=None).transform([text])
        for k in range(3):
            hidden = inputs[k] @ slots.keys[k].T.astype(float) + slots.biases[k]
            hidden = torch.nn.functional.gelu(torch.from_numpy(hidden)).numpy()
            added[k] += ((hidden @ slots.values[k]) ** 2).sum()
            size[k] += (inputs[k] ** 2).sum()
    for hook in hooks:
        hook.remove()
    return weight * (added / size).mean()


def test_penalty_equals_a_naive_one_whatever_is_padded(backbone):
    learner = make_learner(backbone, lengths=(0, 3), background=BACKGROUND)
    with torch.no_grad():
        for tensor in learner.model.slots:
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    slots = learner.learned()["slots"]
    assert isinstance(slots, Slots)
    for rows in ([0, 1, 2, 3], [1], [2, 0]):
        with torch.no_grad():
            found = float(learner.penalty(np.array(rows)))
        expected = naive_penalty(backbone, slots, [BACKGROUND[k] for k in rows], 3.0)
        assert found == pytest.approx(expected, rel=1e-4)


def test_penalty_makes_slots_quieter_and_leaves_the_recorded_loss_alone(backbone):
    effects, histories = [], []
    for weight in (0.0, 300.0):
        learner = make_learner(backbone, background=BACKGROUND)
        learner.background_weight = weight
        histories.append(learn(learner))
        learner.background_weight = 1.0
        with torch.no_grad():
            effects.append(float(learner.penalty(np.arange(4))))
    assert 0 < effects[1] < 0.5 * effects[0]
    # The first steps start at chance whatever the penalty is.
    assert histories[1]["train_loss"][0] < 2 * histories[0]["train_loss"][0]


@pytest.mark.parametrize("n_failures", [1, 2])
def test_penalty_reads_fewer_texts_when_the_device_runs_out_of_memory(backbone, n_failures):
    def gradients(step, failures=0):
        learner = make_learner(backbone, lengths=(0, 3), background=BACKGROUND)
        with torch.no_grad():
            learner.model.slots[2].fill_(0.1)
        real, read = learner.penalty, []

        def penalty(background):
            read.append(len(background))
            if len(read) > failures:
                return real(background)
            return SmallDevice.apply(real(background))

        learner.penalty = penalty
        _Supervised({"": learner.examples}, learner, 4, 1.0, 10_000).backward(step)
        return [p.grad for p in learner.model.parameters() if p.grad is not None], read

    rows = np.arange(4)
    found, read = gradients(Step(0, rows, 4.0, np.arange(4)), n_failures)
    assert read == [4, 2, 1][: n_failures + 1]
    expected, _ = gradients(Step(0, rows, 4.0, np.arange(read[-1])))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


class SmallDevice(torch.autograd.Function):
    """Return a tensor, and run out of memory in the backward pass."""

    @staticmethod
    def forward(ctx, penalty):
        return penalty.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_paper_preset_has_no_slots_and_no_background():
    encoder = PrefixEncoder.preset("paper", "some/backbone", max_length=64)
    params = encoder.get_params()
    assert (params["ffn_length"], params["prefix_length"], params["background"]) == (0, 5, None)
    assert (params["backbone"], params["max_length"], params["pairs"]) == (
        "some/backbone",
        64,
        "joint",
    )
    assert PrefixEncoder.preset("paper", init="text").init == "text"
    with pytest.raises(ValueError, match=r"name must be one of \['paper'\], got 'best'"):
        PrefixEncoder.preset("best")
