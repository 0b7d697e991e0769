"""The active prefixes of a bank: their selection, reading, backbone, identity and tensors."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from prefixembed import Prefix, load_backbone
from prefixembed._embed.combination import (
    agree,
    check_selection,
    combine_prefixes,
    prefix_tensors,
)
from prefixembed._model.attention import ConcatAttention, MeanAttention
from prefixembed._model.slots import FeedForwardOutput
from prefixembed.reading import Reading
from prefixembed.slots import Slots


def make_prefix(seed=0, reading=None, **changes):
    """Return a prefix of a backbone that does not exist: nothing here may load one."""
    rng = np.random.default_rng(seed)
    fields = {
        "keys_values": rng.standard_normal((2, 2, 3, 4, 8)), "backbone": "nowhere",
        "fingerprint": "f" * 64, "n_features": 24,
        "reading": Reading(**{"pooling": "mean", "max_length": 64, **(reading or {})}),
    }  # fmt: skip
    return Prefix(**(fields | changes))


def combined(prefixes, active=None, weights=None, combine="concat", backbone=None, **overrides):
    revision = overrides.pop("revision", None)
    return combine_prefixes(prefixes, active, weights, combine, backbone, revision, overrides)


THREE = {name: make_prefix(seed) for seed, name in enumerate("abc")}


@pytest.mark.parametrize(
    ("active", "weights", "expected"),
    [
        (None, None, {"a": 1, "b": 1, "c": 1}),
        (["c", "a"], None, {"c": 1, "a": 1}),
        ((), None, {}),
        (None, 0.5, {"a": 0.5, "b": 0.5, "c": 0.5}),
        (["b"], np.float32(2), {"b": 2}),
        # A name without a weight has weight 1, and inactive names may have one.
        (["a", "b"], {"b": 0.25, "c": 9}, {"a": 1, "b": 0.25}),
    ],
)
def test_selection_has_the_names_in_order_and_their_weights(active, weights, expected):
    names, found = check_selection(THREE, active, weights, None)
    assert list(zip(names, found, strict=True)) == list(expected.items())
    assert all(type(weight) is float for weight in found)


def test_combination_holds_the_selected_prefixes():
    found = combined(THREE, ["c", "a"], {"a": 2.0}, "mean")
    assert (found.names, found.weights, found.combine) == (("c", "a"), (1.0, 2.0), "mean")
    assert found.prefixes == (THREE["c"], THREE["a"])


@pytest.mark.parametrize(
    ("active", "weights", "message"),
    [
        (["a", "z"], None, "active has 'z', which is not one of"),
        ([3], None, "active has 3"),
        (["a", "b", "a"], None, "active has a name twice"),
        (None, {"z": 1.0}, "weights has 'z', which is not one of"),
        (["a"], {"b": 0}, r"weights\['b'\] must be a number above 0, got 0"),
        (None, {"a": True}, r"weights\['a'\] must be a number above 0, got True"),
        (None, {"a": "1"}, r"weights\['a'\] must be a number above 0, got '1'"),
        (None, {"a": float("inf")}, r"weights\['a'\] .* got inf"),
        (None, {"a": float("nan")}, r"weights\['a'\] .* got nan"),
    ],
)
def test_wrong_selections_are_refused_by_name(active, weights, message):
    with pytest.raises(ValueError, match=message):
        check_selection(THREE, active, weights, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "e" * 64}, r"fingerprint .*'ffffffffffff' \(backbone 'nowhere'\) of 'a'"),
        ({"keys_values": np.zeros((2, 2, 4, 4, 6))}, r"layout .*\(2, 4, 6\) \(layers, heads, head"),
        ({"n_features": 32}, "n_features differs: 24 of 'a' and 32 of 'd'"),
    ],
)
def test_prefixes_of_different_backbones_are_refused_even_if_inactive(changes, message):
    prefixes = {**THREE, "d": make_prefix(3, **changes)}
    for active in (None, ["a"], []):
        with pytest.raises(ValueError, match=f"'a' and 'd' cannot be combined, their {message}"):
            check_selection(prefixes, active, None, "elsewhere")


def test_lengths_and_slots_may_differ():
    slots = Slots(np.ones((2, 3, 24)), np.ones((2, 3)), np.ones((2, 3, 24)))
    short = make_prefix(3, keys_values=np.zeros((2, 2, 3, 1, 8)))
    none = make_prefix(4, keys_values=np.zeros((2, 2, 3, 0, 8)), slots=slots)
    assert len(combined({**THREE, "d": short, "e": none}).prefixes) == 5


def test_a_bank_without_prefixes_must_name_its_backbone():
    with pytest.raises(ValueError, match="backbone must be given if no prefix names one"):
        check_selection({}, None, None, None)


def test_the_backbone_is_that_of_the_first_active_prefix_unless_it_is_given():
    prefixes = {
        "a": make_prefix(0, backbone="old", revision="r0"),
        "b": make_prefix(1, backbone="new", revision="r1"),
    }
    found = combined(prefixes, ["b"])
    assert (found.backbone, found.revision) == ("new", "r1")
    found = combined(prefixes, ["b"], revision="mine")
    assert (found.backbone, found.revision) == ("new", "mine")
    found = combined(prefixes, backbone="moved")
    assert (found.backbone, found.revision, found.fingerprint) == ("moved", None, "f" * 64)


def test_without_an_active_prefix_the_backbone_decides(tiny, random_prefix):
    prefix = random_prefix(tiny(), pooling="cls", max_length=16)
    found = combined({"a": prefix}, active=[])
    own = load_backbone(tiny(), dtype="float32", device="cpu")
    assert found.prefixes == () and found.n_features == own.n_features
    assert found.reading == own.reading and found.backbone == tiny()
    # An inactive prefix still knows which backbone it was.
    assert found.fingerprint == own.fingerprint
    assert combined({}, backbone=tiny()).fingerprint is None
    assert found.extension(own) is None


def test_the_longest_limit_of_the_active_prefixes_is_used():
    prefixes = {
        name: make_prefix(k, {"max_length": length})
        for k, (name, length) in enumerate({"a": 16, "b": 48, "c": 99}.items())
    }
    assert combined(prefixes, ["a", "b"]).reading.max_length == 48
    assert combined(prefixes, ["a", "b"], max_length=20).reading.max_length == 20


@pytest.mark.parametrize(
    ("field", "value"),
    [("pooling", "cls"), ("pooled_layers", 2), ("prompt", "x "), ("first_position", 3)],
)
def test_active_prefixes_must_agree_on_what_is_not_overridden(field, value):
    prefixes = {"a": make_prefix(), "b": make_prefix(1), "c": make_prefix(2, {field: value})}
    with pytest.raises(ValueError, match=f"'a' and 'c' cannot be combined, their {field} differs"):
        combined(prefixes)
    assert combined(prefixes, ["a", "b"]).reading == prefixes["a"].reading
    assert getattr(combined(prefixes, **{field: value}).reading, field) == value


def test_prefixes_of_single_texts_follow_those_of_pairs():
    single, joint, apart = (
        make_prefix(k, {"pairs": pairs}) for k, pairs in enumerate((None, "joint", "apart"))
    )
    for pairs, prefix in (("joint", joint), ("apart", apart)):
        found = combined({"single": single, "pairs": prefix})
        assert found.reading.pairs == found.pairs_reading().pairs == pairs
    # Single texts can be read with both, and pairs as the bank says.
    both = {"joint": joint, "apart": apart, "single": single}
    assert combined(both).reading.pairs is None
    with pytest.raises(ValueError, match="'joint' was learned with 'joint', 'apart' was learned"):
        combined(both).pairs_reading()
    assert combined(both, ["apart", "single"]).pairs_reading().pairs == "apart"
    assert combined(both, pairs="joint").pairs_reading().pairs == "joint"


def test_pairs_that_no_prefix_has_seen_are_read_as_the_backbone_reads_them(tiny, random_prefix):
    prefix = random_prefix(tiny())
    assert combined({"a": prefix}).reading.pairs is None
    assert combined({"a": prefix}).pairs_reading().pairs == "joint"


def test_backbones_agree_by_fingerprint_or_else_by_name():
    known, moved = ("f", ("here", None), ("d",)), ("f", ("there", None), ("d",))
    other, unknown = ("g", ("here", None), ("d",)), (None, ("here", None), ("d",))
    assert agree(known, moved)
    assert not agree(known, other)
    # One fingerprint is not known before the backbone is loaded: names do not matter then either.
    assert agree(known, unknown) and agree(moved, unknown)
    assert agree(unknown, unknown)
    assert not agree(unknown, (None, ("there", None), ("d",)))
    assert not agree(unknown, (None, ("here", "v2"), ("d",)))
    assert not agree(known, ("f", ("here", None), ("e",)))


def test_identity_is_that_of_the_vectors():
    base = combined({"a": THREE["a"], "b": THREE["b"]}, combine="mean")
    same = [
        combined({"b": THREE["b"], "x": THREE["a"]}, combine="mean"),
        combined(THREE, ["b", "a"], combine="mean"),
        combined({"a": THREE["a"], "b": THREE["b"]}, combine="mean", backbone="moved"),
    ]
    for one in same:
        for of_pairs in (False, True):
            assert agree(one.identity(of_pairs), base.identity(of_pairs))
    others = [
        combined({"a": THREE["a"], "b": THREE["b"]}),
        combined({"a": THREE["a"]}, combine="mean"),
        combined({"a": THREE["a"], "b": THREE["b"]}, weights=0.5, combine="mean"),
        combined({"a": THREE["a"], "b": THREE["b"]}, combine="mean", pooling="cls"),
    ]
    for one in others:
        assert not agree(one.identity(False), base.identity(False))
    # How pairs are read decides the vectors of pairs alone, and the output decides all.
    apart = combined({"a": THREE["a"], "b": THREE["b"]}, combine="mean", pairs="apart")
    assert agree(apart.identity(False), base.identity(False))
    assert not agree(apart.identity(True), base.identity(True))
    assert not agree(base.identity(False, "words"), base.identity(False, "texts"))


def test_another_backbone_than_that_of_the_prefixes_is_refused(tiny, random_prefix):
    prefix = random_prefix(tiny())
    with pytest.raises(ValueError, match="prefix 'a' was learned on backbone"):
        combined({"a": prefix}, backbone=tiny("electra")).load_backbone("float32", "cpu")
    with pytest.raises(ValueError, match="the prefixes were learned on a backbone with finger"):
        combined({"a": prefix}, [], backbone=tiny("electra")).load_backbone("float32", "cpu")
    with pytest.raises(ValueError, match="max_length"):
        combined({"a": prefix}, max_length=99).load_backbone("float32", "cpu")
    assert combined({"a": prefix}).load_backbone("float32", "cpu") is load_backbone(
        tiny(), dtype="float32", device="cpu"
    )


@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_extension_does_not_depend_on_the_order_of_prefixes(tiny, random_prefix, combine):
    # The first two are equal, so that only their weights can order them.
    first = random_prefix(tiny(), 2, 0, ffn_length=1)
    weighted = {
        "a": (first, 0.5), "b": (first, 2.0), "c": (random_prefix(tiny(), 0, 1, ffn_length=3), 1.0)
    }  # fmt: skip
    backbone = load_backbone(tiny(), dtype="float32", device="cpu")
    x = torch.randn(2, 3, 32)
    found = []
    for order in permutations("abc"):
        prefixes = {name: weighted[name][0] for name in order}
        weights = {name: weighted[name][1] for name in order}
        extension = combined(prefixes, None, weights, combine).extension(backbone)
        kind = {"concat": ConcatAttention, "mean": MeanAttention}[combine]
        assert isinstance(extension.attend, kind)
        added = extension.add_slots(FeedForwardOutput(1, x, x))
        found.append((extension.attend.keys_values, extension.attend.log_weights, added))
    for tensors in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(tensors, found[0], strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_slots_compute_in_the_dtype_of_the_backbone(tiny, random_prefix, dtype):
    # Attention stays in float32 on a CPU.
    backbone = load_backbone(tiny(), dtype=dtype, device="cpu")
    extension = combined({"a": random_prefix(tiny(), 2, ffn_length=3)}).extension(backbone)
    assert extension.attend.keys_values.dtype == torch.float32
    assert {tensor.dtype for tensor in extension.add_slots.slots} == {getattr(torch, dtype)}
    gelu = extension.add_slots.activation(torch.tensor([-1.0]))
    assert float(gelu) == pytest.approx(-0.1587, abs=1e-4)


def test_weights_scale_slots_before_they_are_rounded(tiny, random_prefix):
    prefix = random_prefix(tiny(), 2, ffn_length=3)
    backbone = load_backbone(tiny(), dtype="bfloat16", device="cpu")
    slots = combined({"a": prefix}, weights=0.3).extension(backbone).add_slots.slots
    exact = torch.tensor(prefix.slots.values) * 0.3
    assert torch.equal(slots.values, exact.to(torch.bfloat16))
    assert torch.equal(slots.keys, torch.tensor(prefix.slots.keys).to(torch.bfloat16))


def test_tensors_of_a_prefix_are_copies(tiny, random_prefix):
    prefix = random_prefix(tiny(), 2, ffn_length=3)
    backbone = load_backbone(tiny(), dtype="float32", device="cpu")
    tensors = prefix_tensors(prefix, backbone)
    for tensor in (tensors.keys_values, *tensors.slots):
        tensor.zero_()
    assert prefix.keys_values.any() and all(a.any() for a in prefix.slots.tensors().values())
    assert prefix_tensors(replace(prefix, slots=None), backbone).slots is None
