"""PrefixEncoder: learning, predictions, parameters, copies and saved prefixes."""

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import helpers
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FAMILIES
from helpers import make_multitask, reviews
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils._param_validation import InvalidParameterError

from prefixembed import Prefix, PrefixBank, PrefixEncoder, load_backbone, release_backbones
from prefixembed._fit import prefix_learner

# After a few steps on a few texts the loss is still at chance, and the encoder warns about it.
at_chance = pytest.mark.filterwarnings("ignore:the training loss is stuck")


def make_encoder(folder, **params):
    """Return a quick encoder that also reads background text, as by default."""
    return helpers.make_encoder(folder, **({"background": "auto"} | params))


@pytest.fixture(scope="module")
def fitted(tiny):
    return make_encoder(tiny(), max_steps=72).fit(*reviews())


def test_encoder_learns_and_predicts(fitted):
    texts, labels = reviews(seed=1)
    assert fitted.score(texts, labels) > 0.85
    proba = fitted.predict_proba(texts)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    predicted = fitted.predict(texts)
    np.testing.assert_array_equal(predicted, fitted.classes_[proba.argmax(axis=1)])
    decision = fitted.decision_function(texts)
    np.testing.assert_array_equal(predicted == "good", decision > 0)
    np.testing.assert_allclose(proba[:, 1], 1 / (1 + np.exp(-decision)))
    # The head reads the vectors that transform returns.
    logits = fitted.prefix_.head.decision_function(fitted.transform(texts))
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], decision)


def test_encoder_learns_on_a_real_backbone(minilm):
    texts, labels = reviews(64)
    encoder = PrefixEncoder(minilm, max_steps=24, batch_size=8, random_state=0).fit(texts, labels)
    assert encoder.score(*reviews(64, seed=1)) > 0.9
    vectors = encoder.transform(["a fine film", ""])
    assert vectors.shape == (2, 384) and vectors.dtype == np.float32
    assert np.isfinite(vectors).all()


@at_chance
def test_bfloat16_is_close_to_float32(minilm):
    texts, labels = reviews(32)
    encoder = PrefixEncoder(minilm, max_steps=1, random_state=0, dtype="float32")
    exact = encoder.fit(texts, labels).transform(texts)
    rough = encoder.set_params(dtype="bfloat16").transform(texts)
    cosine = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    assert cosine.min() > 0.999
    assert not np.array_equal(exact, rough)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"init": "normal"},
        {"reparameterize": 8},
        {"early_stopping": False},
        {"dtype": "bfloat16"},
    ],
)
def test_equal_random_states_learn_equal_prefixes(tiny, params):
    encoders = [make_encoder(tiny(), **(params | {"random_state": seed})) for seed in (0, 0, 1)]
    one, same, other = (encoder.fit(*reviews()) for encoder in encoders)
    assert one.prefix_ == same.prefix_
    figures = [{k: v for k, v in e.history_.items() if k != "seconds"} for e in (one, same)]
    assert figures[0] == figures[1]
    assert one.prefix_ != other.prefix_


def test_concurrent_fits_do_not_affect_each_other(tiny):
    texts, labels = reviews()
    alone = make_encoder(tiny()).fit(texts, labels).prefix_
    encoders = [make_encoder(tiny(), random_state=seed) for seed in (0, 1, 2, 0)]
    with ThreadPoolExecutor(4) as threads:
        fits = [threads.submit(encoder.fit, texts, labels) for encoder in encoders]
    prefixes = [fit.result().prefix_ for fit in fits]
    np.testing.assert_allclose(prefixes[0].keys_values, alone.keys_values, atol=1e-5)
    np.testing.assert_allclose(prefixes[3].keys_values, alone.keys_values, atol=1e-5)
    assert prefixes[1] != prefixes[2]


def test_fit_does_not_change_the_backbone(tiny, fitted):
    backbone = load_backbone(tiny(), dtype="float32", device="cpu")
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    bare = make_encoder(tiny()).fit(*reviews()).transform(["a text"])
    assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())
    assert not backbone.model.training
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())
    assert bare.shape == (1, 32)


@pytest.mark.parametrize("labels", [[7, 3, 3, 7, 9, 9], [True, False] * 3, ["x", "y", "z"] * 2,
                                    [0.0, 1.0] * 3, np.array(["a", "b"] * 3, dtype=object),
                                    pd.Series(["a", "b"] * 3, dtype="category")])  # fmt: skip
