"""The benchmark for GPUs, without one: all of it runs, and what is known survives what is not."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "benchmarks" / "gpu.py"
PARTS = ["tests", "equality", "memory", "transform", "fit", "compiled"]


def run(out, *options):
    """Run the script, and return what it wrote."""
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--out", str(out), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return json.loads((out / "gpu.json").read_text()), (out / "gpu.md").read_text()


@pytest.fixture
def gpu(monkeypatch):
    """Return the script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.delitem(sys.modules, "fit", raising=False)
    import gpu

    return gpu


# The part "tests" is this suite's own, and the others are half of a minute.
@pytest.mark.parametrize(
    "parts",
    [["memory", "transform", "fit"], pytest.param(PARTS[1:], marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_parts_run_on_a_cpu(tmp_path, parts):
    found, tables = run(tmp_path, "--size", "tiny", "--minutes", "30", "--parts", *parts)
    assert list(found["parts"]) == parts
    parts = found["parts"]
    status = {name: part["status"] for name, part in parts.items()}
    assert status.pop("memory").startswith("skipped: a CPU's memory")
    assert set(status.values()) == {"done"}, status
    assert not any(part["left_out"] for part in parts.values())
    if "equality" in parts:
        checked = {row["what"].split(", ")[0] for row in parts["equality"]["rows"]}
        assert checked == {"vectors", "fit", "fine-tuning", "search"}
    sides = {row["side"] for row in parts["transform"]["rows"]}
    assert {
        f"prefixembed bfloat16, 100 prefixes, {kind}" for kind in ("slots", "positions")
    } < sides
    assert any(side.startswith("sentence-transformers bfloat16") for side in sides)
    exact = [row for row in parts["transform"]["rows"] if "float32" in row["side"]]
    assert all(row["one_minus_cosine"] < 1e-5 for row in exact), "peers read the same texts"
    assert len({row["side"] for row in parts["fit"]["rows"]}) == 3
    for name in parts:
        assert f"## {name}: " in tables


def test_parts_without_time_are_skipped_by_name(gpu, tmp_path):
    assert gpu.main(["--device", "cpu", "--minutes", "0", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {p["status"] for p in found["parts"].values()} == {"skipped: no time left"}


def test_part_of_full_size_runs_in_a_process_of_its_own(gpu, tmp_path):
    options = ["--device", "cpu", "--parts", "memory", "--minutes", "3", "--out", str(tmp_path)]
    assert gpu.main(options) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["parts"]["memory"]["status"].startswith("skipped: a CPU's memory")


def end_at_once(part):
    part.add(what="a", ok=True)
    os._exit(3)


def hang(part):
    part.add(what="b", ok=True)
    assert part.has_time_for("c")
    part.seconds = 0.0
    assert not part.has_time_for("d")
    time.sleep(600)


def test_rows_of_a_part_that_crashes_or_hangs_are_kept(gpu, tmp_path, monkeypatch):
    def wrong(part):
        part.add(what="e", ok=False)

    parts = {"one": (end_at_once, 0.9), "two": (wrong, 0.9), "three": (hang, 0.1)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "_SHORTEST", 0.0)
    options = ["--device", "cpu", "--size", "tiny", "--minutes", "0.1", "--out", str(tmp_path)]
    assert gpu.main(options) == 1
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["one"]["status"] == "failed: the process ended with 3"
    assert parts["two"]["status"] == "failed: 1 of 1 rows"
    assert parts["three"]["status"].startswith("stopped after")
    assert [part["rows"][0]["what"] for part in parts.values()] == ["a", "e", "b"]
    assert parts["three"]["left_out"] == ["d"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_no_device_is_an_error(gpu, tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path)])
    assert "torch finds no CUDA device" in capsys.readouterr().err
