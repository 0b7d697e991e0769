"""MultiTaskEncoder, and rules that it shares with PrefixEncoder and PrefixBank."""

import copy
import pickle
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from conftest import FAMILIES
from helpers import (
    OBJECTIVES,
    labels,
    make_encoder,
    make_multitask,
    ratings,
    tags,
    three_tasks,
)
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import AutoModel

from prefixembed import MultiTaskEncoder, PrefixBank, PrefixEncoder, load_backbone
from prefixembed._fit import fine_tuning, learning


@pytest.fixture(scope="module")
def fitted(tiny):
    return make_multitask(tiny("bert"), objectives=OBJECTIVES, max_steps=216).fit(three_tasks())


def test_tasks_with_different_objectives_are_learned_together(fitted):
    texts, present = labels(40, seed=1)
    assert fitted.score(texts, present[:, 0], "good") > 0.9
    assert fitted.score(*ratings(40, seed=1), "stars") > 0.5
    assert fitted.score(*tags(20, seed=1), "words") > 0.9
    assert fitted.predict_proba(texts, "good").shape == (40, 2)
    for name, metric in (("good", "accuracy"), ("stars", "r2"), ("words", "accuracy")):
        for figure in ("valid_loss", f"valid_{metric}"):
            assert len(fitted.history_[f"{figure}[{name}]"]) == len(fitted.history_["step"])
    own = [fitted.history_[f"valid_loss[{name}]"] for name in fitted.heads_]
    np.testing.assert_allclose(fitted.history_["valid_loss"], np.mean(own, axis=0))


def test_original_backbone_does_not_change(fitted, tiny):
    original = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    before = AutoModel.from_pretrained(tiny("bert"), add_pooling_layer=False).state_dict()
    assert all(torch.equal(v, before[k]) for k, v in original.model.state_dict().items())
    assert not original.model.training
    assert not any(p.requires_grad for p in original.model.parameters())
    mine = fitted.backbone_
    assert mine.fingerprint != original.fingerprint
    assert not mine.model.training
    assert not any(p.requires_grad for p in mine.model.parameters())
    moved = [
        name for name, v in mine.model.state_dict().items() if not torch.equal(v, before[name])
    ]
    assert len(moved) > 0.9 * len(before)


@pytest.mark.filterwarnings("ignore:the training loss is stuck")
def test_saved_backbone_can_be_loaded_and_carries_prefixes(fitted, tmp_path):
    folder = tmp_path / "tuned"
    fitted.save(folder)
    backbone = load_backbone(folder, dtype="float32", device="cpu")
    assert backbone.fingerprint == fitted.backbone_.fingerprint
    texts = ["a joy", "", "dull mess"]
    bare = PrefixBank({}, backbone=str(folder), dtype="float32", device="cpu", max_length=64)
    np.testing.assert_allclose(bare.transform(texts), fitted.transform(texts), atol=1e-6)
    encoder = PrefixEncoder(
        str(folder), max_steps=4, max_length=64, learning_rate=0.05, random_state=0,
        dtype="float32", device="cpu",
    )  # fmt: skip
    data, present = labels(40)
    bank = PrefixBank({"a": encoder.fit(data, present[:, 1])}, dtype="float32", device="cpu")
    assert bank.transform(texts).shape == (3, 32)
    assert not np.allclose(bank.transform(texts), fitted.transform(texts), atol=1e-3)


def test_equal_random_states_repeat_and_torch_keeps_its_state(tiny):
    tasks = {"good": three_tasks()["good"]}
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    encoders = [make_multitask(tiny("bert"), max_steps=9, random_state=k) for k in (0, 0, 1)]
    one, same, other = (encoder.fit(tasks) for encoder in encoders)
    assert torch.equal(torch.rand(2), expected)
    texts = ["a joy", "a bore"]
    np.testing.assert_array_equal(one.transform(texts), same.transform(texts))
    assert not np.allclose(one.transform(texts), other.transform(texts))
    assert one.history_["train_loss"] == same.history_["train_loss"]


def test_one_task_needs_no_name(tiny):
    texts, present = labels(80)
    encoder = make_multitask(tiny("bert")).fit({"good": (texts, present[:, 0])})
    assert encoder.score(texts, present[:, 0]) > 0.9
    assert "valid_accuracy" in encoder.history_
    np.testing.assert_array_equal(encoder.predict(texts), encoder.predict(texts, "good"))


