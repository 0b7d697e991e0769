"""Real source and target tasks, if their data is available."""

import os
from pathlib import Path

import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed import ChoiceRanker, PrefixBank, PrefixEncoder
from prefixembed._embed.texts import check_rows
from prefixembed._fit.objectives import OBJECTIVES
from prefixembed.tasks import fetch_task, list_tasks

DEFAULT = Path(__file__).parents[2] / "shared" / "data"
DATA = Path(os.environ.get("PREFIXEMBED_DATA", DEFAULT))
PARAMS = {"max_length": 64, "on_truncate": "ignore", "random_state": 0}

pytestmark = pytest.mark.skipif(
    not (DATA / "sst2.train.jsonl").exists(),
    reason="set PREFIXEMBED_DATA to a folder with <task>.<split>.jsonl files",
)


def read(name, limit):
    task, split = name.split(".")
    rows = fetch_task(task, split, data_dir=DATA)
    return rows.X[:limit], rows.y[:limit]


@pytest.fixture(scope="module")
def encoders(minilm):
    encoder = PrefixEncoder(minilm, max_steps=70, **PARAMS)
    return {name: clone(encoder).fit(*read(f"{name}.train", 800)) for name in ("sst2", "sick")}


def test_source_tasks_are_learned(encoders):
    assert encoders["sst2"].score(*read("sst2.test", 400)) > 0.72
    assert encoders["sick"].score(*read("sick.test", 400)) > 0.62
    for encoder in encoders.values():
        assert encoder.history_["train_loss"][-1] < encoder.history_["train_loss"][0]


def score(bank):
    X, y = read("mr.train", 300)
    X_test, y_test = read("mr.test", 500)
    head = make_pipeline(bank, StandardScaler(), LogisticRegression(C=0.01))
    return head.fit(X, y).score(X_test, y_test)


def test_a_sentiment_prefix_helps_a_sentiment_target(encoders):
    bare = score(PrefixBank(encoders, active=[]))
    helped = score(PrefixBank(encoders, active=["sst2"]))
    assert helped > bare + 0.02
    # The other prefix takes part of the gain away, but not all of it.
    assert score(PrefixBank(encoders, weights=0.5)) > bare


def test_each_file_can_be_read_and_scored():
    seen = []
    for info in list_tasks():
        for split in ("train", "test"):
            if not (DATA / f"{info.name}.{split}.jsonl").exists():
                continue
            rows = fetch_task(info.name, split, data_dir=DATA)
            _, counts = check_rows(rows.X, OBJECTIVES[info.objective].row)
            targets = OBJECTIVES[info.objective].read(rows.y, counts)
            assert len(targets.values) == len(rows.X) > 200
            scores = rows.score(rows.y)
            assert scores == pytest.approx(dict.fromkeys(info.metrics, 1))
            seen.append(info.name)
    assert {"mr", "multirc", "cosmosqa", "stsb"} <= set(seen)


@pytest.mark.skipif(not (DATA / "record32.train.jsonl").exists(), reason="no record32.train.jsonl")
def test_record_is_read_in_its_own_format(tmp_path):
    lines = (DATA / "record32.train.jsonl").read_text(encoding="utf-8")
    (tmp_path / "record.train.jsonl").write_text(lines, encoding="utf-8")
    record = fetch_task("record", data_dir=tmp_path)
    assert len(record.X) >= 32
    for (passage, choices), answer in zip(record.X, record.y, strict=True):
        assert "@placeholder" not in "".join(choices)
        assert len(set(choices)) == len(choices) > answer >= 0
        assert passage


def test_similarity_and_multiple_choice_are_learned(minilm):
    train = fetch_task("stsb", "train", 600, DATA, 0)
    encoder = PrefixEncoder(minilm, objective="regression", max_steps=60, **PARAMS)
    encoder.fit(train.X, train.y)
    test = fetch_task("stsb", "test", 300, DATA, 0)
    assert test.score(encoder.predict(test.X))["pearson"] > 0.5
    bank = PrefixBank({"stsb": encoder}, max_length=128, on_truncate="ignore")
    train = fetch_task("cosmosqa", "train", 200, DATA, 0)
    ranker = ChoiceRanker(bank).fit(train.X, train.y)
    test = fetch_task("cosmosqa", "test", 200, DATA, 0)
    assert test.score(ranker.predict(test.X))["accuracy"] > 0.28  # of 0.25