@at_chance
def test_labels_of_any_type_are_predicted(tiny, labels):
    texts = [f"text {k}" for k in range(6)]
    encoder = make_encoder(tiny(), early_stopping=False, max_steps=1).fit(texts, labels)
    predicted = encoder.predict(texts)
    assert set(predicted) <= set(labels)
    assert encoder.predict_proba(texts).shape == (6, len(set(labels)))
    assert encoder.decision_function(texts).ndim == (1 if len(set(labels)) == 2 else 2)


def test_encoder_learns_from_pairs(tiny):
    rng = np.random.default_rng(0)
    first = rng.choice(["joy", "bore"], 60)
    second = rng.choice(["joy", "bore"], 60)
    X = pd.DataFrame({"a": first, "b": second}, index=rng.permutation(60))
    encoder = make_encoder(tiny("bert"), max_steps=210, learning_rate=0.05).fit(X, first == second)
    assert encoder.score(X, first == second) > 0.9
    np.testing.assert_array_equal(
        encoder.predict(X), encoder.predict(list(zip(first, second, strict=True)))
    )


@at_chance
def test_early_stopping_keeps_the_best_state(tiny):
    texts = [f"text {k}" for k in range(60)]
    labels = np.random.default_rng(0).integers(2, size=60)
    encoder = make_encoder(tiny(), max_steps=280, learning_rate=0.05, n_iter_no_change=3)
    history = encoder.fit(texts, labels).history_
    best = int(np.argmin(history["valid_loss"]))
    assert len(history["step"]) == min(20, best + 1 + 3)
    # Labels are random, and a head that is sure of them is wrong. At the best scale of its logits,
    # the loss is never much above that at chance.
    assert max(history["valid_loss"]) < 0.75
    assert encoder.prefix_.training["valid_loss"] == history["valid_loss"][best]
    assert encoder.prefix_.training["n_validation_texts"] == 7
    full = make_encoder(tiny(), early_stopping=False, max_steps=16).fit(texts, labels)
    assert "valid_loss" not in full.history_
    assert full.prefix_.training["n_texts"] == 60


def test_too_few_texts_switch_early_stopping_off(tiny):
    with pytest.warns(UserWarning, match="4 texts are too few to set validation_fraction=0.1"):
        encoder = make_encoder(tiny()).fit(["a", "b", "c", "d"], [0, 1, 0, 1])
    assert "valid_loss" not in encoder.history_
    # The only text of a class is used for training.
    texts, labels = reviews()
    with pytest.warns(UserWarning, match="1 of 3 classes have fewer than 5 texts .*: 'odd'$"):
        encoder = make_encoder(tiny()).fit([*texts, "odd one"], [*labels, "odd"])
    assert list(encoder.classes_) == ["bad", "good", "odd"]
    assert "valid_loss" in encoder.history_


def test_sample_weights_decide_between_contradictory_labels(tiny):
    texts, labels = reviews(24)
    flip = np.where(labels == "good", "bad", "good")
    params = {"early_stopping": False, "max_steps": 72}
    # Labels contradict each other: heavier ones win, and texts of weight zero are ignored.
    weights = np.r_[np.full(24, 5.0), np.full(24, 0.1)]
    encoder = make_encoder(tiny(), **params).fit(texts + texts, np.r_[labels, flip], weights)
    assert encoder.score(texts, labels) > 0.9
    encoder = make_encoder(tiny(), **params).fit(texts + texts, np.r_[labels, flip], weights[::-1])
    assert encoder.score(texts, flip) > 0.9
    first_half = np.repeat([1.0, 0.0], 24)
    left_out = make_encoder(tiny(), **params).fit(texts + texts, np.r_[labels, flip], first_half)
    assert left_out.prefix_ == make_encoder(tiny(), **params).fit(texts, labels).prefix_
    scaled = make_encoder(tiny(), **params).fit(texts, labels, np.full(24, 7.0))
    np.testing.assert_allclose(scaled.prefix_.keys_values, left_out.prefix_.keys_values, atol=1e-5)


