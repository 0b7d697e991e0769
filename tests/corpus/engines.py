"""What must hold on every engine that joblib can work on, whoever made it."""

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


def read(folder):
    """Give the vectors of a corpus, in the order of its files."""
    files = sorted(folder.glob("part-*.parquet"))
    return np.concatenate([np.stack(pq.read_table(file)["vector"].to_numpy()) for file in files])


def check_corpus(bank, out, **backend):
    """Embed a corpus: the rows, in order, that one process gives."""
    rows = Dataset.from_dict({"text": TEXTS[:60]})
    with joblib.parallel_config(**backend):
        done = embed_dataset(bank, rows, "text", out, shard_size=20)
    assert (done.n_rows, done.n_shards, done.n_made) == (60, 3, 3)
    np.testing.assert_allclose(read(out), bank.transform(TEXTS[:60]), atol=1e-5)


def check_learning(backbone, **backend):
    """Learn source tasks side by side: what one process learns."""
    encoder = PrefixEncoder(backbone, max_epochs=4, learning_rate=0.05, random_state=0, **CPU)
    expected = fit_prefixes(TASKS, encoder)
    with joblib.parallel_config(**backend):
        found = fit_prefixes(TASKS, encoder)
    assert list(found) == list(TASKS)
    for name, fitted in expected.items():
        np.testing.assert_allclose(
            found[name].prefix_.keys_values, fitted.prefix_.keys_values, atol=1e-5
        )


def check_search(bank, **backend):
    """Search over subsets of a bank: the scores of one process."""
    texts, labels = TASKS["one"]
    pipe = Pipeline([("enc", bank), ("clf", LogisticRegression())])
    search = GridSearchCV(pipe, {"enc__active": [None, []], "clf__C": [0.1, 10.0]}, cv=2)
    expected = search.fit(texts, labels).cv_results_["mean_test_score"]
    with joblib.parallel_config(**backend):
        found = search.fit(texts, labels).cv_results_["mean_test_score"]
    np.testing.assert_allclose(found, expected)


NO_TEXT = r"dataset\['text'\]\[30\] must be a str, got None"


def check_error(bank, out, message=NO_TEXT, **backend):
    """Meet what is no text: an error comes back, and the same call without it makes the rest."""
    for last in (None, TEXTS[30]):
        rows = Dataset.from_dict({"text": [*TEXTS[:30], last]})
        with joblib.parallel_config(**backend):
            if last is None:
                with pytest.raises(Exception, match=message):
                    embed_dataset(bank, rows, "text", out, shard_size=20)
            else:
                embed_dataset(bank, rows, "text", out, shard_size=20)
    np.testing.assert_allclose(read(out), bank.transform(TEXTS[:31]), atol=1e-5)


def check_one_backbone_a_process(bank, **backend):
    """Transform in many jobs: every process has loaded one backbone, whatever it did."""
    with joblib.parallel_config(**backend):
        seen = joblib.Parallel()(joblib.delayed(_where)(bank, k) for k in range(12))
    by_process = {}
    for process, backbone, _ in seen:
        by_process.setdefault(process, set()).add(backbone)
    assert os.getpid() not in by_process, "in other processes"
    assert len(by_process) <= 2, "which do more than one job"
    assert all(len(backbones) == 1 for backbones in by_process.values())
    expected = bank.transform(TEXTS[:12])
    np.testing.assert_allclose([vector for *_, vector in seen], expected, atol=1e-5)


def _where(bank, k):
    vector = bank.transform([TEXTS[k]])[0]
    time.sleep(0.05)  # so that one process does not do them all
    backbone = load_backbone(next(iter(bank.values())).backbone, dtype="float32", device="cpu")
    return os.getpid(), id(backbone), vector
