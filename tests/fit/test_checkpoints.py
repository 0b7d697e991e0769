"""Checkpoint files: what is kept, and what damage and full disks do."""

import os
import resource

import pytest
import torch

from prefixembed._fit.checkpoints import Checkpoints, State


def state(seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "a": torch.randn(3, 4, generator=generator),
        "count": torch.tensor(7.0),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    facts = {"loss": 0.1 + seed, "best": float("inf"), "big": 2**127 + seed, "name": ["ü", None]}
    return State(facts, tensors)


def are_equal(one, other):
    return (
        one.facts == other.facts
        and set(one.tensors) == set(other.tensors)
        and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    )


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def test_state_is_restored_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new" / "folder", "run")
    assert checkpoints.load() is None
    checkpoints.save(3, state(0))
    assert are_equal(checkpoints.load(), state(0))
    assert are_equal(Checkpoints(tmp_path / "new" / "folder", "run").load(), state(0))
    assert Checkpoints(tmp_path / "new" / "folder", "another run").load() is None


def test_last_two_states_are_kept_and_other_files_are_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    notes = tmp_path / "run" / "notes.safetensors"
    notes.write_text("not a checkpoint")
    checkpoints = Checkpoints(tmp_path, "run")
    for number in (9, 10, 100):
        checkpoints.save(number, state(number))
    assert len(list((tmp_path / "run").iterdir())) == 3
    assert are_equal(checkpoints.load(), state(100))
    assert notes.read_text() == "not a checkpoint"


def test_new_state_is_kept_even_if_damaged_ones_have_higher_numbers(tmp_path):
    checkpoints = Checkpoints(tmp_path, "run")
    for number in (90, 100):
        checkpoints.save(number, state(number))
    for path in (tmp_path / "run").iterdir():
        flip_bit(path, 100)
    leftover = tmp_path / "run" / ".000000000007-ab.safetensors.xyz"
    leftover.write_text("half")
    os.utime(leftover, (0, 0))
    checkpoints.save(5, state(5))
    with pytest.warns(UserWarning, match="is damaged"):
        assert are_equal(checkpoints.load(), state(5))
    assert not leftover.exists()


def test_damage_anywhere_falls_back_to_the_state_before(tmp_path):
    checkpoints = Checkpoints(tmp_path, "run")
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    before, last = sorted((tmp_path / "run").iterdir())
    whole = last.read_bytes()
    for position in range(len(whole)):
        flip_bit(last, position)
        with pytest.warns(UserWarning, match=r"000000000002-.* is damaged and is ignored"):
            assert are_equal(checkpoints.load(), state(1))
        last.write_bytes(whole)
    last.write_bytes(whole[:-1])
    flip_bit(before, 50)
    with pytest.warns(UserWarning, match="is damaged") as record:
        assert checkpoints.load() is None
    assert len(record) == 2


def test_full_disk_is_reported_and_earlier_states_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, "run")
    checkpoints.save(1, state(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"no checkpoint could be written: File too large.*run"):
            checkpoints.save(2, state(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(list((tmp_path / "run").iterdir())) == 1
    assert are_equal(checkpoints.load(), state(1))