def test_class_weights_shift_probabilities(tiny):
    texts = ["same text"] * 20
    labels = [0] * 15 + [1] * 5
    odds = {}
    for weight in (None, "balanced", {0: 1, 1: 30}):
        encoder = make_encoder(tiny(), early_stopping=False, max_steps=75, class_weight=weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # there is nothing to learn
            odds[str(weight)] = encoder.fit(texts, labels).predict_proba(texts[:1])[0, 1]
    none, balanced, heavy = odds.values()
    assert none == pytest.approx(0.25, abs=0.1)
    assert balanced == pytest.approx(0.5, abs=0.1)
    assert heavy > 0.8


def test_loss_stuck_at_chance_is_reported(tiny):
    rng = np.random.default_rng(0)
    texts = [f"text {k}" for k in range(64)]
    with pytest.warns(ConvergenceWarning, match=r"stuck at .*learning_rate than 1e-06") as caught:
        make_encoder(tiny(), learning_rate=1e-6).fit(texts, rng.integers(3, size=64))
    assert caught[0].filename == __file__, "the warning must point to the caller"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_encoder(tiny(), max_steps=72).fit(*reviews())


def test_nan_loss_raises_and_leaves_the_encoder_unfitted(tiny, monkeypatch):
    real = prefix_learner.encode_batch
    monkeypatch.setattr(prefix_learner, "encode_batch", lambda *args: real(*args) * float("nan"))
    encoder = make_encoder(tiny(), learning_rate=0.5)
    with pytest.raises(FloatingPointError, match=r"nan in step 1 at learning_rate=0\.5"):
        encoder.fit(*reviews())
    with pytest.raises(NotFittedError):
        encoder.transform(["a"])


@at_chance
def test_truncated_training_texts_are_reported(tiny):
    texts, labels = reviews(20)
    encoder = make_encoder(tiny(), max_length=12)
    with pytest.warns(UserWarning, match=r"of 20 texts are longer than max_length=12"):
        encoder.fit(texts, labels)
    assert encoder.prefix_.training["n_truncated"] > 0
    with pytest.raises(ValueError, match="refuses to cut"):
        make_encoder(tiny(), max_length=12, on_truncate="raise").fit(texts, labels)
    for max_length, expected in ((np.int64(40), 40), (None, 80)):
        prefix = make_encoder(tiny(), max_length=max_length).fit(texts, labels).prefix_
        assert prefix.reading.max_length == expected


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (["a", "b"], ["x", "x"], "two classes or more, got 1 class"),
        (["a", "b", "c"], ["x", "y"], "inconsistent numbers of samples"),
        ([], [], "two classes or more"),
        (["a", None], ["x", "y"], r"X\[1\] must be a str"),
        ("a text", ["x"], "must be a sequence"),
        (["a", "b"], ["x", None], r"y\[1\] must be a label"),
        (["a", "b"], [0.5, 1.5], "continuous"),
    ],
)
def test_invalid_data_is_refused(tiny, X, y, message):
    with pytest.raises(ValueError, match=message):
        make_encoder(tiny()).fit(X, y)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone", 3), ("revision", 3), ("prefix_length", -1), ("prefix_length", 2.5),
        ("init", "zero"),
        ("reparameterize", 0), ("pooling", "sum"), ("max_length", 3), ("learning_rate", 0),
        ("weight_decay", -1), ("batch_size", 0), ("max_steps", 0), ("max_steps", "many"),
        ("early_stopping", "no"),
        ("validation_fraction", 1.0), ("n_iter_no_change", 0), ("class_weight", "heavy"),
        ("batch_tokens", 0), ("batch_tokens", "many"), ("on_truncate", "cut"),
        ("random_state", "x"), ("device", 0), ("dtype", "int8"), ("verbose", "loud"),
    ],
)  # fmt: skip
def test_invalid_parameters_are_named(tiny, name, value):
    with pytest.raises(ValueError, match=rf"'{name}' parameter of PrefixEncoder .* Got {value!r}"):
        make_encoder(tiny()).set_params(**{name: value}).fit(*reviews(8))


@pytest.fixture(scope="module")
def transformers(tiny, fitted):
    """Return a fitted transformer of each class."""
    multitask = make_multitask(tiny(), max_steps=2).fit({"a": reviews(16)})
    bank = PrefixBank({"a": fitted}, dtype="float32", device="cpu")
    return {"PrefixEncoder": fitted, "PrefixBank": bank, "MultiTaskEncoder": multitask}


