"""How a backbone pools by itself, as sentence-transformers writes it down."""

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

CPU = {"device": "cpu", "dtype": "float32", "cache": None}
OURS = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}


def load(folder):
    return load_backbone(str(folder), dtype="float32", device="cpu")


@pytest.fixture
def sentence_model(tiny, tmp_path):
    """Write a model of sentence-transformers on a tiny backbone."""

    def write(mode, *more, family="bert"):
        transformer = Transformer(tiny(family), max_seq_length=64)
        model = SentenceTransformer(modules=[transformer, Pooling(32, mode), *more], device="cpu")
        model.save(str(tmp_path / "model"))
        return tmp_path / "model", model

    return write


@pytest.mark.parametrize("mode", OURS)
@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_a_bare_bank_gives_what_sentence_transformers_gives(sentence_model, mode, family):
    folder, model = sentence_model(mode, family=family)
    assert load(folder).pooling == OURS[mode]
    bank = PrefixBank({}, backbone=str(folder), max_length=64, **CPU)
    np.testing.assert_allclose(bank.transform(TEXTS), model.encode(TEXTS), atol=1e-5)
    # What the user says goes before.
    other = "mean" if mode == "cls" else "cls"
    apart = bank.set_params(pooling=other).transform(TEXTS) - model.encode(TEXTS)
    assert np.abs(apart).max() > 0.01


def test_old_files_say_the_same(tiny, tmp_path, minilm):
    folder = shutil.copytree(tiny(), tmp_path / "old")
    (folder / "1_Pooling").mkdir()
    shutil.copy(f"{minilm}/modules.json", folder)
    config = json.loads(Path(minilm, "1_Pooling", "config.json").read_text())
    for name in ("pooling_mode_mean_tokens", "pooling_mode_cls_token"):
        config[name] = not config[name]
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert load(folder).pooling == "cls"
    assert load(minilm).pooling == "mean"


def test_without_files_decoders_take_the_last_token(tiny):
    assert {load(tiny(family)).pooling for family in DECODERS} == {"last"}
    assert {load(tiny(family)).pooling for family in ("bert", "mpnet")} == {"mean"}


def test_prefixes_and_fine_tuning_take_it_and_keep_it(sentence_model, tmp_path):
    folder, _ = sentence_model("max")
    texts, labels = ["a film", "dull", "of joy", "bore"] * 4, [0, 1, 0, 1] * 4
    params = {"max_epochs": 3, "random_state": 0, "max_length": 64, **CPU}
    encoder = PrefixEncoder(str(folder), **params).fit(texts, labels)
    assert encoder.pooling == "auto" and encoder.prefix_.pooling == "max"
    rival = MultiTaskEncoder(str(folder), **params).fit({"a": (texts, labels)})
    rival.save(tmp_path / "tuned")
    assert load(tmp_path / "tuned").pooling == "max"
    theirs = SentenceTransformer(str(tmp_path / "tuned"), device="cpu")
    theirs.max_seq_length = 64
    np.testing.assert_allclose(theirs.encode(TEXTS), rival.transform(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "more", "message"),
    [
        ("weightedmean", [], "trained with pooling weightedmean, which is none of .* 'mean' is"),
        (("cls", "max"), [], "trained with pooling cls and max, which is none of"),
        ("cls", [Dense(32, 8), Normalize()], "has Dense behind the transformer, which is not used"),
    ],
)
def test_what_there_is_none_of_here_is_said(sentence_model, mode, more, message):
    folder, _ = sentence_model(mode, *more)
    with pytest.warns(UserWarning, match=message):
        load(folder)


def test_normalize_needs_no_warning(sentence_model):
    folder, _ = sentence_model("cls", Normalize())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(folder).pooling == "cls"


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\x00"])
def test_a_damaged_file_is_named(sentence_model, content):
    folder, _ = sentence_model("cls")
    (folder / "modules.json").write_text(content)
    with pytest.raises(ValueError, match=r"modules\.json of backbone .* cannot be read"):
        load(folder)


@pytest.mark.parametrize("content", ["3", "{}", "[]", "[3]", '[{"type": 5}]'])
def test_a_file_that_says_nothing_leaves_the_default(sentence_model, content):
    folder, _ = sentence_model("cls")
    (folder / "modules.json").write_text(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load(folder).pooling == "mean"
