"""Pairs whose texts are read apart: vectors, cache, training, files, containers."""

import numpy as np
import pytest
from helpers import GOOD, choices, make_multitask
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from prefixembed import (
    ChoiceRanker,
    MultiTaskEncoder,
    Prefix,
    PrefixBank,
    PrefixEncoder,
    VectorCache,
    fill_cache,
    load_backbone,
)
from prefixembed._embed import embedder
from prefixembed._embed.encoding import embed_tokens, encode_batch
from prefixembed._embed.tokens import tokenize
from prefixembed.head import Head
from prefixembed.reading import Reading

CPU = {"dtype": "float32", "device": "cpu", "cache": None}
PAIRS = [("a film", "of joy"), ("", "b"), ("a film", "a film"), ("b", "it is long " * 4)]


def naive(bank, pairs):
    """Encode each text by itself, and return [u, v, |u - v|] for each pair."""
    rows = []
    for pair in pairs:
        u, v = (bank.transform([text])[0] for text in pair)
        rows.append(np.concatenate([u, v, abs(u - v)]))
    return np.array(rows)


def same_words(n=60, seed=0):
    """Return pairs, labelled by whether both texts have the same word."""
    rng = np.random.default_rng(seed)
    first, second = rng.choice(GOOD, n), rng.choice(GOOD, n)
    pairs = [(f"{a} {rng.integers(9)}", f"{b} {rng.integers(9)}")
             for a, b in zip(first, second, strict=True)]  # fmt: skip
    return pairs, np.where(first == second, "same", "other")


def make(folder, **params):
    settings = {
        "pairs": "apart", "max_steps": 280, "batch_size": 8, "learning_rate": 0.05,
        "max_length": 64, "random_state": 0,
    }  # fmt: skip
    return PrefixEncoder(folder, **(CPU | settings | params))


@pytest.fixture(scope="module")
def fitted(tiny):
    return make(tiny()).fit(*same_words(120))


@pytest.fixture
def bank(tiny, random_prefix):
    prefixes = {"a": random_prefix(tiny(), seed=1), "b": random_prefix(tiny(), seed=2)}
    return PrefixBank(prefixes, pairs="apart", **CPU)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", ["list", "iterator", "out"])
def test_vector_of_a_pair_is_both_vectors_and_their_difference(bank, kind, cached, monkeypatch):
    monkeypatch.setattr(embedder, "CHUNK", 4)  # two pairs at a time
    expected = naive(bank, PAIRS)
    bank.set_params(cache=VectorCache() if cached else None)
    out = np.zeros_like(expected) if kind == "out" else None
    for _ in range(2):
        vectors = bank.transform(iter(PAIRS) if kind == "iterator" else PAIRS, out=out)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert out is None or vectors is out
    assert vectors.shape == (len(PAIRS), 3 * bank.n_features_out_)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=6))
def test_any_pairs_equal_their_texts(tiny, pairs):
    bank = PrefixBank({}, backbone=tiny(), pairs="apart", max_length=32, **CPU)
    np.testing.assert_allclose(bank.transform(pairs), naive(bank, pairs), atol=1e-5)


@pytest.mark.parametrize("output_dtype", ["float16", "int8", "binary"])
def test_small_dtypes_of_pairs(bank, output_dtype):
    whole = bank.transform(PAIRS)
    small = bank.set_params(output_dtype=output_dtype).transform(PAIRS)
    if output_dtype == "binary":
        np.testing.assert_array_equal(small, np.packbits(whole > 0, axis=1))
    else:
        scale = 1 if output_dtype == "float16" else abs(small).max(axis=1, keepdims=True) / (
            abs(whole).max(axis=1, keepdims=True))  # fmt: skip
        assert np.abs(small / scale - whole).max() < 0.05 * abs(whole).max()
    assert small.dtype == {"binary": np.uint8}.get(output_dtype, output_dtype)


def test_texts_in_several_pairs_are_encoded_once(bank, encoded):
    bank.set_params(cache=VectorCache())
    bank.transform(PAIRS)
    n = len({text for pair in PAIRS for text in pair})
    assert len(encoded) == n
    bank.transform([(b, a) for a, b in PAIRS])
    bank.transform([text for pair in PAIRS for text in pair])
    assert len(encoded) == n
    bank.set_params(pairs="joint").transform(PAIRS)
    assert len(encoded) == n + len(PAIRS)


