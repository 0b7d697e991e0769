import dataclasses
import json
import pickle

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from prefixembed._embed.texts import check_rows
from prefixembed._fit.objectives import OBJECTIVES
from prefixembed.tasks import TaskSplit, fetch_task, list_tasks, paper
from prefixembed.tasks.table import TASKS

# For each task, a row as in its dataset on the Hub, and the X and label that are read from it.
HUB_ROWS = {
    "mnli": ({"premise": "a", "hypothesis": "b", "label": 2, "idx": 0}, ("a", "b"), 2),
    "qnli": ({"question": "a", "sentence": "b", "label": 0, "idx": 0}, ("a", "b"), 1),
    "qqp": ({"question1": "a", "question2": "b", "label": 1, "idx": 0}, ("a", "b"), 1),
    "sst2": ({"sentence": "a", "label": 1, "idx": 0}, "a", 1),
    "yelp2": ({"text": "a", "label": 0}, "a", 0),
    "winogrande": (
        {"sentence": "Ann met Bo as _ was late.", "option1": "Ann", "option2": "Bo", "answer": "2"},
        ("Ann met Bo as", ["Ann was late.", "Bo was late."]),
        1,
    ),
    "record": (
        {
            "passage": "Ann and Bo met. Annie",
            "query": "@placeholder was late",
            "entities": ["Ann", "Bo", "Annie", "Bo"],
            "answers": ["Bo", "Annie"],
        },
        ("Ann and Bo met. Annie", ["Ann was late", "Bo was late"]),
        1,
    ),
    "rte": ({"sentence1": "a", "sentence2": "b", "label": 1, "idx": 0}, ("a", "b"), 0),
    "mrpc": ({"sentence1": "a", "sentence2": "b", "label": 1, "idx": 0}, ("a", "b"), 1),
    "cr": ({"text": "a", "label": 1, "label_text": "positive"}, "a", 1),
    "mr": ({"text": "a", "label": 1}, "a", 1),
    "mpqa": ({"sentence": "a", "label": 1}, "a", 1),
    "boolq": ({"question": "a", "passage": "b", "idx": 0, "label": 1}, ("a", "b"), 1),
    "multirc": (
        {
            "paragraph": "a",
            "question": "b",
            "answer": "c",
            "idx": {"paragraph": 3, "question": 5, "answer": 0},
            "label": 1,
        },
        ("a", "b c"),
        1,
    ),
    "cosmosqa": (
        {"id": "x", "context": "a", "question": "b", "answer0": "c", "answer1": "d",
         "answer2": "e", "answer3": "f", "label": 3},
        ("a b", ["c", "d", "e", "f"]),
        3,
    ),
    "cola": ({"sentence": "a", "label": 0, "idx": 0}, "a", 0),
    "stsb": ({"sentence1": "a", "sentence2": "b", "label": 3.8, "idx": 0}, ("a", "b"), 3.8),
    "sick": ({"sentence_A": "a", "sentence_B": "b", "label": 0}, ("a", "b"), 1),
}  # fmt: skip


def test_list_tasks_lists_the_tasks_of_the_paper():
    sources = ["mnli", "qnli", "qqp", "sst2", "yelp2", "record", "winogrande"]
    targets = ["rte", "mrpc", "cr", "mr", "mpqa", "boolq", "multirc", "cosmosqa"]
    assert [info.name for info in list_tasks("source")] == sources
    assert [info.name for info in list_tasks("target")] == targets
    assert [info.name for info in list_tasks(objective="regression")] == ["stsb"]
    assert [info.name for info in list_tasks()] == list(TASKS)
    for info in list_tasks():
        assert info.objective in OBJECTIVES
        assert set(info.metrics) <= set(paper._METRICS)
        with pytest.raises(dataclasses.FrozenInstanceError):
            info.test_split = "train"


