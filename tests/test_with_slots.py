"""Prefixes with slots on every path: encoders, banks, files, caches, corpora, words."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import skops.io
from conftest import PAIRS, TEXTS
from datasets import Dataset
from helpers import make_encoder, make_multitask, reviews
from reference import bert_hidden
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from prefixembed import (
    Prefix,
    PrefixBank,
    PrefixEncoder,
    VectorCache,
    embed_dataset,
    load_backbone,
)
from prefixembed._embed.tokens import tokenize
from prefixembed._model.slots import AddedSlots
from prefixembed.reading import Reading

CPU = {"dtype": "float32", "device": "cpu"}
pytestmark = [
    pytest.mark.filterwarnings("ignore:the training loss is stuck"),
    pytest.mark.filterwarnings("ignore:the validation loss"),
]


@pytest.fixture
def prefixes(tiny, random_prefix):
    return {
        "positions": random_prefix(tiny(), 2),
        "slots": random_prefix(tiny(), 0, 1, ffn_length=3),
        "both": random_prefix(tiny(), 4, 2, ffn_length=2),
    }


@pytest.fixture
def bank(prefixes):
    return PrefixBank(prefixes, weights={"slots": 0.5, "both": 2.0}, combine="mean", **CPU)


@pytest.fixture(scope="module")
def fitted(tiny):
    return make_encoder(tiny(), ffn_length=4, max_steps=72).fit(*reviews())


def expected_vectors(folder, prefixes, weights, combine, texts):
    """Return means over the token vectors of plain algebra."""
    backbone = load_backbone(folder, **CPU)
    tokens = tokenize(backbone, texts, Reading("mean", 64, pairs="joint"))
    return np.array(
        [
            bert_hidden(backbone.model, ids, types, prefixes, weights, combine).mean(axis=0)
            for ids, types in zip(tokens.ids, tokens.type_ids, strict=True)
        ]
    )


@pytest.mark.parametrize("combine", ["concat", "mean"])
@pytest.mark.parametrize("active", [["both", "slots"], ["slots"], ["positions", "slots", "both"]])
@pytest.mark.parametrize("X", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_vectors_of_a_bank_equal_the_formula_of_the_method(tiny, bank, combine, active, X):
    vectors = bank.set_params(active=active, combine=combine).transform(X)
    chosen, weights = [bank[name] for name in active], [bank.weights.get(n, 1) for n in active]
    expected = expected_vectors(tiny(), chosen, weights, combine, X)
    np.testing.assert_allclose(vectors, expected, atol=2e-5)


@pytest.mark.parametrize("name", ["positions", "slots", "both"])
def test_bank_of_one_equals_its_encoder(prefixes, name):
    prefix = prefixes[name]
    encoder = PrefixEncoder.from_prefix(prefix, **CPU)
    assert (encoder.prefix_length, encoder.ffn_length) == (prefix.length, prefix.ffn_length)
    for combine in ("concat", "mean"):
        bank = PrefixBank({"one": encoder}, combine=combine, **CPU)
        np.testing.assert_array_equal(bank.transform(TEXTS), encoder.transform(TEXTS))
    with pytest.raises(ValueError, match=f"ffn_length is {prefix.ffn_length} in the prefix, got"):
        PrefixEncoder.from_prefix(prefix, ffn_length=7)


def test_copies_of_a_bank_return_the_same_vectors(bank, prefixes, tmp_path):
    expected = bank.transform(TEXTS)
    bank.save(tmp_path / "bank")
    head = make_pipeline(bank, LogisticRegression()).fit(TEXTS, [0, 1] * 3 + [0])
    written = skops.io.dumps(head)
    trusted = skops.io.get_untrusted_types(data=written)
    assert "prefixembed.slots.Slots" in trusted
    for copied in (
        PrefixBank.load(tmp_path / "bank", **CPU),
        pickle.loads(pickle.dumps(bank)),
        clone(bank),
        skops.io.loads(written, trusted=trusted)[0],
    ):
        assert dict(copied.items()) == prefixes
        np.testing.assert_array_equal(copied.transform(TEXTS), expected)


def test_encoder_learns_slots_and_its_pickle_keeps_them(fitted, tmp_path):
    texts, _ = reviews(seed=1)
    prefix = fitted.prefix_
    assert (prefix.length, prefix.ffn_length) == (5, 4)
    assert prefix.slots.keys.shape == (3, 4, 32) and prefix.slots.values.any()
    logits = prefix.head.decision_function(fitted.transform(texts))
    prefix.save(tmp_path / "p.safetensors")
    for copied in (
        pickle.loads(pickle.dumps(fitted)),
        PrefixEncoder.from_prefix(Prefix.load(tmp_path / "p.safetensors"), **CPU),
    ):
        assert copied.prefix_ == prefix
        np.testing.assert_array_equal(copied.transform(texts), fitted.transform(texts))
        np.testing.assert_array_equal(copied.predict(texts), fitted.predict(texts))
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], fitted.decision_function(texts))
    arrays = [prefix.keys_values, *prefix.slots.tensors().values(), prefix.head.weight]
    assert len(pickle.dumps(fitted)) < 1.1 * sum(array.nbytes for array in arrays) + 6000


@pytest.mark.parametrize("params", [{}, {"reparameterize": 6}, {"init": "normal"}])
def test_slots_alone_learn(tiny, params):
    encoder = make_encoder(tiny(), prefix_length=0, ffn_length=4, max_steps=72, **params)
    encoder.fit(*reviews())
    assert (encoder.prefix_.length, encoder.prefix_.ffn_length) == (0, 4)
    texts, labels = reviews(seed=1)
    assert encoder.score(texts, labels) > 0.85
    expected = expected_vectors(tiny(), [encoder.prefix_], [1.0], "concat", texts)
    np.testing.assert_allclose(encoder.transform(texts), expected, atol=1e-4)


def test_positions_alone_are_the_method_of_the_paper(tiny):
    encoder = make_encoder(tiny(), ffn_length=0).fit(*reviews())
    assert encoder.prefix_.slots is None
    expected = expected_vectors(tiny(), [encoder.prefix_], [1.0], "concat", TEXTS)
    np.testing.assert_allclose(encoder.transform(TEXTS), expected, atol=1e-4)


def test_a_prefix_of_nothing_is_refused_before_anything_is_loaded(tmp_path):
    encoder = make_encoder(str(tmp_path / "nowhere"), prefix_length=0, ffn_length=0)
    with pytest.raises(ValueError, match="prefix_length and ffn_length cannot both be 0"):
        encoder.fit(*reviews())


@pytest.mark.parametrize("value", [-1, 2.5, True, "16", None])
def test_wrong_ffn_length_is_refused_by_name(tiny, value):
    with pytest.raises(ValueError, match="'ffn_length' parameter"):
        make_encoder(tiny(), ffn_length=value).fit(*reviews())


def test_slots_have_keys_of_their_own_in_caches(tiny, prefixes, tmp_path, encoded):
    both = prefixes["both"]
    plain = replace(both, slots=None)
    other = replace(both, slots=replace(both.slots, biases=both.slots.biases + 1))
    cache = VectorCache(tmp_path / "vectors")
    banks = [PrefixBank({"a": prefix}, cache=cache, **CPU) for prefix in (both, plain, other)]
    keys = [bank.representation().keys(TEXTS) for bank in banks]
    assert len({key for some in keys for key in some}) == 3 * len(TEXTS)
    vectors = [bank.transform(TEXTS) for bank in banks]
    assert len(encoded) == 3 * len(TEXTS)
    assert np.abs(vectors[0] - vectors[1]).max() > 0.01
    again = [clone(bank).transform(TEXTS) for bank in banks]
    assert len(encoded) == 3 * len(TEXTS)
    np.testing.assert_array_equal(again, vectors)
    # A change of slots after fit is a change of the vectors.
    bank = clone(banks[0]).fit(TEXTS).set_params(prefixes={"a": plain})
    with pytest.warns(UserWarning, match="has changed since it was fitted"):
        bank.transform(TEXTS)


def test_corpus_holds_the_vectors_of_a_bank_with_slots(bank, tmp_path):
    rows = Dataset.from_dict({"text": TEXTS * 3})
    corpus = embed_dataset(bank, rows, "text", tmp_path / "out", shard_size=8)
    expected = bank.transform(TEXTS * 3)
    np.testing.assert_allclose(corpus.load()["vector"], expected, atol=1e-5)
    # Shards of another bank are not taken for those of this one.
    plain = PrefixBank({n: p for n, p in bank.items() if n == "positions"}, **CPU)
    with pytest.raises(ValueError, match="out"):
        embed_dataset(plain, rows, "text", tmp_path / "out", shard_size=8)


def test_words_have_the_vectors_of_their_tokens(tiny, bank):
    bank.set_params(output="words")
    sentences = [["film"], ["what", "a", "film"], []]
    together = bank.transform(sentences)
    assert together.shape == (4, 32)
    backbone = load_backbone(tiny(), **CPU)
    ids = tokenize(backbone, ["film"], Reading("mean", 64)).ids[0]
    weights = [bank.weights.get(name, 1) for name in bank]
    hidden = bert_hidden(backbone.model, ids, 0 * ids, list(bank.values()), weights, "mean")
    np.testing.assert_allclose(together[0], hidden[1:-1].mean(axis=0), atol=2e-5)
    np.testing.assert_allclose(together[1:], bank.transform(sentences[1:]), atol=1e-5)


def test_prefixes_with_slots_are_learned_on_a_fine_tuned_backbone(tiny, tmp_path):
    texts, labels = reviews()
    tuned = make_multitask(tiny(), max_steps=6).fit({"a": (texts, labels)})
    folder = str(tmp_path / "tuned")
    tuned.save(folder)
    bare = PrefixBank({}, backbone=folder, max_length=64, **CPU)
    np.testing.assert_allclose(bare.transform(TEXTS), tuned.transform(TEXTS), atol=1e-6)
    encoder = make_encoder(folder, ffn_length=4).fit(texts, labels)
    bank = PrefixBank({"a": encoder}, **CPU)
    bank.save(tmp_path / "bank")
    loaded = PrefixBank.load(tmp_path / "bank", **CPU)
    expected = expected_vectors(folder, [encoder.prefix_], [1.0], "concat", TEXTS)
    np.testing.assert_allclose(loaded.transform(TEXTS), expected, atol=1e-4)


def test_a_failed_fit_leaves_the_backbone_as_it_was(tiny, bank, monkeypatch):
    bare = PrefixBank({}, backbone=tiny(), max_length=64, **CPU)
    expected = bare.transform(TEXTS), bank.transform(TEXTS)
    backbone = load_backbone(tiny(), **CPU)
    weights = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    real, calls = AddedSlots.hidden, []

    def fail(add, layer):
        calls.append(layer.layer)
        if len(calls) == 14:  # the second layer of the fifth forward call
            raise RuntimeError("lost")
        return real(add, layer)

    with monkeypatch.context() as patch:
        patch.setattr(AddedSlots, "hidden", fail)
        with pytest.raises(RuntimeError, match="lost"):
            make_encoder(tiny()).fit(*reviews())
    assert calls[-3:] == [2, 0, 1]
    np.testing.assert_array_equal(bare.transform(TEXTS), expected[0])
    np.testing.assert_array_equal(bank.transform(TEXTS), expected[1])
    assert all((weights[n] == t).all() for n, t in backbone.model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in backbone.model.parameters())
    assert not any(module.training for module in backbone.model.modules())
