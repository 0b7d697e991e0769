"""Real source and target tasks, where their data is at hand."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed import PrefixBank, PrefixEncoder

DEFAULT = Path(__file__).parents[2] / "shared" / "data"
DATA = Path(os.environ.get("PREFIXEMBED_DATA", DEFAULT))

pytestmark = pytest.mark.skipif(
    not (DATA / "sst2.train.jsonl").exists(),
    reason="no real tasks: set PREFIXEMBED_DATA to a folder of <task>.<split>.jsonl files",
)


def read(name, limit):
    with open(DATA / f"{name}.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:limit]
    pairs = "text_b" in rows[0]
    X = [(row["text"], row["text_b"]) if pairs else row["text"] for row in rows]
    return X, np.array([row["label"] for row in rows])


@pytest.fixture(scope="module")
def encoders(minilm):
    params = {"max_length": 64, "on_truncate": "ignore", "random_state": 0}
    return {
        name: PrefixEncoder(minilm, max_epochs=3, learning_rate=0.02, **params).fit(
            *read(f"{name}.train", 800)
        )
        for name in ("sst2", "sick")
    }


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


def test_a_prefix_of_sentiment_helps_a_target_of_sentiment(encoders):
    bare = score(PrefixBank(encoders, active=[]))
    helped = score(PrefixBank(encoders, active=["sst2"]))
    assert helped > bare + 0.02
    # Halving what each of two prefixes weighs keeps some of it, in one pass.
    assert score(PrefixBank(encoders, weights=0.5)) > bare
