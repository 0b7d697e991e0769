"""Workers: threads and processes, what they hold in memory, and what they load."""

import gc
import os
import threading
import tracemalloc
import warnings

import joblib
import numpy as np
import pyarrow as pa
import pytest
from backend_checks import CPU, read_vectors
from datasets import Dataset, IterableDataset

from prefixembed import MultiTaskEncoder, PrefixBank, backbone, embed_dataset
from prefixembed.corpus import jobs

TEXTS = [f"{'a film of joy '[: k % 13]}{k}" for k in range(53)]


@pytest.fixture
def bank(tiny, random_prefix):
    return PrefixBank({"a": random_prefix(tiny())}, **CPU)


@pytest.fixture
def rows():
    return Dataset.from_dict({"text": TEXTS})


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_all_backends_give_equal_vectors(backend, bank, rows, tmp_path):
    embed_dataset(bank, rows, "text", tmp_path / "one", shard_size=10)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        done = embed_dataset(bank, rows, "text", tmp_path / "two", shard_size=10)
    assert done.n_made == 6
    np.testing.assert_allclose(
        read_vectors(tmp_path / "two"), read_vectors(tmp_path / "one"), atol=1e-6
    )


def test_two_calls_cannot_write_to_one_folder(bank, rows, tmp_path):
    waiting, go_on = threading.Event(), threading.Event()

    def slow_rows():
        for text in TEXTS[:4]:
            yield {"text": text}
        waiting.set()
        assert go_on.wait(60)

    def first_call():
        source = IterableDataset.from_generator(slow_rows)
        embed_dataset(bank, source, "text", tmp_path / "out", shard_size=2)

    thread = threading.Thread(target=first_call)
    thread.start()
    assert waiting.wait(60)
    try:
        with pytest.raises(ValueError, match="another call of embed_dataset is writing to"):
            embed_dataset(bank, rows, "text", tmp_path / "out")
    finally:
        go_on.set()
        thread.join()


class CountedBytes(bytes):
    """Rows on their way to a worker, which count how many of them are alive."""

    n_alive = n_created = 0

    def __init__(self, _):
        CountedBytes.n_alive += 1
        CountedBytes.n_created += 1

    def __del__(self):
        CountedBytes.n_alive -= 1

    def __reduce__(self):
        return bytes, (bytes(self),)


@pytest.mark.parametrize("backend", ["sequential", "threading", "loky"])
def test_few_shards_are_held_at_a_time(backend, bank, tmp_path, monkeypatch):
    def generate():
        for k in range(1000):
            yield {"text": f"text {k % 7}"}
            n_held.append(CountedBytes.n_alive)

    to_bytes = jobs.table_to_bytes
    monkeypatch.setattr(jobs, "table_to_bytes", lambda table: CountedBytes(to_bytes(table)))
    source = IterableDataset.from_generator(generate)
    for n_made in (200, 0):  # files that are there already are passed quickly
        n_held = []
        n_before = CountedBytes.n_created
        with joblib.parallel_config(backend=backend, n_jobs=2):
            done = embed_dataset(bank, source, "text", tmp_path / "out", shard_size=5)
        assert (done.n_shards, done.n_made) == (200, n_made)
        assert CountedBytes.n_created == n_before + 200
        assert max(n_held) <= 10


def test_memory_does_not_grow_with_the_number_of_rows(bank, tmp_path):
    def peak(n_rows):
        arrow_bytes = []

        def generate():
            for k in range(n_rows):
                arrow_bytes.append(pa.total_allocated_bytes())
                yield {"text": f"text {k} " + "x" * 1000}

        source = IterableDataset.from_generator(generate)
        tracemalloc.start()
        try:
            embed_dataset(bank, source, "text", tmp_path / str(n_rows), shard_size=100)
            return tracemalloc.get_traced_memory()[1] + max(arrow_bytes)
        finally:
            tracemalloc.stop()

    bank.set_params(on_truncate="ignore")
    peak(100)  # what is allocated once
    few, many = peak(300), peak(2400)
    assert many < 1.3 * few
    assert few > 100 * 1000, "the measurement sees at least the texts of one shard"


@pytest.fixture
def multitask(tiny):
    encoder = MultiTaskEncoder(tiny(), max_steps=1, random_state=0, **CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return encoder.fit({"a": (TEXTS[:8], [0, 1] * 4)})


@pytest.mark.parametrize("backend", ["sequential", "multiprocessing"])
def test_each_process_loads_a_fine_tuned_backbone_once(
    backend, multitask, rows, tmp_path, monkeypatch
):
    read_backbone = backbone._read_backbone

    def logged(*args):
        with open(tmp_path / "loads", "a") as log:
            log.write(f"{os.getpid()}\n")
        return read_backbone(*args)

    monkeypatch.setattr(backbone, "_read_backbone", logged)
    out = tmp_path / "out"
    with joblib.parallel_config(backend=backend, n_jobs=2):
        embed_dataset(multitask, rows, "text", out, shard_size=2)
    loads = (tmp_path / "loads").read_text().split()
    assert len(loads) == len(set(loads))
    assert (str(os.getpid()) in loads) and len(loads) == (3 if backend == "multiprocessing" else 1)
    np.testing.assert_allclose(read_vectors(out), multitask.transform(TEXTS), atol=1e-5)
    assert not list(out.glob(".backbone-*"))


def test_number_of_shards_does_not_change_what_is_kept(tmp_path):
    alive = []

    def make(index, start, rows):
        return jobs.ShardReport(tmp_path / f"{index}", 2, 1, "missing" if index % 2 else "intact")

    def tables():
        for k in range(60):
            alive.append(sum(type(item) is jobs.ShardReport for item in gc.get_objects()))
            yield 2 * k, pa.table({"text": ["a", "b"]})

    totals = jobs.run_jobs(make, tables(), None, 1, verbose=False)
    assert totals == jobs.Totals(n_shards=60, n_made=30, n_rows=120, n_truncated=60)
    assert max(alive) <= 2
