"""The same work on engines that others make, through joblib."""

import os
import signal
import threading
import time

import joblib
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from prefixembed import PrefixBank, embed_dataset, fit_prefixes
from prefixembed.encoder import PrefixEncoder

distributed = pytest.importorskip("distributed", reason="needs dask: pip install '.[dask]'")

CPU = {"device": "cpu", "dtype": "float32", "max_length": 64}
TEXTS = [f"text {k} of many" for k in range(400)]

# Of Dask's own, while workers come and go.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Two worker processes, as a cluster has them."""
    folder = tmp_path_factory.mktemp("dask")
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            local_directory=str(folder),
            silence_logs=50,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def read(folder):
    files = sorted(folder.glob("part-*.parquet"))
    return np.concatenate([np.stack(pq.read_table(file)["vector"].to_numpy()) for file in files])


def test_dask_loses_a_worker_and_no_row(client, tiny, random_prefix, tmp_path):
    bank = PrefixBank({"a": random_prefix(tiny())}, **CPU)
    out = tmp_path / "out"
    pid = next(iter(client.run(os.getpid).values()))
    n_when_killed = []

    def kill_one():
        while not list(out.glob("part-*")):
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        n_when_killed.append(len(list(out.glob("part-*"))))

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    rows = Dataset.from_dict({"text": TEXTS})
    with joblib.parallel_config(backend="dask"):
        done = embed_dataset(bank, rows, "text", out, shard_size=2)
    assert n_when_killed[0] < 200, "in the middle of the work"
    assert (done.n_rows, done.n_shards) == (400, 200)
    np.testing.assert_allclose(read(out), bank.transform(TEXTS), atol=1e-5)


def test_dask_learns_what_one_process_learns(client, tiny):
    tasks = {
        "one": (["a film", "dull", "of joy", "bore"] * 4, [0, 1, 0, 1] * 4),
        "two": (["one", "two", "three", "four"] * 4, [0, 0, 1, 1] * 4),
    }
    encoder = PrefixEncoder(tiny(), max_epochs=4, learning_rate=0.05, random_state=0, **CPU)
    expected = fit_prefixes(tasks, encoder)
    with joblib.parallel_config(backend="dask"):
        found = fit_prefixes(tasks, encoder)
    for name, fitted in expected.items():
        np.testing.assert_allclose(
            found[name].prefix_.keys_values, fitted.prefix_.keys_values, atol=1e-5
        )


def test_dask_gives_what_one_process_gives(client, tiny, random_prefix, tmp_path):
    bank = PrefixBank({"a": random_prefix(tiny())}, **CPU)
    rows = Dataset.from_dict({"text": TEXTS[:60]})
    with joblib.parallel_config(backend="dask"):
        embed_dataset(bank, rows, "text", tmp_path / "out", shard_size=20)
    np.testing.assert_allclose(read(tmp_path / "out"), bank.transform(TEXTS[:60]), atol=1e-5)


def test_an_error_at_dask_comes_back(client, tiny, random_prefix, tmp_path):
    bank = PrefixBank({"a": random_prefix(tiny())}, **CPU)
    rows = Dataset.from_dict({"text": [*TEXTS[:30], None]})
    with (
        joblib.parallel_config(backend="dask"),
        pytest.raises(ValueError, match=r"dataset\['text'\]\[30\] must be a str, got None"),
    ):
        embed_dataset(bank, rows, "text", tmp_path / "out", shard_size=20)