def test_fitted_encoder_works_in_a_pipeline_and_after_pickling(fitted, tmp_path):
    texts, present = labels(40)
    vectors = fitted.transform(texts)
    for copied in (
        pickle.loads(pickle.dumps(fitted)),
        joblib.load(joblib.dump(fitted, tmp_path / "a.joblib")[0]),
    ):
        np.testing.assert_allclose(copied.transform(texts), vectors, atol=1e-6)
        np.testing.assert_array_equal(copied.predict(texts, "good"), fitted.predict(texts, "good"))
    head = make_pipeline(fitted, LogisticRegression())
    head[-1].fit(head[:-1].transform(texts), present[:, 0])
    assert head.score(texts, present[:, 0]) > 0.9
    fresh = clone(fitted)
    with pytest.raises(NotFittedError):
        fresh.transform(texts)
    assert list(fitted.get_feature_names_out())[:2] == ["multitaskencoder0", "multitaskencoder1"]


def test_training_in_mixed_precision_is_close_to_float32(tiny):
    tasks = {"good": three_tasks()["good"]}
    exact, mixed = (
        make_multitask(tiny("bert"), max_steps=9, dtype=dtype).fit(tasks).history_["train_loss"]
        for dtype in ("float32", "bfloat16")
    )
    assert exact != mixed
    np.testing.assert_allclose(np.mean(exact), np.mean(mixed), rtol=0.05)


def test_dropout_is_active_in_training_but_not_in_validation(tiny, monkeypatch):
    modes = {"train": [], "valid": []}
    for name, key in (("encode_batch", "train"), ("embed_tokens", "valid")):
        real = getattr(fine_tuning, name)

        def watch(backbone, *args, key=key, real=real):
            modes[key].append(backbone.model.training)
            return real(backbone, *args)

        monkeypatch.setattr(fine_tuning, name, watch)
    make_multitask(tiny("bert"), max_steps=9).fit({"good": three_tasks()["good"]})
    assert set(modes["train"]) == {True} and set(modes["valid"]) == {False}


def test_saving_over_a_loaded_backbone_does_not_change_it(fitted, tiny, tmp_path):
    other = make_multitask(tiny("bert"), max_steps=9).fit({"good": three_tasks()["good"]})
    other.save(tmp_path)
    used = load_backbone(tmp_path, dtype="float32", device="cpu")
    before = {k: v.clone() for k, v in used.model.state_dict().items()}
    fitted.save(tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in used.model.state_dict().items())
    again = load_backbone(tmp_path, dtype="float32", device="cpu")
    assert again.fingerprint == fitted.backbone_.fingerprint != used.fingerprint
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.filterwarnings("ignore:the training loss is stuck")
def test_predictions_do_not_depend_on_parameters_changed_after_fit(tiny):
    texts, present = labels(40)
    encoder = make_multitask(tiny("bert"), max_steps=5).fit({"good": (texts, present[:, 0])})
    before = encoder.predict_proba(texts)
    encoder.set_params(pooling="cls", pooled_layers=2, max_length=32)
    np.testing.assert_array_equal(encoder.predict_proba(texts), before)


def test_infinite_temperature_accepts_tasks_of_different_sizes(tiny):
    tasks = {"a": labels(40), "b": labels(8)}
    tasks = {name: (texts, present[:, 0]) for name, (texts, present) in tasks.items()}
    encoder = make_multitask(tiny("bert"), temperature=np.inf, max_steps=6, early_stopping=False)
    assert encoder.fit(tasks).history_["step"] == list(range(1, 7))


def test_regression_has_no_probabilities_and_score_uses_weights(fitted):
    with pytest.raises(ValueError, match="a regression has no probabilities"):
        fitted.predict_proba(["a"], "stars")
    texts, present = labels(20)
    wrong = fitted.predict(texts, "good") != present[:, 0]
    assert fitted.score(texts, present[:, 0], "good", sample_weight=1.0 - wrong) == 1


def test_pipelines_need_a_frozen_encoder(fitted):
    with pytest.raises(TypeError, match=r"call fit\(tasks\).* FrozenEstimator"):
        clone(fitted).fit_transform(["a"])
    frozen = make_pipeline(FrozenEstimator(fitted), LogisticRegression())
    texts, present = labels(40)
    assert frozen.fit(texts, present[:, 0]).score(texts, present[:, 0]) > 0.9
    assert "tasks" not in fitted.get_metadata_routing().fit.requests


