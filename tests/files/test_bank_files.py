"""A bank as a folder: what is written, what a kill leaves, what damage says."""

import contextlib
import dataclasses
import inspect
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from prefixembed import Prefix, PrefixBank
from prefixembed._files import bank_folder as _bank_files
from prefixembed._files.bank_folder import MANIFEST, BankFiles, read_bank, write_bank

CPU = {"dtype": "float32", "device": "cpu", "cache": None}
TEXTS = ["what a film", "dull", ""]


def prefix(seed, **changes):
    rng = np.random.default_rng(seed)
    fields = {
        "keys_values": rng.standard_normal((2, 2, 3, 4, 8), dtype=np.float32),
        "backbone": "b", "fingerprint": "f" * 64, "pooling": "mean", "max_length": 64,
        "n_features": 24,
    }  # fmt: skip
    return Prefix(**(fields | changes))


def file_name(prefix):
    return f"{_bank_files._digest_prefix(prefix)}.safetensors"


def bank_of(*seeds, **parameters):
    return BankFiles({f"task {seed}": prefix(seed) for seed in seeds}, parameters)


def same(one, other):
    """Compare two banks, the order of their prefixes too."""
    return list(one.prefixes.items()) == list(other.prefixes.items()) and (
        one.parameters == other.parameters
    )


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"active": ("b", "a"), "combine": "mean", "weights": {"a": np.float64(0.5)}},
        {"weights": np.float32(0.5), "max_length": np.int64(32), "pooled_layers": 2},
        {"pooling": "cls", "pairs": "apart", "output": "words", "output_dtype": "float16"},
        {"active": []},
    ],
)
def test_a_bank_comes_back_as_it_was(tiny, random_prefix, tmp_path, params):
    prefixes = {"b": random_prefix(tiny(), seed=1), "a": random_prefix(tiny(), seed=2)}
    bank = PrefixBank(prefixes, **params, **CPU)
    bank.save(tmp_path / "bank")
    again = PrefixBank.load(tmp_path / "bank", **CPU)
    assert list(again) == ["b", "a"] and again.values() == bank.values()
    X = [text.split() for text in TEXTS] if params.get("output") == "words" else TEXTS
    np.testing.assert_array_equal(again.transform(X), bank.transform(X))
    for name in ("combine", "pooling", "max_length", "output_dtype", "pairs"):
        assert getattr(again, name) == getattr(bank, name)
    assert PrefixBank.load(tmp_path / "bank", active=["a"]).active == ["a"]


def test_an_empty_bank_and_odd_names(tiny, random_prefix, tmp_path):
    PrefixBank({}, backbone=tiny(), **CPU).save(tmp_path)
    assert PrefixBank.load(tmp_path, **CPU).transform(TEXTS).shape == (3, 32)
    odd = ["../up", "", "a/b", "\udc80", "名", "x" * 300]
    PrefixBank({name: random_prefix(tiny(), seed=k) for k, name in enumerate(odd)}).save(tmp_path)
    assert list(PrefixBank.load(tmp_path)) == odd
    assert all(path.parent == tmp_path for path in tmp_path.rglob("*"))


def test_what_is_wrong_is_not_written(tiny, random_prefix, tmp_path):
    bank = PrefixBank({"a": random_prefix(tiny())}, active=["b"])
    with pytest.raises(ValueError, match="active has 'b'"):
        bank.save(tmp_path / "bank")
    assert not (tmp_path / "bank").exists()
    bank.set_params(active=None).save(tmp_path / "bank")
    with pytest.raises(ValueError, match="'combine' parameter of PrefixBank"):
        PrefixBank.load(tmp_path / "bank", combine="sum")


def test_old_prefixes_go_and_other_files_stay(tmp_path):
    write_bank(tmp_path, bank_of(1, 2))
    (tmp_path / "notes.txt").write_text("mine")
    prefix(9).save(tmp_path / "mine.safetensors")
    kept = tmp_path / file_name(prefix(2))
    before = kept.stat().st_mtime_ns
    write_bank(tmp_path, bank_of(2, 3))
    assert same(read_bank(tmp_path), bank_of(2, 3))
    assert kept.stat().st_mtime_ns == before  # not touched: its task was not
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert names == {MANIFEST, "notes.txt", "mine.safetensors", kept.name, file_name(prefix(3))}


def test_facts_outside_the_digest_are_written_anew(tmp_path):
    one = prefix(1)
    write_bank(tmp_path, BankFiles({"a": one}, {}))
    moved = dataclasses.replace(one, backbone="elsewhere", training={"seconds": 3})
    assert moved == one
    write_bank(tmp_path, BankFiles({"a": moved}, {}))
    found = read_bank(tmp_path).prefixes["a"]
    assert found.backbone == "elsewhere" and found.training["seconds"] == 3
    # Of two names, too, each keeps its own.
    write_bank(tmp_path, BankFiles({"a": moved, "b": one}, {}))
    found = read_bank(tmp_path).prefixes
    assert [found[name].backbone for name in "ab"] == ["elsewhere", "b"]


