"""Checks that must pass on every backend of joblib, and what the tests of corpora share."""

import os
import time

import joblib
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from prefixembed import PrefixEncoder, embed_dataset, fit_prefixes, load_backbone

CPU = {"device": "cpu", "dtype": "float32", "max_length": 64}
TEXTS = [f"text {k} of many" for k in range(400)]
TASKS = {
    "one": (["a film", "dull", "of joy", "bore"] * 4, [0, 1, 0, 1] * 4),
    "two": (["one", "two", "three", "four"] * 4, [0, 0, 1, 1] * 4),
}
NOT_A_TEXT = r"dataset\['text'\]\[30\] must be a str, got None"


def read_vectors(folder):
    """Return the vectors of a corpus, in the order of its files."""
    files = sorted(folder.glob("part-*.parquet"))
    return np.concatenate([np.stack(pq.read_table(file)["vector"].to_numpy()) for file in files])


def check_corpus(bank, out, **backend):
    """Check that a corpus has the rows and the order that one process gives it."""
    rows = Dataset.from_dict({"text": TEXTS[:60]})
    with joblib.parallel_config(**backend):
        corpus = embed_dataset(bank, rows, "text", out, shard_size=20)
    assert (corpus.n_rows, corpus.n_shards, corpus.n_made) == (60, 3, 3)
    np.testing.assert_allclose(read_vectors(out), bank.transform(TEXTS[:60]), atol=1e-5)


def check_learning(backbone, **backend):
    """Check that fit_prefixes learns the same prefixes as in one process."""
    encoder = PrefixEncoder(backbone, max_steps=4, learning_rate=0.05, random_state=0, **CPU)
    expected = fit_prefixes(TASKS, encoder)
    with joblib.parallel_config(**backend):
        found = fit_prefixes(TASKS, encoder)
    assert list(found) == list(TASKS)
    for name, fitted in expected.items():
        np.testing.assert_allclose(
            found[name].prefix_.keys_values, fitted.prefix_.keys_values, atol=1e-5
        )


def check_search(bank, **backend):
    """Check that a grid search over a bank has the same scores as in one process."""
    texts, labels = TASKS["one"]
    pipe = Pipeline([("enc", bank), ("clf", LogisticRegression())])
    search = GridSearchCV(pipe, {"enc__active": [None, []], "clf__C": [0.1, 10.0]}, cv=2)
    expected = search.fit(texts, labels).cv_results_["mean_test_score"]
    with joblib.parallel_config(**backend):
        found = search.fit(texts, labels).cv_results_["mean_test_score"]
    np.testing.assert_allclose(found, expected)


def check_error(bank, out, message=NOT_A_TEXT, **backend):
    """Check that an error in a worker is raised, and that a corrected call makes the rest."""
    for last in (None, TEXTS[30]):
        rows = Dataset.from_dict({"text": [*TEXTS[:30], last]})
        with joblib.parallel_config(**backend):
            if last is None:
                with pytest.raises(Exception, match=message):
                    embed_dataset(bank, rows, "text", out, shard_size=20)
            else:
                embed_dataset(bank, rows, "text", out, shard_size=20)
    np.testing.assert_allclose(read_vectors(out), bank.transform(TEXTS[:31]), atol=1e-5)


def check_one_backbone_per_process(bank, **backend):
    """Check that each worker loads one backbone, however many jobs it does."""
    with joblib.parallel_config(**backend):
        results = joblib.Parallel()(joblib.delayed(_embed_one)(bank, k) for k in range(12))
    backbones = {}
    for process, backbone, _ in results:
        backbones.setdefault(process, set()).add(backbone)
    assert os.getpid() not in backbones, "workers are other processes"
    assert len(backbones) <= 2, "each worker does several jobs"
    assert all(len(ids) == 1 for ids in backbones.values())
    expected = bank.transform(TEXTS[:12])
    np.testing.assert_allclose([vector for *_, vector in results], expected, atol=1e-5)


def _embed_one(bank, k):
    vector = bank.transform([TEXTS[k]])[0]
    time.sleep(0.05)  # long enough for the other worker to get jobs, too
    backbone = load_backbone(next(iter(bank.values())).backbone, dtype="float32", device="cpu")
    return os.getpid(), id(backbone), vector
