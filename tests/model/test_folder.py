"""Folders of backbones: missing, moved, damaged and overwritten in place."""

import json
import os
import pickle
import shutil
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from conftest import make_backbone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from prefixembed import PrefixBank, PrefixEncoder, load_backbone, release_backbones
from prefixembed.backbone import own_facts

CPU = {"dtype": "float32", "device": "cpu"}


@pytest.fixture
def copied(tiny, tmp_path, fresh_backbones):
    return Path(shutil.copytree(tiny(), tmp_path / "bert"))


def both_ways(folder):
    """Return ways to read files of a backbone: with its weights and without."""
    return lambda: load_backbone(folder, **CPU), lambda: own_facts(os.fspath(folder))


def test_folder_without_a_configuration_is_named_with_those_inside(copied):
    (copied.parent / "hub" / "snapshots").mkdir(parents=True)
    shutil.copytree(copied, copied.parent / "hub" / "snapshots" / "0a")
    (copied.parent / "1_Pooling").mkdir()
    (copied.parent / "1_Pooling" / "config.json").write_text("{}")  # no backbone's
    for read in both_ways(copied.parent):
        with pytest.raises(FileNotFoundError) as error:
            read()
        assert str(error.value) == (
            f"backbone '{copied.parent}' is a folder without config.json; "
            f"folders in it that have one: '{copied}'"
        )
        with pytest.raises(FileNotFoundError, match=rf"have one: '{copied.parent}/hub/snap.*/0a'"):
            load_backbone(copied.parent / "hub")
    (copied / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=rf"'{copied}' is a folder .* have one: none"):
        load_backbone(copied)


def test_file_is_no_backbone(copied):
    for read in both_ways(copied / "model.safetensors"):
        with pytest.raises(NotADirectoryError, match=r"must be a folder .*model\.safetensors'"):
            read()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    file=st.sampled_from(["model.safetensors", "tokenizer.json", "config.json",
                          "tokenizer_config.json", "pytorch_model.bin", "model-00002"]),
    share=st.floats(0, 0.999),
)  # fmt: skip
def test_half_a_file_is_named(backbones_by_form, tmp_path_factory, file, share):
    form = file if file in backbones_by_form else "model.safetensors"
    folder = shutil.copytree(backbones_by_form[form], tmp_path_factory.mktemp("cut") / "bert")
    (path,) = folder.glob(f"{file}*")
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(ValueError, match="is damaged") as error:
        load_backbone(folder, **CPU)
    assert f"{str(path)!r} of backbone {str(folder)!r} is damaged: " in str(error.value)


@pytest.fixture(scope="module")
def backbones_by_form(tiny, tmp_path_factory):
    """Return folders with the weights in one safetensors file, in several, and in a pickle."""
    whole, pickled, shards = Path(tiny()), tmp_path_factory.mktemp("bin"), None
    weights = load_file(whole / "model.safetensors")
    shards = tmp_path_factory.mktemp("shards")
    for folder in (pickled, shards):
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        (folder / "model.safetensors").unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    names = {name: f"model-0000{1 + k % 3}-of-00003.safetensors" for k, name in enumerate(weights)}
    for shard in set(names.values()):
        some = {name: weights[name] for name in weights if names[name] == shard}
        save_file(some, shards / shard, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": names}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    for folder in (pickled, shards):
        fingerprint = load_backbone(folder, **CPU).fingerprint
        assert fingerprint == load_backbone(whole, **CPU).fingerprint
    return {"model.safetensors": whole, "pytorch_model.bin": pickled, "model-00002": shards}


def test_missing_shard_is_named(backbones_by_form, tmp_path):
    folder = shutil.copytree(backbones_by_form["model-00002"], tmp_path / "shards")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(OSError, match=rf"backbone '{folder}' could not be .*model-00002-of"):
        load_backbone(folder, **CPU)


@pytest.mark.parametrize("how", ["bank", "empty bank", "pickled bank", "pickled encoder", "joblib"])
def test_moved_backbone_is_an_error_that_names_the_parameter(copied, random_prefix, tmp_path, how):
    prefix = random_prefix(copied)
    made = {
        "bank": PrefixBank({"a": prefix}, **CPU),
        "empty bank": PrefixBank({}, backbone=copied, **CPU),
        "pickled bank": PrefixBank({"a": prefix}, **CPU),
        "pickled encoder": PrefixEncoder.from_prefix(prefix, **CPU),
        "joblib": PrefixEncoder.from_prefix(prefix, **CPU),
    }[how]
    expected = made.transform(["a text"])
    if how == "joblib":
        joblib.dump(made, tmp_path / "dumped")
    elif how.startswith("pickled"):
        content = pickle.dumps(made)
    else:
        made.save(tmp_path / "saved")
    release_backbones()
    moved = copied.rename(tmp_path / "moved")
    if how == "joblib":
        loaded = joblib.load(tmp_path / "dumped")
    elif how.startswith("pickled"):
        loaded = pickle.loads(content)
    else:
        loaded = PrefixBank.load(tmp_path / "saved", **CPU)
    with pytest.raises(
        FileNotFoundError, match=r"no backbone folder '.*bert'.*\(backbone=\.\.\.\)"
    ):
        loaded.transform(["a text"])
    np.testing.assert_array_equal(loaded.set_params(backbone=moved).transform(["a text"]), expected)


@pytest.mark.parametrize("name", ["no-such-backbone", "models/bert"])
def test_name_that_is_not_in_the_cache_offline_says_what_works(name):
    for read in both_ways(name):
        with pytest.raises(OSError, match=r"backbone=.*prefixembed\.tasks\.demo_backbone\(\)") as e:
            read()
        assert f"backbone {name!r} is not a folder, and could not be" in str(e.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["/gone/roberta", "./roberta", "../roberta", "a/b/c", "~/roberta"])
    | st.text(st.sampled_from("ab/.\\~"), min_size=1)
)
def test_what_can_be_no_name_on_the_hub_is_said_to_be_a_folder_that_is_missing(tmp_path, name):
    with pytest.raises(OSError, match=r"backbone=") as error:
        load_backbone(os.path.join(str(tmp_path / "gone"), name.lstrip("/")), **CPU)
    assert "no backbone folder" in str(error.value)


