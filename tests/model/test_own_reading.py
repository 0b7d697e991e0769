"""The reading that a backbone was trained with, as files of sentence-transformers record it."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import DECODERS, TEXTS
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

from prefixembed import MultiTaskEncoder, PrefixBank, PrefixEncoder, load_backbone
from prefixembed.backbone import own_facts
from prefixembed.reading import Reading

CPU = {"device": "cpu", "dtype": "float32", "cache": None}
OURS = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}


def load(folder):
    return load_backbone(str(folder), dtype="float32", device="cpu")


@pytest.fixture
def sentence_model(tiny, tmp_path):
    """Return a function that writes a model of sentence-transformers on a tiny backbone."""

    def write(mode, *more, family="bert"):
        transformer = Transformer(tiny(family), max_seq_length=64)
        model = SentenceTransformer(modules=[transformer, Pooling(32, mode), *more], device="cpu")
        model.save(str(tmp_path / "model"))
        return tmp_path / "model", model

    return write


@pytest.mark.parametrize("mode", OURS)
@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_empty_bank_returns_the_vectors_of_sentence_transformers(sentence_model, mode, family):
    folder, model = sentence_model(mode, family=family)
    assert load(folder).reading.pooling == OURS[mode]
    bank = PrefixBank({}, backbone=str(folder), max_length=64, **CPU)
    np.testing.assert_allclose(bank.transform(TEXTS), model.encode(TEXTS), atol=1e-5)
    # A parameter takes precedence.
    other = "mean" if mode == "cls" else "cls"
    apart = bank.set_params(pooling=other).transform(TEXTS) - model.encode(TEXTS)
    assert np.abs(apart).max() > 0.01


def test_old_file_formats_are_read(tiny, tmp_path, minilm):
    folder = shutil.copytree(tiny(), tmp_path / "old")
    (folder / "1_Pooling").mkdir()
    shutil.copy(f"{minilm}/modules.json", folder)
    config = json.loads(Path(minilm, "1_Pooling", "config.json").read_text())
    for name in ("pooling_mode_mean_tokens", "pooling_mode_cls_token"):
        config[name] = not config[name]
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert load(folder).reading.pooling == "cls"
    assert load(minilm).reading.pooling == "mean"


def test_decoders_pool_the_last_token_by_default(tiny):
    assert {load(tiny(family)).reading.pooling for family in DECODERS} == {"last"}
    assert {load(tiny(family)).reading.pooling for family in ("bert", "mpnet")} == {"mean"}


@pytest.mark.filterwarnings("ignore:the training loss is stuck")
def test_training_uses_the_pooling_of_the_backbone(sentence_model, tmp_path):
    folder, _ = sentence_model("max")
    texts, labels = ["a film", "dull", "of joy", "bore"] * 4, [0, 1, 0, 1] * 4
    params = {"max_steps": 3, "random_state": 0, "max_length": 64, **CPU}
    encoder = PrefixEncoder(str(folder), **params).fit(texts, labels)
    assert encoder.pooling == "auto" and encoder.prefix_.reading.pooling == "max"
    rival = MultiTaskEncoder(str(folder), **params).fit({"a": (texts, labels)})
    rival.save(tmp_path / "tuned")
    assert load(tmp_path / "tuned").reading.pooling == "max"
    theirs = SentenceTransformer(str(tmp_path / "tuned"), device="cpu")
    theirs.max_seq_length = 64
    np.testing.assert_allclose(theirs.encode(TEXTS), rival.transform(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "more", "message"),
    [
        ("weightedmean", [], "trained with pooling weightedmean, which is not one of .* 'mean' is"),
        (("cls", "max"), [], "trained with pooling cls and max, which is not one of"),
        ("cls", [Dense(32, 8), Normalize()], "has Dense behind the transformer, which is not used"),
    ],
)
def test_unknown_modules_and_poolings_are_reported(sentence_model, mode, more, message):
    folder, _ = sentence_model(mode, *more)
    with pytest.warns(UserWarning, match=message):
        load(folder)


def test_normalize_needs_no_warning(sentence_model):
    folder, _ = sentence_model("cls", Normalize())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(folder).reading.pooling == "cls"


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\x00"])
def test_damaged_file_is_named(sentence_model, content):
    folder, _ = sentence_model("cls")
    (folder / "modules.json").write_text(content)
    with pytest.raises(ValueError, match=r"modules\.json of backbone .* cannot be read"):
        load(folder)


@pytest.mark.parametrize("content", ["3", "{}", "[]", "[3]", '[{"type": 5}]'])
def test_file_without_modules_leaves_the_default(sentence_model, content):
    folder, _ = sentence_model("cls")
    (folder / "modules.json").write_text(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load(folder).reading.pooling == "mean"


def test_length_limit_and_prompt_are_used(sentence_model):
    folder, model = sentence_model("mean")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    config = {"prompts": {"query": "find: ", "none": ""}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    backbone = load(folder)
    assert (backbone.reading.max_length, backbone.reading.prompt) == (16, "find: ")
    assert backbone.reading.pairs == "apart" and backbone.max_length == 64
    model = SentenceTransformer(str(folder), device="cpu")
    texts = ["a film", "", "a text of more than sixteen tokens"]
    bank = PrefixBank({}, backbone=folder, on_truncate="ignore", **CPU)
    np.testing.assert_allclose(bank.transform(texts), model.encode(texts), atol=1e-5)
    # Parameters take precedence.
    assert bank.set_params(max_length=64, prompt="").representation().reading.to_dict() == {
        "pooling": "mean", "max_length": 64, "pairs": "apart",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:the training loss is stuck")
def test_limit_is_respected_without_modules(tiny, tmp_path):
    folder = shutil.copytree(tiny(), tmp_path / "limited")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 24}')
    assert load(folder).reading == Reading("mean", 24, pairs="joint")
    texts, labels = ["a film", "dull", "of joy", "bore"] * 4, [0, 1, 0, 1] * 4
    params = {"max_steps": 1, "random_state": 0, "early_stopping": False, **CPU}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = PrefixEncoder(folder, **params).fit(texts, labels)
    assert encoder.prefix_.reading.max_length == 24
    rival = MultiTaskEncoder(folder, **params).fit({"a": (texts, labels)})
    assert rival.as_bank().representation().reading.max_length == 24


def test_pairs_are_read_apart_if_the_backbone_embeds_sentences(sentence_model, tiny):
    folder, _ = sentence_model("mean")
    assert load(folder).reading.pairs == "apart"
    assert load(tiny()).reading.pairs == "joint"
    for backbone, kind in ((folder, "apart"), (tiny(), "joint")):
        params = {"max_steps": 1, "random_state": 0, "early_stopping": False, **CPU}
        encoder = PrefixEncoder(backbone, **params)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoder.fit([("a", "b"), ("c", "d")] * 4, [0, 1] * 4)
        assert encoder.prefix_.reading.pairs == kind
        assert encoder.transform([("a", "b")]).shape == (1, 96 if kind == "apart" else 32)


def test_reading_of_a_backbone_needs_no_weights(sentence_model, tiny, tmp_path):
    folder, _ = sentence_model("max")
    for source in (folder, tiny("roberta")):
        copied = tmp_path / f"copy of {Path(source).name}"
        shutil.copytree(source, copied)
        (copied / "model.safetensors").unlink()
        expected = load(source)
        assert own_facts(str(copied)) == (32, expected.reading)