@pytest.mark.parametrize("name", HUB_ROWS)
def test_rows_of_the_hub_are_read(name, monkeypatch):
    # The test does not need the Hub: the rows are in this file.
    row, x, label = HUB_ROWS[name]
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        unlabelled = {"answer": ""} if name == "winogrande" else {"label": -1}
        if name == "record":
            unlabelled = {"answers": []}
        return datasets.Dataset.from_list([row, {**row, **unlabelled}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    fetched = fetch_task(name, "test")
    assert [tuple(e) if isinstance(x, tuple) else e for e in fetched.X] == [x]
    assert list(fetched.y) == [label]
    assert (fetched.groups is not None) == (name == "multirc")
    info = fetched.info
    config = "data_dir" if info.revision else "name"
    assert calls == [
        (
            (info.hub,),
            {"split": info.test_split, "revision": info.revision, config: info.config},
        )
    ]
    texts, counts = check_rows(fetched.X, OBJECTIVES[info.objective].row)
    assert len(texts) == counts.sum()


def test_a_converted_dataset_has_one_folder_per_configuration(tmp_path, monkeypatch):
    # The Hub's own conversion leaves Parquet files without a card.
    row, x, label = HUB_ROWS["boolq"]
    for config, answer in (("boolq", 1), ("other", 0)):
        for split in ("train", "validation"):
            folder = tmp_path / config / split
            folder.mkdir(parents=True)
            rows = datasets.Dataset.from_list([{**row, "label": answer}])
            rows.to_parquet(folder / "0000.parquet")
    info, read = TASKS["boolq"]
    local = dataclasses.replace(info, hub=str(tmp_path))
    monkeypatch.setitem(TASKS, "boolq", (local, read))
    real = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *a, revision, **k: real(*a, cache_dir=str(tmp_path / "cache"), **k),
    )
    fetched = fetch_task("boolq", "test")
    assert [x] == fetched.X and list(fetched.y) == [label]


def write(folder, name, rows):
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / f"{name}.train.jsonl").write_text(lines + "\n", encoding="utf-8")


def test_tasks_are_read_from_a_folder(tmp_path):
    write(tmp_path, "cr", [{"text": "Ünï", "label": 1}, {"text": "b", "label": 0}])
    write(tmp_path, "rte", [{"text": "a", "text_b": "b", "label": 1}])
    write(tmp_path, "cosmosqa", [{"text": "a", "choices": ["b", "c"], "label": 1}])
    write(tmp_path, "stsb", [{"text": "a", "text_b": "b", "label": 4.2}])
    assert fetch_task("cr", data_dir=tmp_path).X == ["Ünï", "b"]
    assert fetch_task("rte", data_dir=tmp_path).X == [("a", "b")]
    assert fetch_task("rte", data_dir=tmp_path).y[0] == 1
    assert fetch_task("cosmosqa", data_dir=tmp_path).X == [("a", ["b", "c"])]
    assert fetch_task("stsb", data_dir=tmp_path).y.tolist() == [4.2]


@pytest.mark.parametrize("name", ["cr", "stsb"])
@pytest.mark.parametrize(
    "label", ["1" * 40, "1" * 5000, "1e999", "NaN", '"1"', "[1]", "[" * 100_000]
)
def test_invalid_label_raises_with_its_line(tmp_path, name, label):
    # Fuzzing found labels with more digits than int64 or float can hold.
    (tmp_path / f"{name}.test.jsonl").write_text(f'{{"text": "a", "label": {label}}}\n')
    with pytest.raises(ValueError, match=rf"line 1 of .*{name}.test.jsonl' is not a row"):
        fetch_task(name, "test", data_dir=tmp_path)


