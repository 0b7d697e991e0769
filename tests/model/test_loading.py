"""Loading of several backbones at once, beside forks, and from a stand-in for the Hub."""

import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import make_backbone
from transformers.utils import logging

from prefixembed import load_backbone, release_backbones
from prefixembed._model import loading
from prefixembed._model.loading import load_own_reading

CPU = {"dtype": "float32", "device": "cpu"}


@pytest.fixture
def several(tiny, tmp_path, fresh_backbones):
    return [shutil.copytree(tiny(), tmp_path / f"{k}") for k in range(4)]


@pytest.mark.parametrize(
    ("where", "name"),
    [(loading.PretrainedConfig, "get_config_dict"), (loading.AutoTokenizer, "from_pretrained"),
     (loading, "fetch_weights")],
)  # fmt: skip
def test_nobody_waits_while_another_backbone_is_fetched(several, monkeypatch, where, name):
    slow, loaded, other, _ = several
    already = load_backbone(loaded, **CPU)
    real, inside, go_on = getattr(where, name), threading.Event(), threading.Event()

    def fetch(*args, **kwargs):
        if args[0] == str(slow):
            inside.set()
            assert go_on.wait(60)
        return real(*args, **kwargs)

    monkeypatch.setattr(where, name, fetch)
    with ThreadPoolExecutor(3) as threads:
        try:
            first = threads.submit(load_backbone, str(slow), **CPU)
            assert inside.wait(60)
            assert threads.submit(load_backbone, loaded, **CPU).result(20) is already
            assert threads.submit(load_backbone, other, **CPU).result(20) is not already
            assert threads.submit(release_backbones, other).result(20) == 1
            second = threads.submit(load_backbone, str(slow), **CPU)
            time.sleep(0.05)
            assert not first.done() and not second.done()
        finally:
            go_on.set()
        assert first.result(60) is second.result(60)


def test_models_are_built_one_at_a_time_and_leave_no_trace(several, monkeypatch):
    def state():
        functions = {name: value for name, value in vars(torch.nn.init).items() if callable(value)}
        bar = logging.is_progress_bar_enabled()
        return functions, torch.get_default_dtype(), logging.get_verbosity(), bar

    before, real, running, most = state(), loading.AutoModel.from_pretrained, [], []

    def build(*args, **kwargs):
        running.append(args)
        most.append(len(running))
        time.sleep(0.02)
        try:
            return real(*args, **kwargs)
        finally:
            running.pop()

    monkeypatch.setattr(loading.AutoModel, "from_pretrained", build)
    with ThreadPoolExecutor(4) as threads:
        backbones = list(threads.map(lambda folder: load_backbone(folder, **CPU), several))
    assert len({id(backbone) for backbone in backbones}) == 4 == len(most)
    assert max(most) == 1
    assert state() == before


@pytest.mark.skipif(sys.platform == "win32", reason="this platform has no fork")
def test_forked_child_is_as_if_nothing_was_being_loaded(several):
    code = """if True:
        import os, sys, threading, time, torch
        from transformers.utils import logging
        from prefixembed import load_backbone
        from prefixembed._model import loading
        init, verbosity = torch.nn.init.normal_, logging.get_verbosity()
        load = lambda k: load_backbone(sys.argv[k], dtype="float32", device="cpu")
        for k, name in (1, "AutoTokenizer"), (2, "AutoModel"):
            auto, inside = getattr(loading, name), threading.Event()
            class Slow:
                def from_pretrained(*args, **kwargs):
                    if name == "AutoModel":
                        torch.nn.init.normal_ = "replaced"  # as transformers does
                    inside.set()
                    time.sleep(0.5)
                    torch.nn.init.normal_ = init
                    return auto.from_pretrained(*args[1:], **kwargs)
            setattr(loading, name, Slow())
            thread = threading.Thread(target=load, args=(k,))
            thread.start()
            inside.wait()
            child = os.fork()
            if not child:
                assert torch.nn.init.normal_ is init and logging.get_verbosity() == verbosity
                for other in (k, 3):  # in a thread of its own: no lock is held
                    own = threading.Thread(target=load, args=(other,), daemon=True)
                    own.start()
                    own.join(30)
                    assert not own.is_alive()
                assert load(k).n_features == 32 and logging.get_verbosity() == verbosity
                os._exit(7)
            _, status = os.waitpid(child, 0)
            thread.join()
            setattr(loading, name, auto)
            assert os.waitstatus_to_exitcode(status) == 7, name
            assert load(k) is load(k) and logging.get_verbosity() == verbosity
    """
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *several[:3]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


FOREIGN = ["README.md", "code.py", "onnx/model.onnx", "onnx/model.safetensors", "tf_model.h5"]


@pytest.mark.parametrize("form", ["whole", "shards", "pickle"])
def test_backbone_on_the_hub_is_fetched_once_and_without_other_files(
    tiny, hub, tmp_path, fresh_backbones, form
):
    expected, folder = load_backbone(tiny(), **CPU), Path(tiny())
    if form == "shards":
        folder = Path(shutil.copytree(folder, tmp_path / "shards"))
        (folder / "model.safetensors").unlink()
        expected.model.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
    elif form == "pickle":
        folder = Path(shutil.copytree(folder, tmp_path / "pickle"))
        (folder / "model.safetensors").unlink()
        torch.save(expected.model.state_dict(), folder / "pytorch_model.bin")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    if form == "whole":
        files["pytorch_model.bin"] = b"not needed"
    name = f"me/{form}"
    hub.repos[name] = [("a" * 40, files | dict.fromkeys(FOREIGN, b"foreign"))]
    found = load_backbone(name, **CPU)
    assert found.fingerprint == expected.fingerprint and found.name == name
    unwanted = {*FOREIGN, "pytorch_model.bin"} if form == "whole" else set(FOREIGN)
    assert not unwanted & set(hub.fetched)
    assert load_backbone(name, **CPU) is found
    assert load_own_reading(name, None)[0] == 32


def test_damaged_file_from_the_hub_is_named(hub, tmp_path, fresh_backbones):
    folder = Path(make_backbone(tmp_path / "bert", "bert"))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files["model.safetensors"] = files["model.safetensors"][:5000]
    hub.repos["me/cut"] = [("b" * 40, files)]
    with pytest.raises(ValueError, match=r"model\.safetensors' of backbone 'me/cut' is damaged"):
        load_backbone("me/cut", **CPU)
