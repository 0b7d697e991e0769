"""No path of a machine is in a file that is shared, and what is loaded finds its backbone."""

import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import joblib
import numpy as np
import pytest
from helpers import make_multitask, reviews
from hypothesis import given
from hypothesis import strategies as st

from prefixembed import Prefix, PrefixBank, PrefixEncoder, load_backbone, tasks
from prefixembed._files import places
from prefixembed._files.cards import model_card
from prefixembed._files.places import located, remember, shared_name
from prefixembed.corpus import embed_dataset
from prefixembed.interop import load_peft, save_peft, to_sentence_transformer
from prefixembed.reading import Reading

CPU = {"dtype": "float32", "device": "cpu", "cache": None}
TEXTS = ["what a film", "dull"]
READING = Reading("mean", 64)
SECRET = "alice-of-the-home"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """Start as a process that has loaded no backbone."""
    monkeypatch.setattr(places, "_places", {})


@pytest.fixture
def folder(tiny, tmp_path, fresh_backbones):
    """Return a folder of a backbone below one whose name must not be told."""
    return shutil.copytree(tiny(), tmp_path / SECRET / "models" / "my-bert")


PARTS = st.text(st.characters(exclude_characters="/\\\0", codec="utf-8"), min_size=1).filter(
    lambda part: part not in (".", "..") and ":" not in part
)


@given(parts=st.lists(PARTS, min_size=2, max_size=5), windows=st.booleans())
def test_absolute_path_becomes_its_last_part(parts, windows):
    kind, root = (PureWindowsPath, "C:\\") if windows else (PurePosixPath, "/")
    path = str(kind(root, *parts))
    name = shared_name(path)
    assert name == f"./{kind(path).name}"
    assert shared_name(name) == name
    card = model_card("me/x", {}, path, "f" * 64, "pass")
    assert path not in card and "base_model" not in card and "(fingerprint `ffffffffffff`)" in card


@given(st.from_regex(r"\A[\w-]+(/[\w-]+)?\Z") | st.sampled_from(["./a", "../b/c", "a/b/c", "~/a"]))
def test_names_and_relative_paths_stay(name):
    assert shared_name(name) == name == located(name, "f")


def test_folder_in_the_cache_of_the_hub_is_named_as_on_the_hub():
    cache = "/home/alice/.cache/huggingface/hub"
    for name in ("roberta-large", "me/my-model"):
        folder = f"models--{name.replace('/', '--')}"
        assert shared_name(f"{cache}/{folder}/snapshots/{'a' * 40}") == name
        assert shared_name(f"{cache}/{folder}/snapshots/{'a' * 40}/") == name
    assert shared_name(f"{cache}/models--a--b/blobs") == "./blobs"


def test_folder_is_found_by_fingerprint_and_preferably_by_name():
    for folder in ("/a/bert", "/b/copy"):
        remember(folder, "f")
    assert located("./bert", "f") == os.path.abspath("/a/bert")
    assert located("./renamed", "f") == os.path.abspath("/b/copy")
    assert located("./bert", "g") == "./bert"
    assert located("bert", "f") == "bert"  # may be a name on the Hub


@pytest.mark.parametrize("packages", ["site-packages", "dist-packages"])
def test_folder_of_an_installed_package_is_found_in_any_process(packages, tmp_path, monkeypatch):
    folder = tmp_path / SECRET / packages / "some_model" / "weights"
    name = shared_name(str(folder))
    assert name == "./some_model/weights" == shared_name(name)
    monkeypatch.syspath_prepend(tmp_path / SECRET / packages)
    assert located(name, "f") == name  # it is not installed
    folder.mkdir(parents=True)
    assert located(name, "f") == str(folder)
    outside = "./some_model/../../.."
    assert located(outside, "f") == outside
    remember("/a/bert", "f")
    assert located(name, "f") == os.path.abspath("/a/bert")


def test_bank_on_the_demo_backbone_is_loaded_in_a_new_process(tmp_path):
    bank = tasks.demo_bank()
    bank.save(tmp_path / "bank")
    code = (
        "import numpy as np, sys; from prefixembed import PrefixBank;"
        "np.save(sys.argv[2], PrefixBank.load(sys.argv[1]).transform(['a film']))"
    )
    command = [sys.executable, "-c", code, tmp_path / "bank", tmp_path / "vectors.npy"]
    subprocess.run(command, check=True, timeout=300)
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), bank.transform(["a film"]))


