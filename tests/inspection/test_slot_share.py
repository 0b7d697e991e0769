"""slot_share: what slots of each prefix add to feed-forward layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import added_by_slots

from prefixembed import PrefixBank, load_backbone
from prefixembed._model.hook import extended
from prefixembed.inspection import slot_share

CPU = {"dtype": "float32", "device": "cpu", "cache": None}
TEXTS = [f"{word} {k}" for k in range(12) for word in ("joy", "bore")]
PAIRS = list(zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True))
WEIGHTS = {"both": 0.5, "slots": 2.0, "positions": 1.0}


@pytest.fixture
def bank(tiny, random_prefix):
    """Return a bank of a prefix with positions and slots, one with slots and one with positions."""
    prefixes = {
        "both": random_prefix(tiny(), length=2, ffn_length=3, seed=0),
        "slots": random_prefix(tiny(), length=0, ffn_length=4, seed=1),
        "positions": random_prefix(tiny(), length=3, seed=2),
    }
    return PrefixBank(prefixes, **CPU)


@pytest.mark.parametrize("combine", ["concat", "mean"])
@pytest.mark.parametrize("X", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_slot_share_agrees_with_plain_algebra(bank, combine, X):
    # The expected shares come from slots of the test's own, text by text.
    bank.set_params(combine=combine, weights=WEIGHTS)
    result = slot_share(bank, X)
    assert result.names == list(WEIGHTS) and result.shares.shape == (3, 3)
    backbone = load_backbone(bank["both"].backbone, dtype="float32", device="cpu")
    extension = bank.combination().extension(backbone)
    tokenizer = backbone.tokenizer(64)
    factors = {name: weight / (3 if combine == "mean" else 1) for name, weight in WEIGHTS.items()}
    total = np.zeros((3, 3))
    for text in X:
        seen = []

        def add_slots(layer, seen=seen):
            x, output = (t[0].double().numpy() for t in (layer.inputs, layer.output))
            added = np.stack(
                [
                    added_by_slots(x, [bank[name]], [factor], "concat", layer.layer)
                    for name, factor in factors.items()
                ]
            )  # (prefix, position, feature)
            output = output + added.sum(0)
            norms = np.linalg.norm(added, axis=-1) / np.linalg.norm(output, axis=-1)
            seen.append(norms.mean(-1))
            return torch.from_numpy(output).float()[None]

        encoding = tokenizer.encode(*text) if isinstance(text, tuple) else tokenizer.encode(text)
        with torch.no_grad(), extended(replace(extension, add_slots=add_slots)):
            backbone.model(
                input_ids=torch.tensor([encoding.ids]),
                token_type_ids=torch.tensor([encoding.type_ids]),
            )
        total += np.stack(seen)
    np.testing.assert_allclose(result.shares, total / len(X), atol=1e-5)
    assert (result.shares[:, 2] == 0).all() and (result.shares[:, :2] > 0.01).all()


def test_order_of_prefixes_does_not_matter(bank):
    order = ["slots", "positions", "both"]
    shares = slot_share(bank, TEXTS).shares
    others = slot_share(bank.set_params(active=order), TEXTS)
    assert others.names == order
    np.testing.assert_allclose(others.shares, shares[:, [1, 2, 0]], atol=1e-6)


@pytest.mark.parametrize(
    "family", ["albert", "deberta-v2", "distilbert", "modernbert", "mpnet", "qwen3", "roberta"]
)
def test_slot_share_in_other_families(tiny, random_prefix, family):
    bank = PrefixBank({"a": random_prefix(tiny(family), ffn_length=2)}, **CPU)
    shares = slot_share(bank, ["word " * 9, "a"]).shares
    assert shares.shape == (3, 1) and (shares > 0).all() and np.isfinite(shares).all()


def test_share_grows_with_the_weight(bank):
    bank.set_params(active=["slots"])
    light, heavy = (
        slot_share(bank.set_params(weights=weight), TEXTS).shares for weight in (1e-6, 1e6)
    )
    assert light.max() < 1e-4
    np.testing.assert_allclose(heavy, 1, atol=1e-4)


def test_mean_of_prefixes_without_positions_divides_their_weights(bank, tiny, random_prefix):
    bank.add("more", random_prefix(tiny(), length=0, ffn_length=2, seed=5))
    bank.set_params(active=["slots", "more"])
    mean = slot_share(bank.set_params(combine="mean"), TEXTS).shares
    halved = slot_share(bank.set_params(combine="concat", weights=0.5), TEXTS).shares
    np.testing.assert_allclose(mean, halved, atol=1e-6)


def test_slots_that_add_nothing_have_no_share(bank):
    some = bank["slots"]
    silent = replace(some, slots=replace(some.slots, values=np.zeros_like(some.slots.values)))
    assert (slot_share(PrefixBank({"a": silent}, **CPU), TEXTS).shares == 0).all()


def test_pairs_apart_are_measured_text_by_text(bank):
    apart = slot_share(bank.set_params(pairs="apart"), PAIRS).shares
    texts = [text for pair in PAIRS for text in pair]
    np.testing.assert_allclose(apart, slot_share(bank, texts).shares, atol=1e-7)


def test_slot_share_cuts_long_texts_even_with_windows(bank):
    bank.set_params(on_truncate="window")
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than max_length=64 tokens"):
        windows = slot_share(bank, ["a" * 100, "b"])
    cut = slot_share(bank.set_params(on_truncate="ignore"), ["a" * 100, "b"])
    np.testing.assert_array_equal(windows.shares, cut.shares)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: slot_share(b.set_params(active=["positions"]), TEXTS), r"slots \(ffn_length\)"),
        (lambda b: slot_share(b.set_params(active=[]), TEXTS), "one active prefix"),
        (lambda b: slot_share(b, []), "X must contain at least one text"),
        (lambda b: slot_share(b, ["a" * 100]), "on_truncate='raise'"),
        (lambda b: slot_share(b.set_params(combine="max"), TEXTS), "'combine' parameter"),
        (lambda b: slot_share(b.set_params(output="words"), [["a"]]), "output='texts'"),
    ],
)
def test_wrong_arguments_are_refused(bank, call, message):
    with pytest.raises(ValueError, match=message):
        call(bank.set_params(on_truncate="raise"))