def overwrite_in_place(source, target):
    """Write into the files that are there, as a plain copy does."""
    for path in Path(source).iterdir():
        with open(Path(target) / path.name, "r+b") as file:
            file.truncate()
            file.write(path.read_bytes())


@pytest.mark.parametrize("how", [overwrite_in_place, "replace"])
def test_folder_that_is_overwritten_is_loaded_again(
    copied, random_prefix, tmp_path, how, fresh_backbones
):
    other = make_backbone(tmp_path / "other", "bert", seed=1)
    old, prefix = load_backbone(copied, **CPU), random_prefix(copied)
    empty = PrefixBank({}, backbone=copied, **CPU)
    bank = PrefixBank({"a": prefix}, cache=None, **CPU)
    before = empty.transform(["a text"])
    if how == "replace":
        shutil.rmtree(copied)
        shutil.copytree(other, copied)
    else:
        how(other, copied)
    new = load_backbone(copied, **CPU)
    assert new is not old and new is load_backbone(copied, **CPU)
    assert new.fingerprint == load_backbone(other, **CPU).fingerprint != old.fingerprint
    after = PrefixBank({}, backbone=other, **CPU).transform(["a text"])
    assert not np.array_equal(after, before)
    np.testing.assert_array_equal(empty.transform(["a text"]), after)
    with pytest.raises(ValueError, match="was learned on backbone .* fingerprint"):
        bank.transform(["a text"])


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "tokenizer_config.json", "1_Pooling/config.json",
             "sentence_bert_config.json"],
)  # fmt: skip
def test_any_file_that_decides_a_backbone_is_noticed(copied, file):
    path = copied / file
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_text("{}")
    first = load_backbone(copied, **CPU)
    (copied / "notes.md").write_text("mine")
    (copied / ".lock").touch()
    assert load_backbone(copied, **CPU) is first  # no file of a backbone
    path.write_text(path.read_text() + "\n")
    assert load_backbone(copied, **CPU) is not first


def test_own_reading_follows_the_files_of_a_loaded_backbone(copied):
    load_backbone(copied, **CPU)
    (copied / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9}))
    assert own_facts(str(copied))[1].max_length == 9
    assert load_backbone(copied, **CPU).reading.max_length == 9


def test_loaded_backbone_outlives_its_folder(copied, random_prefix):
    bank = PrefixBank({"a": random_prefix(copied)}, cache=None, **CPU)
    backbone, expected = load_backbone(copied, **CPU), bank.transform(["a text"])
    shutil.rmtree(copied)
    assert load_backbone(copied, **CPU) is backbone
    np.testing.assert_array_equal(bank.transform(["a text"]), expected)