# A misspelled value of some parameters, and the options that the error must list.
MISSPELLED = [
    ("output", "word", ["texts", "words"]),
    ("on_truncate", "rasie", ["warn", "raise", "ignore", "window"]),
    ("output_dtype", "int4", ["float32", "float16", "int8", "binary"]),
]


@at_chance
@pytest.mark.parametrize("kind", ["PrefixEncoder", "PrefixBank", "MultiTaskEncoder"])
def test_transform_checks_all_parameters(transformers, kind):
    for name, value, options in MISSPELLED:
        transformer = copy.copy(transformers[kind]).set_params(**{name: value})
        message = f"The '{name}' parameter of {kind} must be .* Got '{value}' instead"
        for X in (["a text"], [("a", "pair")], iter(["a text"]), []):
            with pytest.raises(InvalidParameterError, match=message) as error:
                transformer.transform(X)
            assert all(repr(option) in str(error.value) for option in options)
    for name in transformers[kind].get_params(deep=False):
        transformer = copy.copy(transformers[kind]).set_params(**{name: b"wrong"})
        with pytest.raises(InvalidParameterError, match=f"The '{name}' parameter of {kind} must"):
            transformer.transform(["a text"])


def test_from_prefix_checks_all_parameters(fitted):
    for name, value, options in MISSPELLED:
        message = f"The '{name}' parameter of PrefixEncoder must be .* Got '{value}' instead"
        with pytest.raises(InvalidParameterError, match=message) as error:
            PrefixEncoder.from_prefix(fitted.prefix_, **{name: value})
        assert all(repr(option) in str(error.value) for option in options)
    for name in fitted.get_params():
        # The prefix records some parameters, which cannot be changed.
        message = f"The '{name}' parameter of PrefixEncoder must|{name} is .* in the prefix, got"
        with pytest.raises(ValueError, match=message):
            PrefixEncoder.from_prefix(fitted.prefix_, **{name: b"wrong"})


def test_constructor_stores_parameters_unchanged(tiny):
    encoder = PrefixEncoder()
    assert encoder.backbone == "roberta-large" and encoder.ffn_length == 16
    assert set(encoder.get_params()) == set(PrefixEncoder._parameter_constraints)
    odd = object()
    assert all(getattr(PrefixEncoder(**{name: odd}), name) is odd for name in encoder.get_params())


def test_unfitted_encoder_raises_not_fitted_error(tiny):
    for method in ("transform", "predict", "predict_proba", "decision_function"):
        with pytest.raises(NotFittedError):
            getattr(make_encoder(tiny()), method)(["a"])


def test_pickles_hold_no_backbone_and_load_none(tiny, fitted, fresh_backbones):
    content = pickle.dumps(fitted)
    arrays = sum(array.nbytes for array in fitted.prefix_._tensors().values())
    assert len(content) < 1.1 * arrays + 4000
    loaded = pickle.loads(content)
    assert release_backbones() == 0
    texts, _ = reviews(seed=2)
    np.testing.assert_array_equal(loaded.transform(texts), fitted.transform(texts))
    assert loaded.prefix_ == fitted.prefix_


@at_chance
def test_backbone_may_be_a_path(tiny):
    texts, labels = reviews(16)
    encoder = make_encoder(Path(tiny()), max_steps=2).fit(texts, labels)
    assert encoder.prefix_ == make_encoder(tiny(), max_steps=2).fit(texts, labels).prefix_
    assert encoder.prefix_.backbone == tiny()
    moved = PrefixEncoder.from_prefix(
        encoder.prefix_, backbone=Path(tiny()), dtype="float32", device="cpu"
    )
    for other in (moved, pickle.loads(pickle.dumps(encoder)), clone(encoder).fit(texts, labels)):
        assert other.backbone == Path(tiny())
        np.testing.assert_array_equal(other.transform(texts), encoder.transform(texts))
        np.testing.assert_array_equal(other.predict(texts), encoder.predict(texts))


def test_clone_is_unfitted_and_keeps_parameters(fitted):
    assert not hasattr(clone(fitted), "prefix_")
    assert clone(fitted).get_params() == fitted.get_params()


