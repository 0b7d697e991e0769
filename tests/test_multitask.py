import pickle

import joblib
import numpy as np
import pytest
import torch
from conftest import FAMILIES
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from test_examples import labels, ratings, tags
from transformers import AutoModel

from prefixembed import (
    MultiTaskEncoder,
    PrefixBank,
    PrefixEncoder,
    load_backbone,
)
from prefixembed._fit import fine_tuning


def make(folder, **params):
    settings = {
        "max_epochs": 4,
        "batch_size": 8,
        "learning_rate": 2e-3,
        "head_learning_rate": 2e-2,
        "max_length": 64,
        "random_state": 0,
        "dtype": "float32",
        "device": "cpu",
    }
    return MultiTaskEncoder(folder, **(settings | params))


def three_tasks():
    texts, has = labels(80)
    return {"good": (texts, has[:, 0]), "stars": ratings(80), "words": tags(80)}


OBJECTIVES = {"stars": "regression", "words": "token_classification"}


@pytest.fixture(scope="module")
def fitted(tiny):
    return make(tiny("bert"), objectives=OBJECTIVES, max_epochs=8).fit(three_tasks())


def test_tasks_of_several_kinds_are_learned_together(fitted):
    texts, has = labels(40, seed=1)
    assert fitted.score(texts, has[:, 0], "good") > 0.9
    assert fitted.score(*ratings(40, seed=1), "stars") > 0.5
    assert fitted.score(*tags(20, seed=1), "words") > 0.9
    assert fitted.predict_proba(texts, "good").shape == (40, 2)
    for name, metric in (("good", "accuracy"), ("stars", "r2"), ("words", "accuracy")):
        for figure in ("valid_loss", f"valid_{metric}"):
            assert len(fitted.history_[f"{figure}[{name}]"]) == len(fitted.history_["epoch"])
    own = [fitted.history_[f"valid_loss[{name}]"] for name in fitted.heads_]
    np.testing.assert_allclose(fitted.history_["valid_loss"], np.mean(own, axis=0))


def test_the_original_backbone_is_left_alone(fitted, tiny):
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
def test_it_is_saved_as_a_backbone_that_prefixes_sit_on(fitted, tmp_path):
    folder = tmp_path / "tuned"
    fitted.save(folder)
    backbone = load_backbone(folder, dtype="float32", device="cpu")
    assert backbone.fingerprint == fitted.backbone_.fingerprint
    texts = ["a joy", "", "dull mess"]
    bare = PrefixBank({}, backbone=str(folder), dtype="float32", device="cpu", max_length=64)
    np.testing.assert_allclose(bare.transform(texts), fitted.transform(texts), atol=1e-6)
    encoder = PrefixEncoder(
        str(folder), max_epochs=2, max_length=64, learning_rate=0.05, random_state=0,
        dtype="float32", device="cpu",
    )  # fmt: skip
    data, has = labels(40)
    bank = PrefixBank({"a": encoder.fit(data, has[:, 1])}, dtype="float32", device="cpu")
    assert bank.transform(texts).shape == (3, 32)
    assert not np.allclose(bank.transform(texts), fitted.transform(texts), atol=1e-3)


def test_random_state_repeats_and_dropout_leaves_the_global_state_alone(tiny):
    tasks = {"good": three_tasks()["good"]}
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    one, same, other = (
        make(tiny("bert"), max_epochs=1, random_state=seed).fit(tasks) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.rand(2), expected)
    texts = ["a joy", "a bore"]
    np.testing.assert_array_equal(one.transform(texts), same.transform(texts))
    assert not np.allclose(one.transform(texts), other.transform(texts))
    assert one.history_["train_loss"] == same.history_["train_loss"]


def test_one_task_is_plainfine_tuning(tiny):
    texts, has = labels(80)
    encoder = make(tiny("bert")).fit({"good": (texts, has[:, 0])})
    assert encoder.score(texts, has[:, 0]) > 0.9
    assert "valid_accuracy" in encoder.history_
    np.testing.assert_array_equal(encoder.predict(texts), encoder.predict(texts, "good"))


def test_it_begins_a_pipeline_and_survives_files(fitted, tmp_path):
    texts, has = labels(40)
    vectors = fitted.transform(texts)
    for copied in (
        pickle.loads(pickle.dumps(fitted)),
        joblib.load(joblib.dump(fitted, tmp_path / "a.joblib")[0]),
    ):
        np.testing.assert_allclose(copied.transform(texts), vectors, atol=1e-6)
        np.testing.assert_array_equal(copied.predict(texts, "good"), fitted.predict(texts, "good"))
    head = make_pipeline(fitted, LogisticRegression())
    head[-1].fit(head[:-1].transform(texts), has[:, 0])
    assert head.score(texts, has[:, 0]) > 0.9
    fresh = clone(fitted)
    with pytest.raises(NotFittedError):
        fresh.transform(texts)
    assert list(fitted.get_feature_names_out())[:2] == ["multitaskencoder0", "multitaskencoder1"]


