"""Banks in folders: content, failed and concurrent writes, kills, and damage."""

import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
import random
import time

import numpy as np
import pytest
from helpers import kill, start_python

from prefixembed import Prefix, PrefixBank
from prefixembed._files import bank_folder
from prefixembed._files.bank_folder import MANIFEST, read_folder, write_folder
from prefixembed.reading import Reading

CPU = {"dtype": "float32", "device": "cpu", "cache": None}
TEXTS = ["what a film", "dull", ""]


def make_prefix(seed, **changes):
    rng = np.random.default_rng(seed)
    fields = {
        "keys_values": rng.standard_normal((2, 2, 3, 4, 8), dtype=np.float32),
        "backbone": "b", "fingerprint": "f" * 64, "n_features": 24, "reading": Reading("mean", 64),
    }  # fmt: skip
    return Prefix(**(fields | changes))


def content_of(seed):
    return bytes([seed]) * 3000


def bank_of(*seeds, **parameters):
    return {f"task {seed}": content_of(seed) for seed in seeds}, parameters


def file_name(content):
    return f"{hashlib.sha256(content).hexdigest()}.safetensors"


def holds(folder, bank):
    """Return whether a folder holds a bank, with its prefixes in order."""
    found = read_folder(folder)
    prefixes, parameters = bank
    return list(found.prefixes.items()) == list(prefixes.items()) and found.parameters == parameters


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
def test_loaded_bank_equals_the_saved_one(tiny, random_prefix, tmp_path, params):
    prefixes = {"b": random_prefix(tiny(), seed=1), "a": random_prefix(tiny(), seed=2)}
    bank = PrefixBank(prefixes, **params, **CPU)
    bank.save(tmp_path / "bank")
    loaded = PrefixBank.load(tmp_path / "bank", **CPU)
    assert list(loaded) == ["b", "a"] and list(loaded.values()) == list(bank.values())
    X = [text.split() for text in TEXTS] if params.get("output") == "words" else TEXTS
    np.testing.assert_array_equal(loaded.transform(X), bank.transform(X))
    for name in ("combine", "pooling", "max_length", "output_dtype", "pairs"):
        assert getattr(loaded, name) == getattr(bank, name)
    assert PrefixBank.load(tmp_path / "bank", active=["a"]).active == ["a"]


def test_empty_bank_and_unusual_names_can_be_saved(tiny, random_prefix, tmp_path):
    PrefixBank({}, backbone=tiny(), **CPU).save(tmp_path)
    loaded = PrefixBank.load(tmp_path, backbone=tiny(), **CPU)
    assert loaded.transform(TEXTS).shape == (3, 32)
    odd = ["../up", "", "a/b", "\udc80", "名", "x" * 300]
    PrefixBank({name: random_prefix(tiny(), seed=k) for k, name in enumerate(odd)}).save(tmp_path)
    assert list(PrefixBank.load(tmp_path)) == odd
    assert all(path.parent == tmp_path for path in tmp_path.rglob("*"))


def test_invalid_bank_is_not_written(tiny, random_prefix, tmp_path):
    bank = PrefixBank({"a": random_prefix(tiny())}, active=["b"])
    with pytest.raises(ValueError, match="active .*'b'"):
        bank.save(tmp_path / "bank")
    assert not (tmp_path / "bank").exists()
    bank.set_params(active=None).save(tmp_path / "bank")
    with pytest.raises(ValueError, match="'combine' parameter of PrefixBank"):
        PrefixBank.load(tmp_path / "bank", combine="sum")


def test_files_of_removed_prefixes_are_deleted_and_other_files_stay(tmp_path):
    write_folder(tmp_path, *bank_of(1, 2))
    (tmp_path / "notes.txt").write_text("mine")
    mine = [
        "mine.safetensors",
        "model.safetensors",
        file_name(content_of(9)),
        f"{'0' * 64}.safetensors",
    ]
    for name in mine:
        (tmp_path / name).write_bytes(content_of(9))
    kept = tmp_path / file_name(content_of(2))
    before = kept.stat().st_mtime_ns
    write_folder(tmp_path, *bank_of(2, 3))
    assert holds(tmp_path, bank_of(2, 3))
    assert kept.stat().st_mtime_ns == before  # an unchanged prefix is not written again
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    other = file_name(content_of(3))
    assert names == {MANIFEST, "notes.txt", *mine, kept.name, other}


