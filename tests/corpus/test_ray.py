"""Ray on one machine, as a backend of joblib and through Ray Data."""

import os
import runpy
import signal
import threading
from pathlib import Path

import joblib
import numpy as np
import psutil
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

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'prefixembed[ray]'")

# Warnings of Ray itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:ray.*"),
]
BACKEND = {"backend": "ray", "n_jobs": 2}


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    from ray.util.joblib import register_ray

    # Workers import backend_checks from this folder.
    paths = {"PYTHONPATH": os.path.dirname(__file__), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200_000_000,
        runtime_env={"env_vars": paths},
        log_to_driver=False,
    )
    register_ray()
    yield
    ray.shutdown()


@pytest.fixture
def bank(tiny, random_prefix):
    return PrefixBank({"a": random_prefix(tiny())}, **CPU)


def test_results_are_those_of_one_process(tiny, bank, tmp_path):
    check_corpus(bank, tmp_path / "out", **BACKEND)
    check_learning(tiny(), **BACKEND)
    check_search(bank, **BACKEND)
    check_one_backbone_per_process(bank, **BACKEND)


def test_errors_of_workers_are_raised(bank, tmp_path):
    check_error(bank, tmp_path / "out", **BACKEND)


def test_same_call_makes_the_rest_after_a_worker_died(bank, tmp_path):
    # Ray's pool does not replace a worker that died: the call fails, and finished files stay.
    out = tmp_path / "out"
    n_when_killed = []

    def kill_one():
        wait_until(lambda: list(out.glob("part-*")))
        workers = psutil.Process().children(recursive=True)
        (one, *_) = [process for process in workers if "PoolActor" in " ".join(process.cmdline())]
        os.kill(one.pid, signal.SIGKILL)
        n_when_killed.append(len(list(out.glob("part-*"))))

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    rows = Dataset.from_dict({"text": TEXTS})
    with joblib.parallel_config(**BACKEND), pytest.raises(ray.exceptions.RayError):
        embed_dataset(bank, rows, "text", out, shard_size=2)
    thread.join()
    assert n_when_killed[0] < 200, "the worker was killed before the end"
    n_before = len(list(out.glob("part-*.parquet")))
    with joblib.parallel_config(**BACKEND):
        done = embed_dataset(bank, rows, "text", out, shard_size=2)
    assert (done.n_rows, done.n_made) == (400, 200 - n_before)
    np.testing.assert_allclose(read_vectors(out), bank.transform(TEXTS), atol=1e-5)


def test_ray_data_gives_the_vectors_of_transform(bank, tmp_path):
    import pyarrow.parquet as pq

    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "ray_data.py"))
    Dataset.from_dict({"id": range(60), "text": TEXTS[:60]}).to_parquet(tmp_path / "in.parquet")
    bank.save(tmp_path / "bank")
    out = tmp_path / "out"
    words = [tmp_path / "bank", tmp_path / "in.parquet", "text", out, "--dtype", "float32"]
    example["main"]([str(word) for word in words])
    table = pq.read_table(out).sort_by("id")
    assert table.column("text").to_pylist() == TEXTS[:60]
    vectors = np.stack(table.column("vector").to_pylist())
    np.testing.assert_allclose(vectors, bank.transform(TEXTS[:60]), atol=1e-5)
