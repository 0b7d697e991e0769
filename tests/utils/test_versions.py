import builtins
from importlib import metadata

import pytest
import torch
from helpers import run_python

import prefixembed
from prefixembed import show_versions
from prefixembed._utils.versions import PACKAGES


@pytest.fixture
def printed(capsys):
    def call():
        show_versions()
        lines = capsys.readouterr().out.splitlines()
        return dict(line.strip().split(": ", 1) for line in lines if line.startswith("  "))

    return call


def test_versions_are_those_of_the_packages(printed):
    facts = printed()
    assert facts["prefixembed"] == prefixembed.__version__
    assert facts["torch"] == metadata.version("torch")
    assert set(PACKAGES) < set(facts)


def test_each_package_that_is_required_is_named(printed):
    required = {line.partition(">")[0].partition(";")[0].strip() for line in requirements()}
    assert required - {"filelock", "tqdm"} <= set(PACKAGES)


def requirements():
    return [line for line in metadata.requires("prefixembed") if "extra ==" not in line]


def test_missing_package_is_no_error(printed, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert printed()["mteb"] == "not installed"


def test_devices_are_those_of_torch(printed):
    facts = printed()
    assert facts["CPU threads"] == str(torch.get_num_threads())
    devices = [name for name in facts if name.startswith("cuda:")]
    assert len(devices) == torch.cuda.device_count()


def test_broken_torch_is_reported(printed, monkeypatch):
    def broken(name, *args, **kwargs):
        if name == "torch":
            raise OSError("libtorch.so: cannot open shared object file")
        return builtin(name, *args, **kwargs)

    builtin = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", broken)
    assert "libtorch.so" in printed()["torch import"]


def test_only_torch_is_imported():
    heavy = ("transformers", "sklearn", "datasets", "tokenizers", "sentence_transformers")
    loaded = f"[name for name in {heavy} if name in sys.modules]"
    code = f"import prefixembed, sys; prefixembed.show_versions(); print({loaded})"
    out, _ = run_python(code)
    assert out.splitlines()[-1] == "[]"
