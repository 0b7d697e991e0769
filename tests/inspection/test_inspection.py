"""Functions of prefixembed.inspection: ablation, attention share, similarity and map."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ShuffleSplit, StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline

from prefixembed import Prefix, PrefixBank, PrefixSelector, load_backbone
from prefixembed._model.extension import Extension
from prefixembed._model.hook import extended
from prefixembed.inspection import (
    attention_share,
    embedding_map,
    prefix_ablation,
    prefix_similarity,
)
from prefixembed.inspection.ablation import _interval
from prefixembed.reading import Reading

CPU = {"dtype": "float32", "device": "cpu", "cache": None}
TEXTS = [f"{word} {k}" for k in range(12) for word in ("joy", "bore")]
PAIRS = list(zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True))
LABELS = [1, 0] * 12
SINGLE_FOLD = ShuffleSplit(n_splits=1)


@pytest.fixture
def bank(tiny, random_prefix):
    """Return a bank of three prefixes, of which the second has no slots."""
    prefixes = {
        name: random_prefix(tiny(), length=2 + k, seed=k, ffn_length=(3, 0, 2)[k])
        for k, name in enumerate("abc")
    }
    return PrefixBank(prefixes, **CPU)


def test_ablation_agrees_with_cross_validation(bank):
    labels = np.array([0, 0, 1, 1, 0, 1] * 4)
    head = LogisticRegression(C=10)
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    bank.set_params(active=["c", "a"], combine="mean")
    result = prefix_ablation(bank, TEXTS, labels, head, cv=cv, scoring="neg_log_loss")
    assert result.names == ["c", "a"]

    def score(active):
        fresh = PrefixBank(bank.prefixes, active=active, combine="mean", max_length=64, **CPU)
        return cross_val_score(head, fresh.transform(TEXTS), labels, cv=cv, scoring="neg_log_loss")

    np.testing.assert_allclose(result.all, score(["a", "c"]))
    np.testing.assert_allclose(result.none, score([]))
    np.testing.assert_allclose(result.alone, [score(["c"]), score(["a"])])
    np.testing.assert_allclose(result.without, [score(["a"]), score(["c"])])
    np.testing.assert_allclose(result.gain[:, 0], (result.alone - result.none).mean(1))
    np.testing.assert_allclose(result.contribution[:, 0], (result.all - result.without).mean(1))
    assert (result.contribution[:, 1] <= result.contribution[:, 0]).all()
    assert all(seconds > 0 for seconds in result.seconds["alone"])
    assert bank.active == ["c", "a"]


def test_each_selection_is_encoded_once(bank, encoded):
    result = prefix_ablation(bank, TEXTS, LABELS, cv=2)
    # All, none, three alone, three left out; and one text before the clock starts.
    assert len(encoded) == 8 * len(TEXTS) + 1
    assert result.without.shape == (3, 2)


@pytest.mark.parametrize(("pairs", "width"), [("joint", 32), ("apart", 96)])
def test_all_selections_read_texts_as_the_bank_does(tiny, random_prefix, pairs, width):
    # A bank follows its active prefixes, so that one with the short limit would cut texts, and
    # one without prefixes would pool as the backbone does.
    prefixes = {
        f"limit {limit}": random_prefix(
            tiny(), seed=limit, pooling="cls", max_length=limit, pairs=pairs
        )
        for limit in (16, 64)
    }
    bank = PrefixBank(prefixes, **CPU)
    X = [(f"{one}, or something like it", other) for one, other in PAIRS]
    cv = StratifiedKFold(3)

    def vectors(*active):
        reading = {"pooling": "cls", "max_length": 64, "pairs": pairs}
        return PrefixBank(prefixes, active=active, **reading, **CPU).transform(X)

    result = prefix_ablation(bank, X, LABELS, LogisticRegression(), cv=cv, scoring="neg_log_loss")
    none, short = vectors(), vectors("limit 16")
    assert none.shape[1] == width
    for scores, expected in ((result.none, none), (result.alone[0], short)):
        np.testing.assert_allclose(
            scores,
            cross_val_score(LogisticRegression(), expected, LABELS, cv=cv, scoring="neg_log_loss"),
        )
    norms = np.linalg.norm(short - none, axis=1) / np.linalg.norm(none, axis=1)
    assert prefix_similarity(bank, X).effect[0] == pytest.approx(norms.mean(), rel=1e-4)
    assert attention_share(bank, X).shares.shape == (3, 4, 2)


def interval(differences, test_to_train=0.25, level=0.95, base=0.0):
    before = np.full(len(differences), base)
    return _interval(before + differences, before, test_to_train, level)


def test_interval_below_zero_only_if_the_loss_is_clear():
    rng = np.random.default_rng(0)
    clear, unclear = -0.1 + 0.001 * rng.standard_normal(5), -0.1 + rng.standard_normal(5)
    assert interval(clear)[2] < 0
    assert interval(unclear)[2] > 0


@given(
    n=st.integers(2, 9),
    mean=st.one_of(st.just(0.0), st.floats(-1, 1)),
    base=st.floats(-1e3, 1e3),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_no_spread_is_no_interval(n, mean, base, seed):
    # Scores as folds yield them: sums that are rounded in different ways.
    rng = np.random.default_rng(seed)
    before = base + rng.standard_normal(n)
    center, low, high = _interval(before + mean, before, 0.5, 0.95)
    assert center == pytest.approx(mean, abs=1e-9)
    assert np.isnan([low, high]).all()


def test_two_folds_are_no_interval():
    assert np.isnan(interval(np.array([-0.2, -0.1]))[1:]).all()
    assert np.isfinite(interval(np.array([-0.2, -0.1, -0.15]))).all()


def test_intervals_have_the_promised_coverage():
    # Without shared training texts, folds are independent and the interval is Student's.
    rng = np.random.default_rng(0)
    covered = [
        low <= 0 <= high
        for _, low, high in (interval(rng.standard_normal(8), 0.0, 0.9) for _ in range(3000))
    ]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.02)


def test_no_prefix_is_harmful_without_an_interval(bank):
    labels = np.array([0, 0, 1, 1, 0, 1] * 4)
    result = prefix_ablation(bank, TEXTS, labels, cv=2, scoring="neg_log_loss")
    for intervals in (result.gain, result.contribution):
        assert np.isnan(intervals[:, 1:]).all() and np.isfinite(intervals[:, 0]).all()
    assert not result.harmful.any()


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_selector_and_ablation_agree_on_the_first_step(bank, direction):
    labels = np.array([0, 0, 1, 1, 0, 1] * 4)
    head, folds = LogisticRegression(C=10), StratifiedKFold(4, shuffle=True, random_state=0)
    options = {"cv": folds, "scoring": "neg_log_loss"}
    found = prefix_ablation(bank, TEXTS, labels, head, **options)
    pipe = Pipeline([("enc", bank.set_params(max_length=64)), ("clf", head)])
    selector = PrefixSelector(pipe, direction=direction, n_prefixes=3, **options)
    if direction == "backward":
        selector.set_params(n_prefixes=2)
    results = selector.fit(TEXTS, labels).cv_results_
    scores = np.array([results[f"split{k}_test_score"] for k in range(4)]).T
    forward = direction == "forward"
    np.testing.assert_allclose(scores[0], found.none if forward else found.all, atol=1e-5)
    changes = scores[1:4] - scores[0]
    if forward:
        np.testing.assert_allclose(changes.mean(1), found.gain[:, 0], atol=1e-5)
        best = found.names[np.argmax(found.gain[:, 0])]
        one = clone(selector).set_params(n_prefixes=1).fit(TEXTS, labels)
        assert one.active_ == (best,)
    else:
        np.testing.assert_allclose(-changes.mean(1), found.contribution[:, 0], atol=1e-5)
        worst = found.names[np.argmin(found.contribution[:, 0])]
        assert worst not in selector.active_ and len(selector.active_) == 2


@pytest.mark.parametrize("combine", ["concat", "mean"])
@pytest.mark.parametrize("X", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_attention_share_agrees_with_plain_softmax(bank, combine, X):
    # The expected shares come from an attention of the test's own, text by text.
    weights = {"a": 0.5, "b": 2.0, "c": 1.0}
    bank.set_params(combine=combine, weights=weights)
    result = attention_share(bank, X)
    assert result.names == ["a", "b", "c"] and result.shares.shape == (3, 4, 3)
    backbone = load_backbone(bank["a"].backbone, dtype="float32", device="cpu")
    tokenizer = backbone.tokenizer(64)
    add_slots = bank.combination().extension(backbone).add_slots
    parts = [torch.tensor(bank[name].keys_values) for name in "abc"]
    total = np.zeros((3, 4, 3))
    for text in X:
        seen = {}

        def attend(inputs, seen=seen):
            layer, query, key, value, _, scaling = inputs
            keys = torch.cat([*(p[layer, 0] for p in parts), key[0]], dim=1)
            values = torch.cat([*(p[layer, 1] for p in parts), value[0]], dim=1)
            logits = query[0] @ keys.transpose(1, 2) * scaling  # (head, query, position)
            ends = np.cumsum([0, 2, 3, 4])
            for k, name in enumerate("abc"):
                logits[..., ends[k] : ends[k + 1]] += np.log(weights[name])
            outputs, shares = [], []
            for k in range(3):
                own = torch.arange(ends[k], ends[k + 1])
                if combine == "mean":
                    kept = torch.cat([own, torch.arange(9, logits.shape[-1])])
                    attention = logits[..., kept].softmax(-1)
                    outputs.append(attention @ values[:, kept] / 3)
                    shares.append(attention[..., : len(own)].sum(-1).mean(-1) / 3)
                else:
                    shares.append(logits.softmax(-1)[..., own].sum(-1).mean(-1))
            seen[layer] = torch.stack(shares, -1)
            output = sum(outputs) if outputs else logits.softmax(-1) @ values
            return output[None]

        encoding = tokenizer.encode(*text) if isinstance(text, tuple) else tokenizer.encode(text)
        with torch.no_grad(), extended(Extension(attend, add_slots)):
            backbone.model(
                input_ids=torch.tensor([encoding.ids]),
                token_type_ids=torch.tensor([encoding.type_ids]),
            )
        total += torch.stack([seen[layer] for layer in range(3)]).numpy()
    np.testing.assert_allclose(result.shares, total / len(X), atol=1e-5)


@pytest.mark.parametrize("family", ["modernbert", "roberta", "deberta-v2", "qwen3"])
def test_attention_share_in_other_families(tiny, random_prefix, family):
    # Local attention, positions with an offset, relative positions, and shared key heads.
    bank = PrefixBank({"a": random_prefix(tiny(family))}, max_length=64, **CPU)
    shares = attention_share(bank, ["word " * 9, "a"]).shares
    assert ((shares > 0) & (shares < 1)).all()


@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_prefixes_without_positions_get_no_attention(bank, tiny, random_prefix, combine):
    slots = random_prefix(tiny(), length=0, ffn_length=4, seed=5)
    bank.add("slots", slots).set_params(combine=combine)
    result = attention_share(bank, TEXTS)
    assert result.names[3] == "slots" and (result.shares[:, :, 3] == 0).all()
    # In a bank of its own, the first prefix shares with the tokens alone. Slots of the others
    # change only layers above the first.
    alone = attention_share(bank.set_params(active=["a", "slots"]), TEXTS).shares
    without = attention_share(bank.set_params(active=["a"]), TEXTS).shares
    factor = 2 if combine == "mean" else 1
    np.testing.assert_allclose(alone[0, :, 0] * factor, without[0, :, 0], atol=1e-6)
    assert np.abs(alone[1:, :, 0] * factor - without[1:, :, 0]).max() > 1e-3
    with pytest.raises(ValueError, match=r"prefix with positions \(prefix_length\), got none"):
        attention_share(bank.set_params(active=["slots"]), TEXTS)


def test_weights_change_the_attention_share(bank):
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


def test_similarity_compares_effects_on_vectors(bank, tiny):
    bank = PrefixBank({**bank.prefixes, "a again": bank["a"]}, **CPU)
    result = prefix_similarity(bank, TEXTS)
    bare = PrefixBank({}, backbone=tiny(), max_length=64, **CPU).transform(TEXTS)
    effects = {name: PrefixBank({name: bank[name]}, **CPU).transform(TEXTS) - bare for name in bank}
    for j, one in enumerate(result.names):
        norms = np.linalg.norm(effects[one], axis=1)
        expected = (norms / np.linalg.norm(bare, axis=1)).mean()
        assert result.effect[j] == pytest.approx(expected, rel=1e-4)
        for k, other in enumerate(result.names):
            products = norms * np.linalg.norm(effects[other], axis=1)
            cosine = ((effects[one] * effects[other]).sum(1) / products).mean()
            assert result.similarity[j, k] == pytest.approx(cosine, abs=1e-5)
    assert result.similarity[0, 3] == pytest.approx(1) and result.similarity[0, 1] < 0.99


def test_effects_of_prefixes_include_those_of_slots(bank):
    with_slots, without = bank["a"], replace(bank["a"], slots=None)
    alone = replace(with_slots, keys_values=with_slots.keys_values[:, :, :, :0])
    bank = PrefixBank({"both": with_slots, "positions": without, "slots": alone}, **CPU)
    result = prefix_similarity(bank, TEXTS)
    assert (result.effect > 0.01).all()
    assert np.abs(result.similarity - np.eye(3))[np.triu_indices(3, 1)].max() < 0.99
    scores = prefix_ablation(bank, TEXTS, LABELS, cv=2, scoring="neg_log_loss").alone
    assert len(np.unique(scores, axis=0)) == 3


def test_map_shows_principal_components_by_default(bank):
    result = embedding_map(bank, TEXTS, LABELS)
    expected = PCA(2, random_state=0).fit_transform(bank.transform(TEXTS))
    np.testing.assert_allclose(np.abs(result.points), np.abs(expected), atol=1e-4)
    np.testing.assert_array_equal(result.labels, LABELS)
    assert embedding_map(bank, PAIRS).labels is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: prefix_ablation(b.set_params(active=[]), TEXTS, LABELS), "one active prefix"),
        (lambda b: prefix_ablation(b, TEXTS, LABELS[:3]), "inconsistent numbers"),
        (lambda b: prefix_ablation(b, TEXTS, LABELS, cv=1), "'cv' parameter"),
        (lambda b: prefix_ablation(b, TEXTS, LABELS, cv=SINGLE_FOLD), "at least two folds, got 1"),
        (lambda b: prefix_ablation(b, TEXTS, LABELS, confidence_level=1.0), "'confidence_level'"),
        (lambda b: attention_share(b, []), "X must contain at least one text"),
        (lambda b: attention_share(b, ["a", None]), r"X\[1\] must be a str"),
        (lambda b: attention_share(b, ["a" * 100]), "on_truncate='raise'"),
        (lambda b: attention_share(b.set_params(combine="max"), TEXTS), "'combine' parameter"),
        (lambda b: attention_share(b.set_params(output="words"), [["a"]]), "output='texts'"),
        (lambda b: prefix_similarity(b.set_params(active=["z"]), TEXTS), "active has 'z'"),
        (lambda b: prefix_similarity(b, []), "X must contain at least one text"),
        (lambda b: embedding_map(b, TEXTS, LABELS, PCA(3)), "two features per text"),
        (lambda b: embedding_map(b, TEXTS, LABELS[:3]), "inconsistent numbers"),
    ],
)
def test_wrong_arguments_are_refused(bank, call, message):
    with pytest.raises(ValueError, match=message):
        call(bank.set_params(on_truncate="raise"))


def test_attention_share_cuts_long_texts_even_with_windows(bank):
    bank.set_params(on_truncate="window")
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than max_length=64 tokens"):
        windows = attention_share(bank, ["a" * 100, "b"])
    cut = attention_share(bank.set_params(on_truncate="ignore"), ["a" * 100, "b"])
    np.testing.assert_array_equal(windows.shares, cut.shares)


@pytest.fixture
def prefix_for_long_texts(tmp_path):
    folder = make_backbone(tmp_path, "bert", max_position_embeddings=4096)
    backbone = load_backbone(folder, dtype="float32", device="cpu")
    return Prefix(
        keys_values=np.zeros((3, 2, 4, 2, 8)),
        backbone=folder,
        fingerprint=backbone.fingerprint,
        n_features=32,
        reading=Reading("mean", 4096),
    )


def test_attention_share_of_texts_longer_than_a_batch(prefix_for_long_texts):
    bank = PrefixBank({"a": prefix_for_long_texts}, **CPU)
    assert attention_share(bank, ["x" * 3000, "x" * 3000, "a"]).shares.shape == (3, 4, 1)


def test_ablation_reads_float32_vectors_whatever_the_output_dtype(bank):
    exact = prefix_ablation(bank, TEXTS, LABELS, cv=2)
    packed = prefix_ablation(bank.set_params(output_dtype="binary"), TEXTS, LABELS, cv=2)
    np.testing.assert_array_equal(packed.alone, exact.alone)
