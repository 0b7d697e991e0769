"""Estimators share one backbone among threads, processes and files."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import skops.io
import torch
from helpers import run_python
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from prefixembed import PrefixBank, PrefixEncoder

CPU = {"dtype": "float32", "device": "cpu"}


@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_vectors_do_not_depend_on_other_threads(tiny, random_prefix, combine, fresh_backbones):
    # Banks of different prefixes share one backbone, with padding and without.
    banks = [
        PrefixBank(
            {name: random_prefix(tiny(), seed=8 * k + j) for j, name in enumerate("ab")},
            combine=combine, weights=0.7, batch_tokens=40, on_truncate="ignore", **CPU,
        )
        for k in range(4)
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    jobs = [
        (bank, ["w" * int(n) for n in rng.integers(1, 90, size=30)])
        for bank in banks
        for _ in range(6)
    ]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda job: job[0].transform(job[1]), jobs))
    for (bank, texts), vectors in zip(jobs, together, strict=True):
        np.testing.assert_allclose(vectors, bank.transform(texts), atol=1e-5)


def test_skops_saves_a_pipeline_and_needs_few_trusted_types(tiny, random_prefix):
    prefix = random_prefix(tiny())
    texts, labels = ["a joy", "a bore", "fun", "dull"] * 4, [1, 0, 1, 0] * 4
    bank = PrefixBank({"a": prefix}, dtype="float32", device="cpu")
    pipe = make_pipeline(bank, LogisticRegression()).fit(texts, labels)
    written = skops.io.dumps(pipe)
    trusted = [
        f"prefixembed.{name}"
        for name in ("bank.PrefixBank", "head.Head", "prefix.Prefix", "reading.Reading")
    ]
    assert skops.io.get_untrusted_types(data=written) == trusted
    loaded = skops.io.loads(written, trusted=trusted)
    np.testing.assert_array_equal(loaded.predict_proba(texts), pipe.predict_proba(texts))
    found = loaded[0]["a"]
    assert found == prefix and not found.keys_values.flags.writeable


@pytest.mark.skipif(torch.cuda.device_count() > 3, reason="the device exists")
@pytest.mark.parametrize("device", ["cuda:3", "cuda:7"])
def test_an_unknown_device_in_a_file_becomes_auto(tiny, random_prefix, device):
    prefix = random_prefix(tiny())
    texts = ["a joy", "a bore", ""]
    for kind, estimator in (
        ("encoder", PrefixEncoder.from_prefix(prefix, dtype="float32", cache=None)),
        ("bank", PrefixBank({"a": prefix}, dtype="float32", cache=None)),
    ):
        expected = estimator.transform(texts)
        for dump, load in ((pickle.dumps, pickle.loads), (skops.io.dumps, trusting_loads)):
            written = dump(estimator.set_params(device=device))
            with pytest.warns(UserWarning, match=f"device '{device}', which this .* saved with"):
                loaded = load(written)
            assert loaded.device == "auto", kind
            np.testing.assert_allclose(loaded.transform(texts), expected, atol=1e-5)
            estimator.set_params(device="auto")


def test_a_clone_keeps_its_device(tiny, random_prefix):
    # Only loading replaces an unknown device.
    assert clone(PrefixBank({"a": random_prefix(tiny())}, device="cuda:7")).device == "cuda:7"


def trusting_loads(written):
    return skops.io.loads(written, trusted=skops.io.get_untrusted_types(data=written))


def test_threads_share_one_bank(tiny, random_prefix):
    bank = PrefixBank({"a": random_prefix(tiny()), "b": random_prefix(tiny(), seed=1)}, **CPU)
    texts = [f"text {k}" * (k % 5) for k in range(50)]
    expected = bank.transform(texts)
    with ThreadPoolExecutor(8) as threads:
        for vectors in threads.map(lambda _: bank.transform(texts), range(24)):
            np.testing.assert_array_equal(vectors, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_use_a_bank_of_their_parent(
    tiny, random_prefix, method, dtype, monkeypatch
):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this platform has no {method}")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    prefixes = {"a": random_prefix(tiny()), "b": random_prefix(tiny(), seed=1)}
    bank = PrefixBank(prefixes, device="cpu", dtype=dtype, cache=None, on_truncate="ignore")
    texts = [f"text {k} " * (k % 9) for k in range(200)]
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)  # a forked child has only its first thread
    expected = bank.transform(texts)
    torch.set_num_threads(n_threads)
    with warnings.catch_warnings():
        # Python 3.12 and later warn about forks of a process with threads.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        with multiprocessing.get_context(method).Pool(2) as pool:
            jobs = [pool.apply_async(bank.transform, (texts,)) for _ in range(4)]
            together = [job.get(timeout=180) for job in jobs]
    for vectors in together:
        np.testing.assert_allclose(vectors, expected, atol=1e-5 if dtype == "float32" else 0.1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_process_can_be_forked_while_a_backbone_is_loaded(tiny, fresh_backbones):
    code = """if True:
        import os, sys, threading
        from prefixembed import PrefixBank, backbone
        real, inside, go_on = backbone.load_files, threading.Event(), threading.Event()
        def slow(*args):
            inside.set()
            go_on.wait()
            return real(*args)
        backbone.load_files = slow
        bank = PrefixBank({}, backbone=sys.argv[1], dtype="float32", device="cpu", cache=None)
        thread = threading.Thread(target=bank.transform, args=(["a"],))
        thread.start()
        inside.wait()
        child = os.fork()
        backbone.load_files = real
        if not child:
            assert bank.transform(["a", "b"]).shape == (2, 32)
            os._exit(7)
        _, status = os.waitpid(child, 0)
        go_on.set()
        thread.join()
        assert os.waitstatus_to_exitcode(status) == 7
    """
    run_python(code, tiny(), options=["-W", "ignore::DeprecationWarning"])


@pytest.mark.slow
def test_memory_and_open_files_stay_flat(tiny):
    # soak.py can also run for an hour, by hand.
    soak = Path(__file__).with_name("soak.py")
    command = [sys.executable, str(soak), tiny(), "--rounds", "15"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    rss, objects, files, threads = (
        b - a for a, b in zip(found["first"], found["last"], strict=True)
    )
    assert rss < 15e6, f"{rss / 1e6:.1f} MB more"
    assert objects < 2000
    assert files <= 0
    assert threads <= 0