def files_below(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def write_all(folder, out):
    """Write each kind of file that people share."""
    encoder = PrefixEncoder(
        folder, prefix_length=2, ffn_length=2, max_steps=2, background=None, random_state=0,
        checkpoint_dir=out.parent / SECRET / "checkpoints", **CPU,
    ).fit(*reviews())  # fmt: skip
    encoder.prefix_.save(out / "prefix.safetensors")
    for name, backbone in (("none", None), ("str", str(folder)), ("path", folder)):
        bank = PrefixBank({"a": encoder}, backbone=backbone, **CPU)
        bank.save(out / name)
        to_sentence_transformer(bank).save(str(out / f"{name}-st"))
    PrefixBank({}, backbone=folder, **CPU).save(out / "empty")
    peft = replace(encoder.prefix_, slots=None, head=None)
    save_peft(replace(peft, reading=replace(peft.reading, first_position=2)), out / "peft")
    make_multitask(folder, max_steps=2).fit({"a": reviews()}).save(out / "tuned")
    return encoder, bank


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_no_file_or_card_tells_where_a_backbone_lies(folder, tmp_path, hub):
    out = tmp_path / "out"
    out.mkdir()
    encoder, bank = write_all(folder, out)
    for what in (bank, encoder.prefix_, PrefixBank({}, backbone=folder, **CPU)):
        what.push_to_hub("me/x", token="hf_" + "a" * 30)
        files = hub.files("me/x")[1]
        assert not [name for name, content in files.items() if SECRET.encode() in content]
        card = files["README.md"].decode()
        assert "backbone `my-bert` (fingerprint" in card or what not in (bank, encoder.prefix_)
        assert "backbone='path/to/my-bert'" in card and "base_model" not in card
        hub.repos.clear()
    pytest.importorskip("datasets")
    (tmp_path / "texts.csv").write_text("text\na film\n")
    embed_dataset(bank, tmp_path / "texts.csv", "text", out / "corpus")
    written = files_below(out)
    assert len(written) > 30
    assert not [str(path) for path, content in written.items() if SECRET.encode() in content]


def test_what_is_loaded_finds_a_backbone_that_the_process_has_loaded(folder, tmp_path):
    fingerprint = load_backbone(folder, **{k: CPU[k] for k in ("dtype", "device")}).fingerprint
    prefix = Prefix(np.ones((3, 2, 4, 2, 8)), str(folder), fingerprint, 32, reading=READING)
    bank = PrefixBank({"a": prefix}, backbone=folder, **CPU)
    prefix.save(tmp_path / "p")
    bank.save(tmp_path / "bank")
    expected = bank.transform(TEXTS)
    loaded = Prefix.load(tmp_path / "p")
    assert loaded.backbone == str(folder) and loaded == prefix
    assert loaded.to_bytes() == prefix.to_bytes()
    for again in (
        PrefixBank({"a": loaded}, **CPU),
        PrefixBank.load(tmp_path / "bank", **CPU),
        PrefixEncoder.from_prefix(loaded, **CPU),
    ):
        np.testing.assert_array_equal(again.transform(TEXTS), expected)
    # A worker that has loaded nothing gets the path with the pickle.
    assert pickle.loads(pickle.dumps(again)).backbone == str(folder)


def test_what_is_loaded_elsewhere_says_which_parameter_to_set(folder, tmp_path, monkeypatch):
    fingerprint = load_backbone(folder, dtype="float32", device="cpu").fingerprint
    prefix = Prefix(np.ones((3, 2, 4, 2, 8)), str(folder), fingerprint, 32, reading=READING)
    expected = PrefixBank({"a": prefix}, **CPU).transform(TEXTS)
    PrefixBank({"a": prefix}).save(tmp_path / "bank")
    monkeypatch.setattr(places, "_places", {})  # as in another process
    bank = PrefixBank.load(tmp_path / "bank", **CPU)
    assert bank["a"].backbone == "./my-bert"
    with pytest.raises(
        FileNotFoundError, match=r"'\./my-bert'.* the bank or the .*backbone=\.\.\."
    ):
        bank.transform(TEXTS)
    np.testing.assert_array_equal(bank.set_params(backbone=folder).transform(TEXTS), expected)
    # Or from the folder that the backbone lies in.
    monkeypatch.chdir(folder.parent)
    again = PrefixBank.load(tmp_path / "bank", **CPU)
    np.testing.assert_array_equal(again.transform(TEXTS), expected)


def test_dumped_estimator_keeps_the_path_so_that_it_works_on_this_machine(folder, tmp_path):
    fingerprint = load_backbone(folder, dtype="float32", device="cpu").fingerprint
    prefix = Prefix(np.ones((3, 2, 4, 2, 8)), str(folder), fingerprint, 32, reading=READING)
    encoder = PrefixEncoder.from_prefix(prefix, **CPU)
    joblib.dump(encoder, tmp_path / "dumped")
    np.save(tmp_path / "expected.npy", encoder.transform(TEXTS))
    code = (
        "import sys, joblib, numpy as np; loaded = joblib.load(sys.argv[1]);"
        f"assert (loaded.transform({TEXTS!r}) == np.load(sys.argv[2])).all()"
    )
    command = [sys.executable, "-c", code, tmp_path / "dumped", tmp_path / "expected.npy"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd="/", timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_adapter_of_peft_needs_the_backbone_that_it_does_not_tell(folder, tmp_path):
    fingerprint = load_backbone(folder, dtype="float32", device="cpu").fingerprint
    reading = replace(READING, first_position=2)
    prefix = Prefix(np.ones((3, 2, 4, 2, 8)), str(folder), fingerprint, 32, reading=reading)
    save_peft(prefix, tmp_path / "adapter")
    with pytest.raises(FileNotFoundError, match=r"'\./my-bert'.*backbone="):
        load_peft(tmp_path / "adapter")
    loaded = load_peft(tmp_path / "adapter", folder, pooling="mean", max_length=64)
    np.testing.assert_array_equal(loaded.keys_values, prefix.keys_values)