@pytest.mark.parametrize(
    "foreign",
    [b"", b"my accounts", b"{}", b'{"prefixes": {"a": "b"}}', b"[1]", b"\xff", b"[" * 10**5],
)
def test_manifest_that_is_not_of_a_bank_is_refused_and_stays(tmp_path, foreign):
    (tmp_path / MANIFEST).write_bytes(foreign)
    with pytest.raises(ValueError, match=f"{MANIFEST}' is not of a bank, or is damaged"):
        write_folder(tmp_path, *bank_of(1))
    assert [p.name for p in tmp_path.iterdir() if p.name[0] != "."] == [MANIFEST]
    assert (tmp_path / MANIFEST).read_bytes() == foreign


def test_bank_of_another_format_version_is_replaced(tmp_path):
    write_folder(tmp_path, *bank_of(1, 2))
    change_manifest(tmp_path, format_version=2)
    write_folder(tmp_path, *bank_of(2))
    assert holds(tmp_path, bank_of(2))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_facts_outside_the_digest_are_saved(tmp_path):
    one = make_prefix(1)
    PrefixBank({"a": one}).save(tmp_path)
    moved = dataclasses.replace(one, backbone="elsewhere", training={"seconds": 3})
    assert moved == one
    PrefixBank({"a": moved}).save(tmp_path)
    loaded = PrefixBank.load(tmp_path)["a"]
    assert loaded.backbone == "elsewhere" and loaded.training["seconds"] == 3
    # Two equal prefixes in one bank keep their own facts.
    PrefixBank({"a": moved, "b": one}).save(tmp_path)
    loaded = PrefixBank.load(tmp_path)
    assert [loaded[name].backbone for name in "ab"] == ["elsewhere", "b"]


@pytest.mark.parametrize("step", range(6))
def test_error_at_any_step_leaves_the_old_bank(tmp_path, monkeypatch, step):
    write_folder(tmp_path, *bank_of(1, 2, combine="mean"))
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
            write_folder(tmp_path, *bank_of(3, 4))
    assert holds(tmp_path, bank_of(1, 2, combine="mean"))
    assert not list(tmp_path.glob(".*safetensors.*"))
    write_folder(tmp_path, *bank_of(3, 4))
    assert holds(tmp_path, bank_of(3, 4))


def test_folder_that_holds_no_file_is_an_error_at_once(monkeypatch):
    if not os.path.isdir("/proc/self"):
        pytest.skip("this platform has no such folder")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    with pytest.raises(OSError, match=r"/proc/\w+/\.bank\.lock'"):
        write_folder("/proc/self", *bank_of(1))


WRITER = f"""
import itertools, sys
from prefixembed._files.bank_folder import write_folder
{inspect.getsource(content_of)}
{inspect.getsource(bank_of)}
print("ready", flush=True)
for k in itertools.count():
    write_folder(sys.argv[1], *(bank_of(1, 2) if k % 2 else bank_of(2, 3, combine="mean")))
"""


def start_writer(folder):
    writer = start_python(WRITER, folder)
    assert writer.stdout.readline() == "ready\n"
    return writer


def end(writer):
    kill(writer)
    writer.communicate()


def test_kill_at_any_moment_leaves_a_whole_bank(tmp_path):
    either = [bank_of(1, 2), bank_of(2, 3, combine="mean")]
    write_folder(tmp_path, *either[0])
    moments = random.Random(0)
    for _ in range(4):
        writer = start_writer(tmp_path)
        time.sleep(moments.uniform(0.0, 0.1))
        end(writer)
        assert any(holds(tmp_path, bank) for bank in either)
    write_folder(tmp_path, *either[0])  # the lock of a killed process does not block


def test_readers_see_whole_banks_while_two_processes_write(tmp_path):
    either = [bank_of(1, 2), bank_of(2, 3, combine="mean")]
    write_folder(tmp_path, *either[0])
    writers = [start_writer(tmp_path) for _ in range(2)]
    try:
        seen, n_reads, end_of_wait = set(), 0, time.monotonic() + 60
        # At least 150 reads, and as many more as it takes until the writers have had their turn.
        while n_reads < 150 or (seen != {0, 1} and time.monotonic() < end_of_wait):
            n_reads += 1
            found = read_folder(tmp_path)
            (k,) = (
                k for k, bank in enumerate(either) if bank == (found.prefixes, found.parameters)
            )
            seen.add(k)
        assert all(writer.poll() is None for writer in writers)
    finally:
        for writer in writers:
            end(writer)
    assert seen == {0, 1}