def test_training_reads_pairs_as_transform_does(tiny):
    backbone = load_backbone(tiny(), dtype="float32", device="cpu")
    reading = Reading("mean", 64, pairs="apart")
    tokens = tokenize(backbone, PAIRS, reading)
    expected = naive(PrefixBank({}, backbone=tiny(), **CPU), PAIRS)
    positions = np.array([3, 0, 1, 2])
    vectors = encode_batch(backbone, tokens, positions, None, reading)
    np.testing.assert_allclose(vectors.detach().numpy(), expected[positions], atol=1e-5)
    embedded = embed_tokens(backbone, tokens, None, reading, 16)
    np.testing.assert_allclose(embedded, expected, atol=1e-5)
    alone = tokens.sequences()
    assert len(alone.ids) == 2 * len(PAIRS) and alone.sequences() is alone
    assert tokens.lengths.tolist() == (alone.lengths[:4] + alone.lengths[4:]).tolist()


def test_learns_to_compare_two_texts(fitted, tiny, tmp_path):
    pairs, labels = same_words(seed=1)
    assert fitted.score(pairs, labels) > 0.9
    prefix = fitted.prefix_
    assert prefix.reading.pairs == "apart"
    assert prefix.head.weight.shape == (2, 3 * prefix.n_features)
    assert fitted.n_features_out_ == prefix.width == 96
    assert len(fitted.get_feature_names_out()) == fitted.transform(pairs).shape[1] == 96
    prefix.save(tmp_path / "p.safetensors")
    again = PrefixEncoder.from_prefix(Prefix.load(tmp_path / "p.safetensors"), **CPU)
    assert again.pairs == "apart"
    np.testing.assert_array_equal(again.predict_proba(pairs), fitted.predict_proba(pairs))
    with pytest.raises(ValueError, match="pairs is 'apart' in the prefix, got pairs='joint'"):
        PrefixEncoder.from_prefix(prefix, pairs="joint")
    with pytest.raises(ValueError, match="was fitted on pairs of texts"):
        fitted.predict(["a text"])


def test_pairs_parameter_does_not_affect_prefixes_of_single_texts(tiny):
    texts, labels = [first for first, _ in same_words(24)[0]], [0, 1] * 12
    params = {"max_steps": 3, "early_stopping": False}
    with pytest.warns(UserWarning, match="stuck"):
        apart, joint = (
            make(tiny(), pairs=pairs, **params).fit(texts, labels).prefix_
            for pairs in ("apart", "joint")
        )
    assert apart == joint and apart.reading.pairs is None


def test_wrong_readings_and_heads_of_pairs_are_refused(random_prefix, tiny):
    with pytest.raises(ValueError, match="pairs must be one of joint, apart, got 'both'"):
        Reading("mean", 64, pairs="both")
    narrow = Head("classification", np.array([0, 1]), np.zeros((2, 32)), np.zeros(2))
    with pytest.raises(ValueError, match="head_weight must have 96 columns, got 32"):
        random_prefix(tiny(), pairs="apart", head=narrow)


def test_bank_reads_pairs_as_its_active_prefixes_were_learned(tiny, fitted, random_prefix):
    pairs = same_words(4)[0]
    plain, joint = random_prefix(tiny()), random_prefix(tiny(), seed=1, pairs="joint")
    assert PrefixBank({"plain": plain}, **CPU).transform(pairs).shape == (4, 32)
    bank = PrefixBank({"plain": plain, "same": fitted}, **CPU)
    assert bank.transform(pairs).shape == (4, 96)
    assert bank.transform(["one"]).shape == (1, 32)
    one = PrefixBank({"same": fitted}, **CPU)
    np.testing.assert_array_equal(one.transform(pairs), fitted.transform(pairs))
    bank.add("joint", joint)
    message = "'joint' was learned with 'joint', 'same' was learned with 'apart'"
    with pytest.raises(ValueError, match=message):
        bank.transform(pairs)
    assert bank.transform(["one"]).shape == (1, 32)
    assert bank.set_params(active=["plain", "same"]).transform(pairs).shape == (4, 96)
    assert bank.set_params(active=["plain", "joint"]).transform(pairs).shape == (4, 32)
    bank.set_params(active=None)
    assert bank.set_params(pairs="joint").transform(pairs).shape == (4, 32)
    with pytest.raises(ValueError, match="'pairs' parameter of PrefixBank"):
        bank.set_params(pairs="both").transform(pairs)