@pytest.mark.parametrize(
    ("params", "tasks", "message"),
    [
        ({}, {}, "tasks must have one source task or more, got none"),
        ({}, [1], r"tasks must be a dict of names to tuples \(X, y\), got \[1\]"),
        ({}, {"a": (["x"],)}, r"tasks\['a'\] must be a tuple .* got tuple of 1"),
        ({"objectives": {"b": "regression"}}, {"a": (["x"], [1])}, "objectives has 'b'"),
        ({"objectives": {"a": "nothing"}}, {"a": (["x"], [1])}, "objectives has 'a': 'nothing'"),
        ({"temperature": 0.5}, {"a": (["x", "y"], [0, 1])}, "'temperature' parameter"),
        ({}, {"a": (["x", 3], [0, 1])}, r"X\[1\] must be a str, got 3"),
    ],
)
def test_invalid_tasks_are_named(tiny, params, tasks, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_multitask(tiny("bert"), **params).fit(tasks)


def test_unknown_task_is_named(fitted):
    with pytest.raises(ValueError, match=r"task must be one of \['good', 'stars', 'words'\], got"):
        fitted.predict(["a"], "nothing")
    with pytest.raises(ValueError, match="got None"):
        fitted.predict(["a"])


def test_backbone_may_be_a_path(tiny, fitted, tmp_path):
    tasks = {"good": three_tasks()["good"]}
    encoder = make_multitask(Path(tiny("bert")), max_steps=9).fit(tasks)
    same = make_multitask(tiny("bert"), max_steps=9).fit(tasks)
    texts = ["a joy", "a bore"]
    np.testing.assert_array_equal(encoder.transform(texts), same.transform(texts))
    again = pickle.loads(pickle.dumps(encoder))
    assert again.backbone == Path(tiny("bert"))
    again.save(Path(tmp_path, "tuned"))
    bank = PrefixBank({}, backbone=Path(tmp_path, "tuned"), dtype="float32", device="cpu")
    np.testing.assert_allclose(bank.transform(texts), encoder.transform(texts), atol=1e-6)


# Rules for both encoders


PAIRS = [("a film", "of joy"), ("a film", "a bore")] * 4
CHOICES = [("a film", ["of joy", "a bore"])] * 8
SENTENCES = [["a", "joy"], ["a", "bore"]] * 4
CLASSES = [0, 1] * 4
CLASSES_OF_WORDS = [["x", "y"], ["x", "z"]] * 4


def fit_encoder(folder, objective, X, y, **params):
    return make_encoder(folder, objective=objective, early_stopping=False, **params).fit(X, y)


def fit_multitask(folder, objective, X, y, **params):
    tasks = {"valid": (["a joy", "a bore"] * 4, CLASSES), "a": (X, y)}
    params |= {"objectives": {"a": objective}, "early_stopping": False}
    return make_multitask(folder, **params).fit(tasks)


@pytest.fixture
def no_training(monkeypatch):
    """Fail the test when training starts."""

    def fail(*args, **kwargs):
        pytest.fail("training has started")

    monkeypatch.setattr(learning, "optimize", fail)


@pytest.mark.parametrize("fit", [fit_encoder, fit_multitask])
@pytest.mark.parametrize(
    ("params", "objective", "X", "y", "message"),
    [
        ({"on_truncate": "window", "pairs": "joint"}, "classification", PAIRS, CLASSES,
         "on_truncate='window' .* pairs='joint'"),
        # A backbone without files of sentence-transformers reads pairs jointly.
        ({"on_truncate": "window"}, "classification", PAIRS, CLASSES, "on_truncate='window'"),
        ({"on_truncate": "window"}, "multiple_choice", CHOICES, CLASSES, "on_truncate='window'"),
        ({"on_truncate": "window"}, "token_classification", SENTENCES, CLASSES_OF_WORDS,
         "on_truncate='window' .* per word"),
        ({"prompt": "query: "}, "token_classification", SENTENCES, CLASSES_OF_WORDS, "prompt must"),
        # What transform is to return counts, also where training reads texts.
        ({"on_truncate": "window", "output": "words"}, "classification", ["a", "b"] * 4, CLASSES,
         "on_truncate='window' .* per word"),
        ({"prompt": "query: ", "output": "words"}, "classification", ["a", "b"] * 4, CLASSES,
         "prompt must"),
        ({"pooled_layers": 4}, "classification", PAIRS, CLASSES, "pooled_layers must be at most"),
        ({"max_length": 81}, "classification", PAIRS, CLASSES, "max_length must lie between"),
    ],
)  # fmt: skip
def test_reading_that_cannot_work_is_refused_before_training(
    tiny, no_training, fit, params, objective, X, y, message
):
    with pytest.raises(ValueError, match=message):
        fit(tiny("bert"), objective, X, y, **params)


@pytest.mark.parametrize("fit", [fit_encoder, fit_multitask])
@pytest.mark.parametrize(
    "params",
    [{"on_truncate": "window", "pairs": "apart"}, {"pooled_layers": 3}, {"max_length": 80}],
)
def test_reading_that_works_is_trained_on(tiny, no_training, fit, params):
    with pytest.raises(pytest.fail.Exception, match="training has started"):
        fit(tiny("bert"), "classification", PAIRS, CLASSES, **params)


KINDS = {"single texts": ["a joy", "a bore"] * 4, "pairs of texts": PAIRS}


@pytest.fixture(scope="module", params=["joint", "apart"])
def by_kind(tiny, request):
    """Return a PrefixEncoder per kind of texts, and a MultiTaskEncoder with a task per kind."""
    params = {"pairs": request.param, "max_steps": 1, "early_stopping": False}
    encoders = {kind: make_encoder(tiny("bert"), **params) for kind in KINDS}
    with pytest.warns(UserWarning, match="stuck at chance"):
        encoders = {kind: encoders[kind].fit(X, CLASSES) for kind, X in KINDS.items()}
    tasks = {kind: (X, CLASSES) for kind, X in KINDS.items()}
    return encoders, make_multitask(tiny("bert"), **params).fit(tasks)


@pytest.mark.parametrize(("kind", "other"), [tuple(KINDS), tuple(KINDS)[::-1]])
def test_predictions_need_the_kind_of_texts_that_was_fitted(by_kind, kind, other):
    encoders, multitask = by_kind
    message = f"was fitted on {kind}, got {other}"
    for method in ("predict", "predict_proba", "decision_function"):
        assert len(getattr(encoders[kind], method)(KINDS[kind])) == 8
        with pytest.raises(ValueError, match=f"this PrefixEncoder {message}"):
            getattr(encoders[kind], method)(KINDS[other])
    for method in ("predict", "predict_proba"):
        assert len(getattr(multitask, method)(KINDS[kind], kind)) == 8
        with pytest.raises(ValueError, match=f"task '{kind}' {message}"):
            getattr(multitask, method)(KINDS[other], kind)
    assert 0 <= encoders[kind].score(KINDS[kind], CLASSES) <= 1
    assert 0 <= multitask.score(KINDS[kind], CLASSES, kind) <= 1
    with pytest.raises(ValueError, match=f"this PrefixEncoder {message}"):
        encoders[kind].score(KINDS[other], CLASSES)
    with pytest.raises(ValueError, match=f"task '{kind}' {message}"):
        multitask.score(KINDS[other], CLASSES, kind)


def test_transform_takes_texts_and_pairs_after_any_fit(by_kind):
    encoders, multitask = by_kind
    for encoder in (*encoders.values(), multitask):
        width = 32 if encoder.pairs == "joint" else 96
        assert encoder.transform(KINDS["single texts"]).shape == (8, 32)
        assert encoder.transform(KINDS["pairs of texts"]).shape == (8, width)


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_data_frames_have_a_unique_name_per_column(by_kind, container):
    pytest.importorskip(container)
    encoders, multitask = by_kind
    banks = [encoder.as_bank() for encoder in (*encoders.values(), multitask)]
    for transformer in (*encoders.values(), multitask, *banks):
        framed = copy.copy(transformer).set_output(transform=container)
        for X in KINDS.values():
            vectors, frame = transformer.transform(X), framed.transform(X)
            assert type(frame).__module__.startswith(container)
            assert frame.shape == vectors.shape
            name = type(transformer).__name__.lower()
            assert list(frame.columns) == [f"{name}{k}" for k in range(vectors.shape[1])]
            np.testing.assert_array_equal(frame.to_numpy(), vectors)


@pytest.mark.filterwarnings("ignore:the training loss is stuck")
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_can_be_fine_tuned_and_carries_prefixes(tiny, family, tmp_path):
    where = {"device": "cpu", "dtype": "float32", "max_length": 64, "cache": None}
    params = {"max_steps": 2, "random_state": 0, **where}
    texts, labels = ["a film", "dull", "of joy", "bore"] * 4, [0, 1, 0, 1] * 4
    before = PrefixBank({}, backbone=tiny(family), **where)
    rival = MultiTaskEncoder(tiny(family), **params).fit({"a": (texts, labels)})
    assert np.abs(rival.transform(texts) - before.transform(texts)).max() > 1e-5
    rival.save(tmp_path)
    bank = PrefixBank({}, backbone=str(tmp_path), **where)
    np.testing.assert_array_equal(bank.transform(texts), rival.transform(texts))
    assert np.isfinite(PrefixEncoder(str(tmp_path), **params).fit_transform(texts, labels)).all()