def race(monkeypatch, folder, n_races):
    """Replace the bank between manifest and files, and bring the same manifest back after."""
    real, races = bank_folder._read, []

    def read(path, manifest):
        if len(races) == n_races:
            return real(path, manifest)
        races.append(manifest)
        write_folder(folder, *bank_of(3, 4))  # deletes the files that the manifest names
        try:
            return real(path, manifest)
        finally:
            write_folder(folder, *bank_of(1, 2))

    monkeypatch.setattr(bank_folder, "_read", read)
    return races


@pytest.mark.parametrize("n_races", [1, 2, 5])
def test_reader_starts_again_if_files_are_gone_under_an_equal_manifest(
    tmp_path, monkeypatch, n_races
):
    write_folder(tmp_path, *bank_of(1, 2))
    races = race(monkeypatch, tmp_path, n_races)
    assert holds(tmp_path, bank_of(1, 2))
    assert len(races) == n_races and len(set(races)) == 1


def test_reader_that_always_comes_too_late_gives_up(tmp_path, monkeypatch):
    write_folder(tmp_path, *bank_of(1, 2))
    monkeypatch.setattr(bank_folder, "_ATTEMPTS", 3)
    races = race(monkeypatch, tmp_path, -1)
    with pytest.raises(FileNotFoundError, match="for prefix 'task 1'"):
        read_folder(tmp_path)
    assert len(races) == 3


def test_damage_to_any_byte_of_the_manifest_is_noticed(tmp_path):
    bank = bank_of(1, 2, combine="mean")
    write_folder(tmp_path, *bank)
    path = tmp_path / MANIFEST
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for k in range(len(content)):
        damaged = bytearray(content)
        damaged[k] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(damaged))
        # A change of white space does no harm; any other change is noticed.
        with contextlib.suppress(ValueError):
            assert holds(tmp_path, bank)
        path.write_bytes(content[:k])
        if k < len(content) - 1:  # the last byte ends the last line
            with pytest.raises(ValueError, match=MANIFEST):
                read_folder(tmp_path)


def change_manifest(folder, **changes):
    path = folder / MANIFEST
    content = json.loads(path.read_text()) | changes
    content = {key: value for key, value in content.items() if value is not None}
    if "digest" not in changes:
        content.pop("digest")
        content["digest"] = bank_folder._digest(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format version is 99, this version .* reads 3"),
        ({"format_version": None}, "format version is None"),
        ({"more": 1}, "keys are .*'more'"),
        ({"parameters": None}, "keys are"),
        ({"parameters": []}, "are not objects"),
        ({"prefixes": {"a": "../../etc/passwd"}}, r"prefix 'a' has no digest: '../../etc/passwd'"),
        ({"prefixes": {"a": 3}}, "prefix 'a' has no digest: 3"),
        ({"digest": "0"}, "content has digest .* but it names 0"),
    ],
)
def test_manifest_with_invalid_content_is_refused(tmp_path, changes, message):
    write_folder(tmp_path, *bank_of(1))
    change_manifest(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        read_folder(tmp_path)
    assert MANIFEST in str(error.value)


def test_bank_with_invalid_parameters_is_refused(tmp_path):
    write_folder(tmp_path, {}, {"backbone": "b", "device": "cuda"})
    with pytest.raises(ValueError, match=r"unknown .*\['device'\]"):
        PrefixBank.load(tmp_path)
    write_folder(tmp_path, {}, {"backbone": "b", "combine": "sum"})
    with pytest.raises(ValueError, match="'combine' parameter of PrefixBank"):
        PrefixBank.load(tmp_path)


def test_file_that_holds_no_prefix_is_refused(tmp_path):
    write_folder(tmp_path, {"a": b"not a prefix"}, {})
    with pytest.raises(ValueError, match="'a'.* is not a safetensors file"):
        PrefixBank.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[1]", b"null", b"\xff\xfe", b"[" * 10**5])
def test_file_that_is_not_a_manifest_is_refused(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        read_folder(tmp_path)


def test_missing_and_exchanged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no bank in .*{MANIFEST}"):
        PrefixBank.load(tmp_path / "nowhere")
    write_folder(tmp_path, *bank_of(1))
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(content_of(2))
    with pytest.raises(ValueError, match=f"{path.name}.* is damaged: .* not prefix 'task 1'"):
        read_folder(tmp_path)
    write_folder(tmp_path, *bank_of(1))  # replaces the damaged file
    assert holds(tmp_path, bank_of(1))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path.name}.* prefix 'task 1'"):
        read_folder(tmp_path)