@pytest.mark.parametrize("step", range(6))
def test_an_error_at_any_step_leaves_one_bank_or_the_other(tmp_path, monkeypatch, step):
    write_bank(tmp_path, bank_of(1, 2, combine="mean"))
    calls = []

    def failing(real):
        def call(*args, **kwargs):
            calls.append(args)
            if len(calls) == step + 1:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing(os.replace))
        patch.setattr(os, "fsync", failing(os.fsync))
        with pytest.raises(OSError, match="No space left"):
            write_bank(tmp_path, bank_of(3, 4))
    assert same(read_bank(tmp_path), bank_of(1, 2, combine="mean"))
    assert not list(tmp_path.glob(".*safetensors.*"))
    write_bank(tmp_path, bank_of(3, 4))
    assert same(read_bank(tmp_path), bank_of(3, 4))


# Without torch, so that it starts at once.
WRITER = f"""
import itertools, sys
import numpy as np
from prefixembed._files.bank_folder import BankFiles, write_bank
from prefixembed.prefix import Prefix
{inspect.getsource(prefix)}
{inspect.getsource(bank_of)}
print("ready", flush=True)
for k in itertools.count():
    write_bank(sys.argv[1], bank_of(1, 2) if k % 2 else bank_of(2, 3, combine="mean"))
"""


def start_writer(folder):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"ready\n"
    return writer


def stop(writer):
    writer.send_signal(signal.SIGKILL)
    writer.communicate()


def test_a_kill_at_any_moment_leaves_a_whole_bank(tmp_path):
    either = [bank_of(1, 2), bank_of(2, 3, combine="mean")]
    write_bank(tmp_path, either[0])
    moments = random.Random(0)
    for _ in range(4):
        writer = start_writer(tmp_path)
        time.sleep(moments.uniform(0.0, 0.1))
        stop(writer)
        assert any(same(read_bank(tmp_path), bank) for bank in either)
    write_bank(tmp_path, either[0])  # the lock of the dead is no lock


def test_readers_see_whole_banks_while_two_write(tmp_path):
    either = [bank_of(1, 2), bank_of(2, 3, combine="mean")]
    write_bank(tmp_path, either[0])
    writers = [start_writer(tmp_path) for _ in range(2)]
    try:
        seen = set()
        for _ in range(150):
            bank = read_bank(tmp_path)
            (k,) = (k for k, one in enumerate(either) if same(bank, one))
            seen.add(k)
        assert all(writer.poll() is None for writer in writers)
    finally:
        for writer in writers:
            stop(writer)
    assert seen == {0, 1}


def test_every_damaged_byte_of_the_manifest_is_noticed(tmp_path):
    written = bank_of(1, 2, combine="mean")
    write_bank(tmp_path, written)
    path = tmp_path / MANIFEST
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for k in range(len(content)):
        damaged = bytearray(content)
        damaged[k] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(damaged))
        # White space may differ, what it says may not.
        with contextlib.suppress(ValueError):
            assert same(read_bank(tmp_path), written)
        path.write_bytes(content[:k])
        if k < len(content) - 1:  # the last byte ends the last line
            with pytest.raises(ValueError, match=MANIFEST):
                read_bank(tmp_path)


def rewrite(folder, **changes):
    path = folder / MANIFEST
    content = json.loads(path.read_text()) | changes
    content = {key: value for key, value in content.items() if value is not None}
    if "digest" not in changes:
        content.pop("digest")
        content["digest"] = _bank_files._digest(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format version is 99, this version .* reads 2"),
        ({"format_version": None}, "format version is None"),
        ({"more": 1}, "keys are .*'more'"),
        ({"parameters": None}, "keys are"),
        ({"parameters": []}, "are no objects"),
        ({"prefixes": {"a": "../../etc/passwd"}}, r"prefix 'a' has no digest: '../../etc/passwd'"),
        ({"prefixes": {"a": 3}}, "prefix 'a' has no digest: 3"),
        ({"digest": "0"}, "content has digest .* and says 0"),
    ],
)
def test_a_manifest_that_lies_is_refused(tmp_path, changes, message):
    write_bank(tmp_path, bank_of(1))
    rewrite(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        read_bank(tmp_path)
    assert MANIFEST in str(error.value)


def test_parameters_that_are_none_are_refused(tmp_path):
    write_bank(tmp_path, bank_of(1, device="cuda"))
    with pytest.raises(ValueError, match=r"has unknown \['device'\]"):
        PrefixBank.load(tmp_path)
    write_bank(tmp_path, bank_of(1, combine="sum"))
    with pytest.raises(ValueError, match="'combine' parameter of PrefixBank"):
        PrefixBank.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[1]", b"null", b"\xff\xfe", b"[" * 10**5])
def test_what_is_no_manifest_says_so(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        read_bank(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no bank in .*{MANIFEST}"):
        PrefixBank.load(tmp_path / "nowhere")
    write_bank(tmp_path, bank_of(1))
    (path,) = tmp_path.glob("*.safetensors")
    prefix(2).save(path)
    with pytest.raises(ValueError, match="it is not the prefix 'task 1'"):
        read_bank(tmp_path)
    write_bank(tmp_path, bank_of(1))  # a damaged file is written again
    assert same(read_bank(tmp_path), bank_of(1))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        read_bank(tmp_path)
