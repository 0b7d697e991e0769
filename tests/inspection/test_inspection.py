import numpy as np
import pytest
import torch
from conftest import make_backbone
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ShuffleSplit, StratifiedKFold, cross_val_score

from prefixembed import Prefix, PrefixBank, load_backbone
from prefixembed._model.hook import attending
from prefixembed.inspection import (
    _interval,
    attention_share,
    embedding_map,
    prefix_ablation,
    prefix_similarity,
)

CPU = {"dtype": "float32", "device": "cpu", "cache": None}
TEXTS = [f"{word} {k}" for k in range(12) for word in ("joy", "bore")]
PAIRS = list(zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True))
LABELS = [1, 0] * 12
ONE = ShuffleSplit(n_splits=1)


@pytest.fixture
def bank(tiny, random_prefix):
    prefixes = {name: random_prefix(tiny(), length=2 + k, seed=k) for k, name in enumerate("abc")}
    return PrefixBank(prefixes, **CPU)


def test_ablation_is_what_cross_validation_says(bank):
    labels = np.array([0, 0, 1, 1, 0, 1] * 4)
    head = LogisticRegression(C=10)
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    bank.set_params(active=["c", "a"], combine="mean")
    found = prefix_ablation(bank, TEXTS, labels, head, cv=cv, scoring="neg_log_loss")
    assert found.names == ["c", "a"]

    def score(active):
        plain = PrefixBank(bank.prefixes, active=active, combine="mean", backbone=None, **CPU)
        return cross_val_score(head, plain.transform(TEXTS), labels, cv=cv, scoring="neg_log_loss")

    np.testing.assert_allclose(found.all, score(["a", "c"]))
    np.testing.assert_allclose(found.none, score([]))
    np.testing.assert_allclose(found.alone, [score(["c"]), score(["a"])])
    np.testing.assert_allclose(found.without, [score(["a"]), score(["c"])])
    np.testing.assert_allclose(found.gain[:, 0], (found.alone - found.none).mean(1))
    np.testing.assert_allclose(found.contribution[:, 0], (found.all - found.without).mean(1))
    assert (found.contribution[:, 1] <= found.contribution[:, 0]).all()
    assert all(seconds > 0 for seconds in found.seconds["alone"])
    assert bank.active == ["c", "a"]


def test_each_representation_is_encoded_once(bank, encoded):
    found = prefix_ablation(bank, TEXTS, LABELS, cv=2)
    # All, none, three alone, three left out; and one text, so that loading is not timed.
    assert len(encoded) == 8 * len(TEXTS) + 1
    assert found.without.shape == (3, 2)


def test_what_harms_is_flagged():
    # Differences over folds, and whether their interval lies below zero.
    rng = np.random.default_rng(0)
    clear, unclear = -0.1 + 0.001 * rng.standard_normal(5), -0.1 + rng.standard_normal(5)
    assert _interval(clear, 0.25, 0.95)[2] < 0
    assert _interval(unclear, 0.25, 0.95)[2] > 0
    np.testing.assert_array_equal(_interval(np.zeros(5), 0.25, 0.95), [0, 0, 0])
    # Folds that lose the same tell nothing of what others would.
    np.testing.assert_array_equal(_interval(np.full(2, -0.2), 1.0, 0.95), [-0.2, np.nan, np.nan])


def test_intervals_hold_what_they_promise():
    # With independent folds (no training texts shared) it is Student's.
    rng = np.random.default_rng(0)
    inside = [
        low <= 0 <= high
        for _, low, high in (_interval(rng.standard_normal(8), 0.0, 0.9) for _ in range(3000))
    ]
    assert np.mean(inside) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("combine", ["concat", "mean"])
