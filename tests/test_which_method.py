"""The script that compares methods for one task."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).parents[1] / "examples" / "which_method.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("which_method", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def arguments(tmp_path):
    sizes = ["--texts", "40", "--test-texts", "60", "--seeds", "0", "1", "--threads", "1"]
    methods = ["--methods", "tfidf", "bank", "--tasks", "package"]
    return [*sizes, *methods, "--out", str(tmp_path)]


def read_rows(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_methods_are_measured_once_and_kept(script, arguments, tmp_path, capsys, monkeypatch):
    script.main(arguments)
    rows = read_rows(tmp_path)
    assert [(row["seed"], row["method"]) for row in rows] == [
        (0, "tfidf"), (0, "bank"), (1, "tfidf"), (1, "bank"),
    ]  # fmt: skip
    for row in rows:
        assert row["accuracy"] > 0.3  # of five classes
        assert row["train"] > 0 and row["per_1000"] > 0 and 0 < row["MB"] < 1
    printed = capsys.readouterr().out
    assert "| TF-IDF + LR |" in printed and "| ready bank + LR |" in printed
    assert (tmp_path / "which_method.png").stat().st_size > 1000
    kept = json.loads((tmp_path / "which_method.json").read_text())
    assert [row["seeds"] for row in kept["rows"]] == [2, 2]
    assert kept["rows"][0]["accuracy"]["mean"] == pytest.approx(
        (rows[0]["accuracy"] + rows[2]["accuracy"]) / 2
    )

    # A run that was killed while it wrote its last line computes that row alone.
    whole = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(whole[:-20])
    measured = []
    measure = script.measure

    def count(args, task, n, seed, name):
        measured.append((task.name, n, seed, name))
        return measure(args, task, n, seed, name)

    monkeypatch.setattr(script, "measure", count)
    script.main(arguments)
    assert measured == [("package", 40, 1, "bank")]
    again = read_rows(tmp_path)
    assert again[:3] == rows[:3]
    assert again[3]["accuracy"] == rows[3]["accuracy"]

    with pytest.raises(SystemExit, match="set --out to another folder"):
        script.main([*arguments, "--test-texts", "50"])


def test_methods_that_are_not_installed_are_left_out(script, arguments, monkeypatch, capsys):
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    args = script.parse([*arguments, "--methods", "tfidf", "setfit"])
    assert args.methods == ["tfidf"]
    assert "setfit is left out: it is not installed" in capsys.readouterr().out


def test_too_many_texts_are_refused(script, arguments):
    args = script.parse(arguments)
    task = script.load_task(args, "package")
    with pytest.raises(SystemExit, match="set --texts lower"):
        script.draw(task, 10**6, 0)
    X, y = script.draw(task, 50, 0)
    assert len(X) == len(y) == 50 and set(y) == set(range(5))
