import pickle

import numpy as np
import pytest
from helpers import run_python

from prefixembed import load_backbone
from prefixembed._embed.texts import check_texts
from prefixembed.tasks import DOCSTRING_TASKS, demo, demo_backbone, load_docstring_task


@pytest.mark.parametrize("name", DOCSTRING_TASKS)
def test_both_splits_of_a_task_have_texts_of_every_class(name):
    task = load_docstring_task(name)
    minimum = 900 if name == "subpackage" else 2500
    assert len(task.X_train) == len(task.y_train) > minimum
    assert len(task.X_test) == len(task.y_test) > minimum / 4
    assert set(task.y_train) == set(task.y_test)
    _, counts = np.unique(task.y_test, return_counts=True)
    assert counts.min() >= 5
    assert len(check_texts(task.X_train)) == len(task.X_train)


def test_no_training_text_of_one_task_is_a_test_text_of_another():
    train, test = set(), set()
    for name in DOCSTRING_TASKS:
        task = load_docstring_task(name)
        for texts, X in ((train, task.X_train), (test, task.X_test)):
            texts.update(X[:, 0] if X.ndim == 2 else X)
    assert not train & test


def test_splits_are_equal_in_another_process():
    code = (
        "from prefixembed.tasks import load_docstring_task as load;"
        "t = load('package'); print(t.X_train[0], len(t.X_train), t.X_test[-1], sep='|')"
    )
    out, _ = run_python(code)
    task = load_docstring_task("package")
    expected = f"{task.X_train[0]}|{len(task.X_train)}|{task.X_test[-1]}"
    assert out.strip() == expected


def test_labels_of_pairs_say_whether_the_summary_describes_the_name():
    entries = {entry.summary: entry for entry in demo._harvest()}
    task = load_docstring_task("name")
    for (summary, name), label in zip(task.X_train, task.y_train, strict=True):
        assert (entries[summary].name == name) == (label == "same")
    assert 0.4 < np.mean(task.y_train == "same") < 0.6


def test_number_of_training_texts_per_class_can_be_limited():
    task = load_docstring_task("subpackage", n_train_per_class=3)
    _, counts = np.unique(task.y_train, return_counts=True)
    assert set(counts) == {3}
    assert len(task.X_test) == len(load_docstring_task("subpackage").X_test)


def test_summaries_are_single_sentences_without_markup():
    summaries = [entry.summary for entry in demo._harvest()]
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
def test_summary_is_the_first_sentence_after_the_signature(doc, summary):
    assert demo._summary(doc) == summary


def test_unknown_task_raises():
    with pytest.raises(
        ValueError, match="'name' parameter of load_docstring_task must be .* Got 'nope'"
    ):
        load_docstring_task("nope")


def test_a_task_can_be_pickled():
    task = load_docstring_task("kind", n_train_per_class=2)
    again = pickle.loads(pickle.dumps(task))
    assert again.name == task.name
    np.testing.assert_array_equal(again.X_test, task.X_test)


def test_demo_backbone_is_a_bert_with_six_layers():
    assert load_backbone(demo_backbone(), device="cpu").layout == (6, 12, 32)


def test_demo_backbone_names_the_missing_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"prefixembed\[demo\]"):
        demo_backbone()