@pytest.mark.parametrize("X", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_shares_are_those_of_plain_softmax(bank, combine, X, monkeypatch):
    # Against attention of its own: the weights that the tokens of a text give to each position.
    weights = {"a": 0.5, "b": 2.0, "c": 1.0}
    bank.set_params(combine=combine, weights=weights)
    found = attention_share(bank, X)
    assert found.names == ["a", "b", "c"] and found.shares.shape == (3, 4, 3)
    backbone = load_backbone(bank["a"].backbone, dtype="float32", device="cpu")
    tokenizer = backbone.tokenizer(64)
    parts = [torch.tensor(bank[name].keys_values) for name in "abc"]
    total = np.zeros((3, 4, 3))
    for text in X:
        seen = {}

        def attend(layer, query, key, value, mask, scaling, seen=seen):
            keys = torch.cat([*(p[layer, 0] for p in parts), key[0]], dim=1)
            values = torch.cat([*(p[layer, 1] for p in parts), value[0]], dim=1)
            logits = query[0] @ keys.transpose(1, 2) * scaling  # (head, query, position)
            ends = np.cumsum([0, 2, 3, 4])
            for k, name in enumerate("abc"):
                logits[..., ends[k] : ends[k + 1]] += np.log(weights[name])
            outputs, shares = [], []
            for k in range(3):
                mine = torch.arange(ends[k], ends[k + 1])
                if combine == "mean":
                    kept = torch.cat([mine, torch.arange(9, logits.shape[-1])])
                    attention = logits[..., kept].softmax(-1)
                    outputs.append(attention @ values[:, kept] / 3)
                    shares.append(attention[..., : len(mine)].sum(-1).mean(-1) / 3)
                else:
                    shares.append(logits.softmax(-1)[..., mine].sum(-1).mean(-1))
            seen[layer] = torch.stack(shares, -1)
            output = sum(outputs) if outputs else logits.softmax(-1) @ values
            return output[None]

        encoding = tokenizer.encode(*text) if isinstance(text, tuple) else tokenizer.encode(text)
        with torch.no_grad(), attending(attend):
            backbone.model(
                input_ids=torch.tensor([encoding.ids]),
                token_type_ids=torch.tensor([encoding.type_ids]),
            )
        total += torch.stack([seen[layer] for layer in range(3)]).numpy()
    np.testing.assert_allclose(found.shares, total / len(X), atol=1e-5)


def test_windows_and_families(tiny, random_prefix):
    long = ["word " * 9, "a"]
    for family in ("modernbert", "roberta", "deberta-v2", "qwen3"):
        bank = PrefixBank({"a": random_prefix(tiny(family))}, max_length=64, **CPU)
        shares = attention_share(bank, long).shares
        assert ((shares > 0) & (shares < 1)).all()


def test_a_weight_moves_the_share(bank):
    light, heavy = (
        attention_share(bank.set_params(weights={"b": weight}), TEXTS).shares[0]
        for weight in (1e-9, 1e9)
    )
    assert light[:, 1].max() < 1e-6
    assert heavy[:, 1].min() > 0.999


def test_pairs_apart_are_measured_text_by_text(bank):
    apart = attention_share(bank.set_params(pairs="apart"), PAIRS).shares
    texts = [text for pair in PAIRS for text in pair]
    np.testing.assert_allclose(apart, attention_share(bank, texts).shares, atol=1e-7)


def test_similarity_is_of_moves(bank, random_prefix, tiny):
    bank = PrefixBank({**bank.prefixes, "a again": bank["a"]}, **CPU)
    found = prefix_similarity(bank, TEXTS)
    bare = PrefixBank({}, backbone=tiny(), max_length=64, **CPU).transform(TEXTS)
    moves = {name: PrefixBank({name: bank[name]}, **CPU).transform(TEXTS) - bare for name in bank}
    for j, one in enumerate(found.names):
        length = np.linalg.norm(moves[one], axis=1)
        expected = (length / np.linalg.norm(bare, axis=1)).mean()
        assert found.effect[j] == pytest.approx(expected, rel=1e-4)
        for k, other in enumerate(found.names):
            norms = length * np.linalg.norm(moves[other], axis=1)
            cosine = ((moves[one] * moves[other]).sum(1) / norms).mean()
            assert found.similarity[j, k] == pytest.approx(cosine, abs=1e-5)
    assert found.similarity[0, 3] == pytest.approx(1) and found.similarity[0, 1] < 0.99


def test_map(bank):
    found = embedding_map(bank, TEXTS, LABELS)
    expected = PCA(2, random_state=0).fit_transform(bank.transform(TEXTS))
    np.testing.assert_allclose(np.abs(found.points), np.abs(expected), atol=1e-4)
    np.testing.assert_array_equal(found.labels, LABELS)
    assert embedding_map(bank, PAIRS).labels is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: prefix_ablation(b.set_params(active=[]), TEXTS, LABELS), "an active prefix"),
        (lambda b: prefix_ablation(b, TEXTS, LABELS[:3]), "inconsistent numbers"),
        (lambda b: prefix_ablation(b, TEXTS, LABELS, cv=1), "'cv' parameter"),
        (lambda b: prefix_ablation(b, TEXTS, LABELS, cv=ONE), "cv must give two folds"),
        (lambda b: prefix_ablation(b, TEXTS, LABELS, confidence_level=1.0), "'confidence_level'"),
        (lambda b: attention_share(b, []), "X must have a text or more"),
        (lambda b: attention_share(b, ["a", None]), r"X\[1\] must be a str"),
        (lambda b: attention_share(b.set_params(output="words"), [["a"]]), "output='texts'"),
        (lambda b: prefix_similarity(b.set_params(active=["z"]), TEXTS), "active has 'z'"),
        (lambda b: prefix_similarity(b, []), "X must have a text or more"),
        (lambda b: embedding_map(b, TEXTS, LABELS, PCA(3)), "two features a text"),
        (lambda b: embedding_map(b, TEXTS, LABELS[:3]), "inconsistent numbers"),
    ],
)
def test_what_is_wrong_is_said(bank, call, message):
    with pytest.raises(ValueError, match=message):
        call(bank)


def test_long_texts_and_packed_vectors(tmp_path):
    folder = make_backbone(tmp_path, "bert", max_position_embeddings=4096)
    backbone = load_backbone(folder, dtype="float32", device="cpu")
    keys_values = np.zeros((3, 2, 4, 2, 8))
    prefix = Prefix(
        keys_values=keys_values, backbone=folder, fingerprint=backbone.fingerprint, pooling="mean",
        max_length=4096, n_features=32,
    )  # fmt: skip
    bank = PrefixBank({"a": prefix}, output_dtype="binary", **CPU)
    assert attention_share(bank, ["x" * 3000, "x" * 3000, "a"]).shares.shape == (3, 4, 1)
    exact = PrefixBank({"a": prefix}, **CPU)
    one, other = (prefix_ablation(b, TEXTS, LABELS, cv=2) for b in (bank, exact))
    np.testing.assert_array_equal(one.alone, other.alone)
