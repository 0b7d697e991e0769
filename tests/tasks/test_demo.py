import subprocess
import sys

import numpy as np
import pytest

from prefixembed import load_backbone
from prefixembed._embed.texts import check_texts
from prefixembed.tasks import DOCSTRING_TASKS, demo_backbone, load_docstring_task
from prefixembed.tasks import demo as _docstrings


@pytest.mark.parametrize("name", DOCSTRING_TASKS)
def test_tasks_have_texts_of_every_class_on_both_sides(name):
    task = load_docstring_task(name)
    least = 900 if name == "subpackage" else 2500
    assert len(task.X_train) == len(task.y_train) > least
    assert len(task.X_test) == len(task.y_test) > least / 4
    assert set(task.y_train) == set(task.y_test)
    _, counts = np.unique(task.y_test, return_counts=True)
    assert counts.min() >= 5
    assert len(check_texts(task.X_train)) == len(task.X_train)


def test_splits_agree_among_tasks():
    train, test = set(), set()
    for name in DOCSTRING_TASKS:
        task = load_docstring_task(name)
        sides = [X[:, 0] if X.ndim == 2 else X for X in (task.X_train, task.X_test)]
        train |= set(sides[0])
        test |= set(sides[1])
    assert not train & test


def test_splits_are_the_same_in_another_process():
    code = (
        "from prefixembed.tasks import load_docstring_task as load;"
        "t = load('package'); print(t.X_train[0], len(t.X_train), t.X_test[-1], sep='|')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    task = load_docstring_task("package")
    expected = f"{task.X_train[0]}|{len(task.X_train)}|{task.X_test[-1]}"
    assert done.stdout.strip() == expected


def test_name_pairs_are_right():
    entries = {entry.summary: entry for entry in _docstrings._harvest()}
    task = load_docstring_task("name")
    for (summary, name), label in zip(task.X_train, task.y_train, strict=True):
        assert (entries[summary].name == name) == (label == "same")
    assert 0.4 < np.mean(task.y_train == "same") < 0.6


def test_few_labels_a_class():
    task = load_docstring_task("subpackage", n_train_per_class=3)
    _, counts = np.unique(task.y_train, return_counts=True)
    assert set(counts) == {3}
    assert len(task.X_test) == len(load_docstring_task("subpackage").X_test)


def test_summaries_are_clean_single_sentences():
    summaries = [entry.summary for entry in _docstrings._harvest()]
    assert len(summaries) == len(set(summaries)) > 3500
    assert not any("`" in s or "\n" in s or ":class:" in s for s in summaries)


@pytest.mark.parametrize(
    ("doc", "summary"),
    [
        ("Add two arrays.", "Add two arrays."),
        ("\n    add(x, y)\n\n    Add two\n    arrays. And more.\n\n    Notes", "Add two arrays."),
        ("add(x, y) -> Tensor\n\nAdd :func:`~numpy.one` to ``two``.", "Add numpy.one to two."),
        (None, ""),
        ("", ""),
        (3, ""),
    ],
)
def test_summary_of_a_docstring(doc, summary):
    assert _docstrings._summary(doc) == summary


def test_unknown_tasks_are_refused():
    with pytest.raises(
        ValueError, match="'name' parameter of load_docstring_task must be .* Got 'nope'"
    ):
        load_docstring_task("nope")


def test_demo_backbone_is_a_bert(monkeypatch):
    assert load_backbone(demo_backbone(), device="cpu").layout == (6, 12, 32)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"prefixembed\[demo\]"):
        demo_backbone()