@at_chance
def test_saved_prefix_restores_its_encoder(tiny, fitted, tmp_path):
    fitted.prefix_.save(tmp_path / "p.safetensors")
    encoder = PrefixEncoder.from_prefix(
        Prefix.load(tmp_path / "p.safetensors"), dtype="float32", device="cpu"
    )
    texts, labels = reviews(seed=2)
    np.testing.assert_array_equal(encoder.transform(texts), fitted.transform(texts))
    np.testing.assert_array_equal(encoder.predict(texts), fitted.predict(texts))
    assert encoder.get_params()["prefix_length"] == 5
    assert encoder.get_feature_names_out()[-1] == "prefixencoder31"
    with pytest.raises(ValueError, match="pooling is 'mean' in the prefix, got pooling='cls'"):
        PrefixEncoder.from_prefix(fitted.prefix_, pooling="cls")
    # The encoder can be fitted again.
    assert encoder.set_params(max_steps=6).fit(texts, labels).prefix_ != fitted.prefix_


def test_prefix_of_another_backbone_is_refused(tiny, fitted):
    encoder = pickle.loads(pickle.dumps(fitted)).set_params(backbone=tiny("electra"))
    with pytest.raises(ValueError, match="fingerprint"):
        encoder.transform(["a"])


@at_chance
def test_verbose_shows_a_progress_bar(tiny, capsys):
    make_encoder(tiny(), verbose=True, max_steps=2).fit(*reviews(16))
    assert "fit: " in capsys.readouterr().err
    make_encoder(tiny(), max_steps=2).fit(*reviews(16))
    assert not capsys.readouterr().err


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "bert"])
def test_each_family_learns(tiny, family):
    encoder = make_encoder(tiny(family), max_steps=120, early_stopping=False).fit(*reviews())
    assert encoder.score(*reviews()) > 0.75


@at_chance
@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_trained_in_bfloat16_also_works_in_float32(tiny, family):
    texts, labels = reviews()
    encoder = make_encoder(tiny(family), dtype="bfloat16", max_steps=6).fit(texts, labels)
    exact = PrefixBank({"a": encoder}, dtype="float32", device="cpu").transform(texts)
    cosine = (exact * encoder.transform(texts)).sum(1) / np.linalg.norm(exact, axis=1)
    cosine /= np.linalg.norm(encoder.transform(texts), axis=1)
    assert cosine.min() > 0.99


@at_chance
def test_output_dtype_and_out_do_not_affect_predictions(tiny, fitted):
    texts, _ = reviews()
    scores = fitted.decision_function(texts)
    where = {"dtype": "float32", "device": "cpu"}
    small = PrefixEncoder.from_prefix(fitted.prefix_, output_dtype="binary", **where)
    assert small.transform(texts).dtype == np.uint8
    np.testing.assert_allclose(small.decision_function(texts), scores, rtol=1e-5, atol=1e-5)
    out = np.empty((len(texts), 32), np.float32)
    assert fitted.transform(iter(texts), out=out) is out
    np.testing.assert_array_equal(fitted.predict(iter(texts)), fitted.predict(texts))


@at_chance
def test_float16_is_trained_in_float32(tiny):
    texts, labels = reviews()
    params = {"max_length": 64, "max_steps": 2, "random_state": 0, "device": "cpu"}
    half = PrefixEncoder(tiny(), dtype="float16", **params).fit(texts, labels)
    assert (
        half.prefix_ == PrefixEncoder(tiny(), dtype="float32", **params).fit(texts, labels).prefix_
    )


def test_pooled_layers_are_used_in_fit_and_transform(tiny):
    texts, labels = reviews()
    encoder = make_encoder(tiny(), pooled_layers=2, max_steps=72).fit(texts, labels)
    assert encoder.prefix_.reading.pooled_layers == 2
    assert encoder.score(*reviews(seed=1)) > 0.85
    again = PrefixEncoder.from_prefix(encoder.prefix_, dtype="float32", device="cpu")
    assert again.pooled_layers == 2
    np.testing.assert_array_equal(again.transform(texts), encoder.transform(texts))
    bank = PrefixBank({"a": encoder}, dtype="float32", device="cpu")
    np.testing.assert_array_equal(bank.transform(texts), encoder.transform(texts))
    one = bank.set_params(pooled_layers=1).transform(texts)
    assert np.abs(one - encoder.transform(texts)).max() > 0.01
    with pytest.raises(ValueError, match="pooled_layers must be at most the 3 layers .* got 4"):
        make_encoder(tiny(), pooled_layers=4).fit(texts, labels)