def test_mixed_precision_multiplies_in_bfloat16_and_is_close_to_float32(tiny):
    tasks = {"good": three_tasks()["good"]}
    exact, mixed = (
        make(tiny("bert"), max_epochs=1, dtype=dtype).fit(tasks).history_["train_loss"]
        for dtype in ("float32", "bfloat16")
    )
    assert exact != mixed
    np.testing.assert_allclose(exact, mixed, rtol=0.05)


def test_dropout_is_on_in_training_and_off_in_validation(tiny, monkeypatch):
    modes = {"train": [], "valid": []}
    for name, key in (("encode_batch", "train"), ("embed_tokens", "valid")):
        real = getattr(fine_tuning, name)

        def watch(backbone, *args, key=key, real=real):
            modes[key].append(backbone.model.training)
            return real(backbone, *args)

        monkeypatch.setattr(fine_tuning, name, watch)
    make(tiny("bert"), max_epochs=1).fit({"good": three_tasks()["good"]})
    assert set(modes["train"]) == {True} and set(modes["valid"]) == {False}


def test_a_folder_that_is_in_use_is_not_written_over_in_place(fitted, tiny, tmp_path):
    other = make(tiny("bert"), max_epochs=1).fit({"good": three_tasks()["good"]})
    other.save(tmp_path)
    used = load_backbone(tmp_path, dtype="float32", device="cpu")
    before = {k: v.clone() for k, v in used.model.state_dict().items()}
    fitted.save(tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in used.model.state_dict().items())
    again = load_backbone(tmp_path, dtype="float32", device="cpu")
    assert again.fingerprint == fitted.backbone_.fingerprint != used.fingerprint
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_heads_read_what_they_were_trained_on(tiny):
    texts, has = labels(40)
    encoder = make(tiny("bert"), max_epochs=1).fit({"good": (texts, has[:, 0])})
    before = encoder.predict_proba(texts)
    encoder.set_params(pooling="cls", pooled_layers=2, max_length=32)
    np.testing.assert_array_equal(encoder.predict_proba(texts), before)


def test_as_many_steps_for_every_task(tiny):
    tasks = {"a": labels(40), "b": labels(8)}
    tasks = {name: (texts, has[:, 0]) for name, (texts, has) in tasks.items()}
    encoder = make(tiny("bert"), temperature=np.inf, max_epochs=1, early_stopping=False)
    assert encoder.fit(tasks).history_["epoch"] == [1]


def test_a_regression_has_no_probabilities_and_weights_count(fitted):
    with pytest.raises(ValueError, match="a regression has no probabilities"):
        fitted.predict_proba(["a"], "stars")
    texts, has = labels(20)
    wrong = fitted.predict(texts, "good") != has[:, 0]
    assert fitted.score(texts, has[:, 0], "good", sample_weight=1.0 - wrong) == 1


def test_what_does_not_fit_a_pipeline_says_so(fitted):
    with pytest.raises(TypeError, match=r"call fit\(tasks\).* FrozenEstimator"):
        clone(fitted).fit_transform(["a"])
    frozen = make_pipeline(FrozenEstimator(fitted), LogisticRegression())
    texts, has = labels(40)
    assert frozen.fit(texts, has[:, 0]).score(texts, has[:, 0]) > 0.9
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
def test_wrong_tasks_are_named(tiny, params, tasks, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(tiny("bert"), **params).fit(tasks)


def test_an_unknown_task_is_named(fitted):
    with pytest.raises(ValueError, match=r"task must be one of \['good', 'stars', 'words'\], got"):
        fitted.predict(["a"], "nothing")
    with pytest.raises(ValueError, match="got None"):
        fitted.predict(["a"])


@pytest.mark.filterwarnings("ignore:the training loss is stuck")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_fine_tuned_and_carries_prefixes(tiny, family, tmp_path):
    where = {"device": "cpu", "dtype": "float32", "max_length": 64, "cache": None}
    params = {"max_epochs": 2, "random_state": 0, **where}
    texts, labels = ["a film", "dull", "of joy", "bore"] * 4, [0, 1, 0, 1] * 4
    before = PrefixBank({}, backbone=tiny(family), **where)
    rival = MultiTaskEncoder(tiny(family), **params).fit({"a": (texts, labels)})
    assert np.abs(rival.transform(texts) - before.transform(texts)).max() > 1e-5
    rival.save(tmp_path)
    bank = PrefixBank({}, backbone=str(tmp_path), **where)
    np.testing.assert_array_equal(bank.transform(texts), rival.transform(texts))
    assert np.isfinite(PrefixEncoder(str(tmp_path), **params).fit_transform(texts, labels)).all()