def test_data_frames_of_pairs(bank):
    pytest.importorskip("pandas")
    pairs, labels = same_words(20)
    bank.set_output(transform="pandas")
    frame = bank.fit_transform(pairs)
    assert frame.shape == (20, 96) and frame.columns[-1] == "prefixbank95"
    assert bank.transform(["one"]).columns[-1] == "prefixbank31"
    pipe = make_pipeline(bank, LogisticRegression(max_iter=1000)).fit(pairs, labels)
    assert list(pipe[-1].feature_names_in_) == list(frame.columns)


def test_no_pairs_give_no_rows_in_the_width_of_pairs(fitted, bank):
    assert fitted.transform([]).shape == (0, 96)
    assert fitted.predict([]).shape == (0,)
    assert bank.transform([]).shape == (0, 32)
    assert bank.fit(PAIRS).transform([]).shape == (0, 96)
    assert bank.set_output(transform="pandas").transform(iter([])).shape == (0, 96)


def test_pair_with_truncated_texts_counts_once(bank):
    long = "x" * 70
    pairs = [("a", long), (long, long), ("a", "b")]
    bank.set_params(max_length=64, cache=VectorCache())
    for _ in range(2):
        with pytest.warns(UserWarning, match="2 of 3 texts are longer than max_length=64"):
            bank.transform(pairs)
    with pytest.raises(ValueError, match="longer than max_length=64"):
        bank.set_params(on_truncate="raise").transform(pairs)


def test_progress_bar_counts_both_texts(bank, capsys):
    bank.set_params(verbose=True).transform(PAIRS)
    assert "8/8" in capsys.readouterr().err


def test_fill_cache_encodes_texts_of_pairs_once(bank):
    cache = VectorCache(max_bytes=10**7)
    pipe = make_pipeline(bank.set_params(cache=cache), LogisticRegression())
    pairs = same_words(20)[0]
    search = GridSearchCV(pipe, {"prefixbank__pairs": ["joint", "apart"]})
    assert fill_cache(search, pairs) == 2
    assert cache.stats().n_vectors == len(set(pairs)) + len({t for pair in pairs for t in pair})


def test_multi_task_training_of_pairs_and_texts(tiny, tmp_path):
    pairs, labels = same_words(120)
    singles = [first for first, _ in pairs], [first[0] == "j" for first, _ in pairs]
    tasks = {"same": (pairs, labels), "joy": singles}
    encoder = make_multitask(tiny(), pairs="apart", max_steps=324, cache=None).fit(tasks)
    assert encoder.score(*same_words(seed=1), "same") > 0.9
    assert encoder.score(*singles, "joy") > 0.9
    assert encoder.heads_["same"].weight.shape == (2, 96)
    assert encoder.heads_["joy"].weight.shape == (2, 32)
    assert encoder.n_features_out_ == 32
    encoder.set_params(pairs="joint")  # the reading of the training is kept
    assert encoder.transform(pairs).shape == (120, 96)
    assert encoder.predict([], "same").shape == encoder.predict([], "joy").shape == (0,)
    with pytest.raises(ValueError, match="task 'same' was fitted on pairs of texts"):
        encoder.predict(["a text"], "same")
    with pytest.raises(ValueError, match="task 'joy' was fitted on single texts, got pairs"):
        encoder.predict(pairs, "joy")
    encoder.save(tmp_path)
    again = PrefixBank({}, backbone=tmp_path, **CPU)  # with the reading of the training
    np.testing.assert_allclose(again.transform(pairs), encoder.transform(pairs), atol=1e-6)


def test_choices_are_read_apart_from_their_context(tiny, encoded):
    rows, right = choices(80)
    encoder = make(tiny(), objective="multiple_choice").fit(rows, right)
    assert encoder.score(*choices(40, seed=1)) > 0.9
    encoded.clear()
    bank = PrefixBank({"a": encoder}, **(CPU | {"cache": VectorCache()}))
    ranker = ChoiceRanker(bank, LogisticRegression()).fit(rows, right)
    # All rows have the same context, which is encoded once.
    assert len(encoded) == 1 + len({choice for _, some in rows for choice in some})
    assert ranker.score(*choices(40, seed=1)) > 0.9


def test_pairs_follow_the_backbone_by_default(tiny, minilm):
    assert MultiTaskEncoder().pairs == PrefixEncoder().pairs == PrefixBank({}).pairs == "auto"
    assert PrefixBank({}, backbone=tiny(), **CPU).transform(PAIRS).shape == (4, 32)
    assert PrefixBank({}, backbone=minilm, **CPU).transform(PAIRS).shape == (4, 3 * 384)
