"""Slots in feed-forward layers against plain algebra, in every family, and what never changes."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
import torch
from conftest import DECODERS, FAMILIES, PAIRS, RELATIVE, TEXTS, make_backbone
from reference import added_by_slots, bert_hidden, gelu, naive_model
from transformers import AutoModel

from prefixembed import PrefixBank, load_backbone
from prefixembed._embed.batches import pad_batch
from prefixembed._embed.combination import prefix_tensors
from prefixembed._embed.tokens import tokenize
from prefixembed._model.extension import combine as combine_tensors
from prefixembed._model.hook import ATTENTION, _current_call, extended
from prefixembed._model.slots import (
    AddedSlots,
    FeedForwardOutput,
    MeasuredSlots,
    SlotTensors,
    combined_slots,
)
from prefixembed.reading import Reading
from prefixembed.slots import Slots

CPU = {"dtype": "float32", "device": "cpu"}
READING = Reading("mean", 64, pairs="joint")
LENGTHS = [(1, 0), (0, 4), (3, 2)]  # positions and slots of each prefix
WEIGHTS = [1.0, 0.5, 3.0]
COMBINE = pytest.mark.parametrize("combine", ["concat", "mean"])
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def mixed(random_prefix):
    """Return a function that makes prefixes with positions, with slots, and with both."""

    def make(folder, **changes):
        return [
            random_prefix(folder, length, seed=seed, ffn_length=n_slots, **changes)
            for seed, (length, n_slots) in enumerate(LENGTHS)
        ]

    return make


def bank_of(prefixes, **params):
    prefixes = {f"p{k}": prefix for k, prefix in enumerate(prefixes)}
    return PrefixBank(prefixes, **{**CPU, "on_truncate": "ignore", **params})


def extension_of(backbone, prefixes, weights=None, combine="concat"):
    tensors = [prefix_tensors(prefix, backbone) for prefix in prefixes]
    weights = weights or [1.0] * len(prefixes)
    return combine_tensors(tensors, weights, combine, backbone.activation, backbone.dtype)


@torch.no_grad()
def hidden_of(backbone, texts, extension=None):
    tokens = tokenize(backbone, texts, READING)
    batch = pad_batch(tokens, np.arange(len(texts)), backbone.pad_id)
    hidden, _ = backbone.forward(batch, extension, READING)
    return tokens, hidden.float().numpy()


def without_slots(prefix):
    return replace(prefix, slots=None)


def with_silent_slots(prefix):
    """Return a prefix whose slots add zero."""
    return replace(prefix, slots=replace(prefix.slots, values=np.zeros_like(prefix.slots.values)))


@COMBINE
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], WEIGHTS])
@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_bert_equals_plain_algebra(tiny, mixed, combine, weights, texts):
    prefixes = mixed(tiny())
    backbone = load_backbone(tiny(), **CPU)
    tokens, hidden = hidden_of(backbone, texts, extension_of(backbone, prefixes, weights, combine))
    for k, (ids, types) in enumerate(zip(tokens.ids, tokens.type_ids, strict=True)):
        expected = bert_hidden(backbone.model, ids, types, prefixes, weights, combine)
        np.testing.assert_allclose(hidden[k, : len(ids)], expected, atol=2e-5)


@EACH_FAMILY
@COMBINE
def test_each_family_equals_naive_slots(tiny, mixed, family, combine):
    prefixes = mixed(tiny(family))
    backbone = load_backbone(tiny(family), **CPU)
    for weights in ([1.0, 1.0, 1.0], WEIGHTS):
        extension = extension_of(backbone, prefixes, weights, combine)
        tokens, hidden = hidden_of(backbone, TEXTS, extension)
        naive = naive_model(tiny(family), prefixes, weights, combine)
        for k, ids in enumerate(tokens.ids):
            np.testing.assert_allclose(hidden[k, : len(ids)], naive(ids), atol=2e-4)


def test_minilm_equals_plain_algebra(minilm, random_prefix):
    prefixes = [random_prefix(minilm, k, seed=k, scale=0.5, ffn_length=16) for k in (0, 5)]
    backbone = load_backbone(minilm, **CPU)
    texts = ["A fine film.", "Not one I would see again, all in all."]
    tokens, hidden = hidden_of(backbone, texts, extension_of(backbone, prefixes, [0.5, 1.0]))
    for k, (ids, types) in enumerate(zip(tokens.ids, tokens.type_ids, strict=True)):
        expected = bert_hidden(backbone.model, ids, types, prefixes, [0.5, 1.0])
        np.testing.assert_allclose(hidden[k, : len(ids)], expected, atol=1e-4)


@EACH_FAMILY
def test_a_backbone_without_extension_is_that_of_transformers(tiny, family):
    # Hooks that do nothing change no bit.
    backbone = load_backbone(tiny(family), **CPU)
    attention = "eager" if family in RELATIVE else ATTENTION
    plain = AutoModel.from_pretrained(
        tiny(family), attn_implementation=attention, dtype=torch.float32
    ).eval()
    tokens = tokenize(backbone, TEXTS, READING)
    batch = pad_batch(tokens, np.arange(len(TEXTS)), backbone.pad_id)
    with torch.no_grad():
        hidden, _ = backbone.forward(batch, None, READING)
        expected = plain(
            input_ids=torch.from_numpy(batch.ids), attention_mask=torch.from_numpy(batch.mask)
        ).last_hidden_state
    np.testing.assert_array_equal(hidden.numpy(), expected.numpy())


@EACH_FAMILY
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_slots_whose_values_are_zero_change_no_bit(tiny, random_prefix, family, dtype):
    only_slots, both = (
        with_silent_slots(random_prefix(tiny(family), length, ffn_length=3)) for length in (0, 4)
    )
    bare = PrefixBank({}, backbone=tiny(family), pooling="mean", max_length=64, **CPU)
    bare.set_params(dtype=dtype)
    silent = bank_of([only_slots], dtype=dtype)
    np.testing.assert_array_equal(silent.transform(TEXTS), bare.transform(TEXTS))
    silent, plain = bank_of([both], dtype=dtype), bank_of([without_slots(both)], dtype=dtype)
    np.testing.assert_array_equal(silent.transform(TEXTS), plain.transform(TEXTS))


@EACH_FAMILY
def test_neither_padding_nor_the_split_into_batches_affects_vectors(tiny, mixed, family):
    bank = bank_of(mixed(tiny(family)), weights=0.7)
    together = bank.transform(TEXTS)
    alone = [bank.transform([text])[0] for text in TEXTS]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    small = bank.set_params(batch_tokens=20).transform(TEXTS)
    np.testing.assert_allclose(small, together, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "llama", "deberta-v2"])
@COMBINE
def test_order_of_prefixes_changes_no_bit(tiny, mixed, family, combine):
    # Two of the prefixes are equal, with different weights.
    prefixes = mixed(tiny(family))
    weighted = list(zip("abcd", [*prefixes, prefixes[2]], [*WEIGHTS, 0.2], strict=True))
    vectors = []
    for order in itertools.permutations(weighted):
        weights = {name: weight for name, _, weight in order}
        bank = PrefixBank(
            {name: prefix for name, prefix, _ in order}, weights=weights, combine=combine, **CPU
        )
        vectors.append(bank.transform(TEXTS[:3]))
    assert all(np.array_equal(other, vectors[0]) for other in vectors)


@pytest.mark.parametrize("family", ["albert", "bert", "qwen3"])
def test_threads_in_the_middle_of_a_layer_do_not_affect_each_other(tiny, mixed, family):
    backbone = load_backbone(tiny(family), **CPU)
    one, two, three = mixed(tiny(family))
    banks = [
        bank_of([two]),
        bank_of([three, one], combine="mean"),
        bank_of([two, three], weights=0.3),
        PrefixBank({}, backbone=tiny(family), max_length=64, **CPU),
    ]
    texts = TEXTS[1:3]
    expected = [bank.transform(texts) for bank in banks]
    # All threads are inside the same feed-forward layer before any of them leaves it.
    barrier = Barrier(len(banks), timeout=60)
    name = {"albert": "ffn", "bert": "intermediate.dense", "qwen3": "mlp.gate_proj"}[family]

    def wait(*args):
        barrier.wait()

    hooks = [
        module.register_forward_hook(wait)
        for full_name, module in backbone.model.named_modules()
        if full_name.endswith(name)
    ]
    try:
        with ThreadPoolExecutor(len(banks)) as threads:
            together = list(threads.map(lambda bank: bank.transform(texts), banks))
    finally:
        for hook in hooks:
            hook.remove()
    assert len(hooks) > 1
    for vectors, alone in zip(together, expected, strict=True):
        np.testing.assert_array_equal(vectors, alone)


def traces(model):
    """Return everything that a call could leave on a model."""
    found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        found[f"{name} requires_grad, grad"] = (parameter.requires_grad, parameter.grad)
    for name, module in model.named_modules():
        found[f"{name} attributes"] = sorted(vars(module))
        found[f"{name} training"] = module.training
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        found[f"{name} hooks"] = [list(some.values()) for some in hooks]
        found[f"{name} submodules"] = {key: id(value) for key, value in module._modules.items()}
    return found


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key]
        for key, value in one.items()
    )


@EACH_FAMILY
def test_calls_leave_nothing_on_the_shared_model(tiny, mixed, family, monkeypatch):
    backbone = load_backbone(tiny(family), **CPU)
    before = traces(backbone.model)
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    bank = bank_of(mixed(tiny(family)))
    bare = PrefixBank({}, backbone=tiny(family), max_length=64, **CPU)
    expected = bank.transform(TEXTS), bare.transform(TEXTS)
    assert same(traces(backbone.model), before)

    def fail(add, layer):
        if layer.layer == 1:
            raise RuntimeError("lost")
        return layer.output

    with monkeypatch.context() as patch:
        patch.setattr(AddedSlots, "__call__", fail)
        with pytest.raises(RuntimeError, match="lost"):
            bank.transform(TEXTS)
    assert _current_call.get() is None
    assert same(traces(backbone.model), before)
    np.testing.assert_array_equal(bare.transform(TEXTS), expected[1])
    np.testing.assert_array_equal(bank.transform(TEXTS), expected[0])


@pytest.mark.parametrize("family", ["albert", "bert", "modernbert", *RELATIVE, *DECODERS])
@COMBINE
def test_bfloat16_is_close_to_float32(tiny, mixed, family, combine):
    prefixes = mixed(tiny(family), scale=0.5)
    exact = bank_of(prefixes, combine=combine).transform(TEXTS)
    rough = bank_of(prefixes, combine=combine, dtype="bfloat16").transform(TEXTS)
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


@EACH_FAMILY
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_each_use_of_a_layer_has_its_own_slots(tiny, random_prefix, family, layer):
    # ALBERT uses the first of its two layers twice.
    backbone = load_backbone(tiny(family), **CPU)
    prefix = random_prefix(tiny(family), 0, ffn_length=2)
    values = np.zeros_like(prefix.slots.values)
    values[layer] = prefix.slots.values[layer]
    prefix = replace(prefix, slots=replace(prefix.slots, values=values))
    ids = torch.tensor([[0, 9, 8, 7, 2]])

    def hidden_states(extension):
        with torch.no_grad(), extended(extension):
            output = backbone.model(ids, output_hidden_states=True)
        return output.hidden_states

    bare, changed = hidden_states(None), hidden_states(extension_of(backbone, [prefix]))
    assert len(bare) == 4
    equal = [torch.equal(one, other) for one, other in zip(bare, changed, strict=True)]
    assert equal == [k <= layer for k in range(4)]


@pytest.mark.parametrize("family", ["albert", "bert", "distilbert", "electra"])
def test_feed_forward_layers_in_chunks_give_equal_vectors(tiny, mixed, family, tmp_path):
    chunked = make_backbone(tmp_path, family, chunk_size_feed_forward=3)
    model = AutoModel.from_pretrained(chunked)
    assert any(getattr(m, "chunk_size_feed_forward", 0) == 3 for m in model.modules())
    # Another fingerprint means other digests, and these decide the order of prefixes.
    vectors = [bank_of(mixed(folder)).transform(TEXTS) for folder in (tiny(family), chunked)]
    np.testing.assert_allclose(*vectors, atol=1e-5)


def test_slots_of_prefixes_add_up():
    rng = np.random.default_rng(0)
    inputs, output = torch.randn(2, 2, 5, 6).unbind()
    parts, weights = [], [0.5, 2.0]
    expected = output.double().numpy()
    for length, weight in zip((1, 3), weights, strict=True):
        arrays = [rng.standard_normal(shape) for shape in ((2, length, 6), (2, length))]
        slots = Slots(*arrays, rng.standard_normal((2, length, 6)))
        parts.append(SlotTensors(*(torch.tensor(a) for a in slots.tensors().values())))
        hidden = gelu(inputs.double().numpy() @ slots.keys[1].T + slots.biases[1])
        expected = expected + weight * hidden @ slots.values[1]
    gelu_of_torch = torch.nn.functional.gelu
    added = AddedSlots(combined_slots(parts, weights, torch.float32), gelu_of_torch)
    found = added(FeedForwardOutput(1, inputs, output))
    assert found.shape == output.shape
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert combined_slots([], [], torch.float32) is None


def test_mean_divides_slots_by_the_number_of_prefixes(tiny, random_prefix):
    # A prefix without slots counts.
    plain, one, other = (
        random_prefix(tiny(), length, seed=length, ffn_length=n_slots)
        for length, n_slots in ((1, 0), (2, 3), (3, 2))
    )
    backbone = load_backbone(tiny(), **CPU)
    x = torch.randn(1, 4, 32)
    layer = FeedForwardOutput(2, x, torch.zeros_like(x))
    prefixes, weights = [plain, one, other], [5.0, 0.5, 2.0]
    for combine in ("concat", "mean"):
        found = extension_of(backbone, prefixes, weights, combine).add_slots(layer)
        expected = added_by_slots(x.double().numpy(), prefixes, weights, combine, 2)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_nothing_is_added_without_slots_or_without_positions(tiny, mixed):
    backbone = load_backbone(tiny(), **CPU)
    positions, slots, both = mixed(tiny())
    assert extension_of(backbone, []) is None
    for prefix, attends, adds in ((positions, True, False), (slots, False, True), (both, 1, 1)):
        extension = extension_of(backbone, [prefix])
        assert (extension.attend is not None, extension.add_slots is not None) == (attends, adds)


def test_measured_slots_add_the_same_and_measure_each_layer():
    inputs, output = torch.randn(2, 2, 5, 6).unbind()
    slots = SlotTensors(torch.randn(3, 2, 6), torch.randn(3, 2), torch.randn(3, 2, 6))
    add = AddedSlots(slots, torch.relu)
    measured = MeasuredSlots(add, None)
    for layer in range(3):
        expected = add(FeedForwardOutput(layer, inputs, output))
        torch.testing.assert_close(measured(FeedForwardOutput(layer, inputs, output)), expected)
        share = (expected - output).square().mean() / inputs.square().mean()
        torch.testing.assert_close(measured.effects[layer], share)
    assert len(measured.effects) == 3
