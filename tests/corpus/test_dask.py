"""Dask as a backend of joblib."""

import os
import signal
import threading

import joblib
import numpy as np
import pytest
from backend_checks import (
    CPU,
    TEXTS,
    check_corpus,
    check_error,
    check_learning,
    check_one_backbone_per_process,
    check_search,
    read_vectors,
)
from datasets import Dataset
from helpers import wait_until

from prefixembed import PrefixBank, embed_dataset

distributed = pytest.importorskip("distributed", reason="needs Dask: pip install '.[dask]'")

# Dask itself leaves resources open while workers come and go.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A cluster of two worker processes."""
    folder = tmp_path_factory.mktemp("dask")
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=":0",  # any free port: several test runs may share a machine
            local_directory=str(folder),
            silence_logs=50,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def bank(tiny, random_prefix):
    return PrefixBank({"a": random_prefix(tiny())}, **CPU)


@pytest.mark.slow
def test_no_row_is_lost_with_a_worker(client, bank, tmp_path):
    out = tmp_path / "out"
    pid = next(iter(client.run(os.getpid).values()))
    n_when_killed = []

    def kill_one():
        wait_until(lambda: list(out.glob("part-*")))
        os.kill(pid, signal.SIGKILL)
        n_when_killed.append(len(list(out.glob("part-*"))))

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    rows = Dataset.from_dict({"text": TEXTS})
    with joblib.parallel_config(backend="dask"):
        done = embed_dataset(bank, rows, "text", out, shard_size=2)
    assert n_when_killed[0] < 200, "the worker was killed before the end"
    assert (done.n_rows, done.n_shards) == (400, 200)
    np.testing.assert_allclose(read_vectors(out), bank.transform(TEXTS), atol=1e-5)


def test_results_are_those_of_one_process(client, tiny, bank, tmp_path):
    check_corpus(bank, tmp_path / "out", backend="dask")
    check_learning(tiny(), backend="dask")
    check_search(bank, backend="dask")
    check_one_backbone_per_process(bank, backend="dask")


def test_errors_of_workers_are_raised(client, bank, tmp_path):
    check_error(bank, tmp_path / "out", backend="dask")