def test_record_is_read_in_the_format_of_superglue(tmp_path):
    row = {
        "passage": {
            "text": "Ann and Bo met.",
            "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 9}],
        },
        "qas": [
            {"query": "@placeholder left", "answers": [{"start": 8, "end": 9, "text": "Bo"}]},
            {"query": "Late: @placeholder", "answers": [{"start": 0, "end": 2, "text": "Ann"}]},
        ],
    }
    write(tmp_path, "record", [row])
    record = fetch_task("record", data_dir=tmp_path)
    assert record.X == [
        ("Ann and Bo met.", ["Ann left", "Bo left"]),
        ("Ann and Bo met.", ["Late: Ann", "Late: Bo"]),
    ]
    assert list(record.y) == [1, 0]


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    limit=st.integers(0, 40),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_drawn_rows_contain_whole_groups(sizes, limit, seed):
    groups = [f"g{k}" for k, size in enumerate(sizes) for _ in range(size)]
    chosen = paper._sample(len(groups), groups, limit, np.random.RandomState(seed))
    assert len(set(chosen)) == len(chosen) <= limit
    taken = [groups[k] for k in chosen]
    assert all(taken.count(group) == groups.count(group) for group in taken)
    # Without groups, exactly as many rows as requested are drawn.
    assert len(paper._sample(20, None, limit, np.random.RandomState(seed))) == min(20, limit)


def test_random_state_decides_which_rows_are_drawn(tmp_path):
    write(tmp_path, "cr", [{"text": f"text {k}", "label": k % 2} for k in range(50)])
    one, same, other = (
        fetch_task("cr", limit=20, data_dir=tmp_path, random_state=seed) for seed in (0, 0, 1)
    )
    assert one.X == same.X != other.X
    assert len(one.X) == len(one.y) == 20
    for text, label in zip(one.X, one.y, strict=True):
        assert int(text.split()[1]) % 2 == label


def split_of(name, y, groups=None):
    info = next(info for info in list_tasks() if info.name == name)
    return TaskSplit(info, "test", [], np.array(y), groups and np.array(groups))


def test_scores_are_those_of_the_literature():
    multirc = split_of("multirc", [1, 0, 1, 1, 0], ["a", "a", "b", "b", "c"])
    predicted = [1, 0, 1, 0, 0]
    assert multirc.score(predicted) == {
        "f1a": f1_score(multirc.y, predicted),
        "exact_match": pytest.approx(2 / 3),
    }
    assert split_of("mrpc", [1, 1, 0]).score([1, 0, 0]) == {
        "accuracy": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
    }
    scores = split_of("stsb", [1.0, 2.0, 4.0]).score([1.0, 2.0, 3.0])
    assert scores["spearman"] == pytest.approx(1) and 0.9 < scores["pearson"] < 1
    assert split_of("cola", [1, 0, 1]).score([1, 0, 1]) == {"matthews": 1, "accuracy": 1}
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(2,\)"):
        split_of("cola", [1, 0, 1]).score([1, 0])


def test_infos_and_splits_can_be_pickled():
    info = list_tasks()[0]
    assert pickle.loads(pickle.dumps(info)) == info
    split = split_of("multirc", [1, 0], ["a", "a"])
    assert pickle.loads(pickle.dumps(split)).score([1, 0]) == split.score([1, 0])


def test_unknown_task_or_split_raises():
    with pytest.raises(ValueError, match="'name' parameter of fetch_task must be .* Got 'nothing'"):
        fetch_task("nothing")
    with pytest.raises(ValueError, match="'split' parameter of fetch_task must be .* Got 'dev'"):
        fetch_task("cr", "dev")


def test_missing_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_dir has no file cr\.test\.jsonl"):
        fetch_task("cr", "test", data_dir=tmp_path)


@pytest.mark.parametrize(
    "line",
    ["{", '{"text": "a"}', "[1]", '{"texts": "a", "label": 1}', '{"text": "a", "label": 1.5}'],
)
def test_invalid_row_raises_with_its_line(tmp_path, line):
    (tmp_path / "cr.train.jsonl").write_text('{"text": "a", "label": 1}\n' + line)
    with pytest.raises(
        ValueError, match=r"line 2 of .*cr\.train\.jsonl' is not a row of task 'cr'"
    ):
        fetch_task("cr", data_dir=tmp_path)


def test_unreachable_hub_raises():
    # HF_HUB_OFFLINE is set in these tests.
    with pytest.raises(OSError, match=r"'cr' could not be fetched .* data_dir .*cr\.test\.jsonl"):
        fetch_task("cr", "test")
