"""One backbone for all: threads, memory."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from prefixembed import PrefixBank

CPU = {"dtype": "float32", "device": "cpu"}


@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_eight_threads_give_what_one_gives(tiny, random_prefix, combine, fresh_backbones):
    # Banks of different prefixes on one backbone, padded and not: nothing leaks among threads.
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


def test_skops_carries_a_pipeline_with_two_types_to_trust(tiny, random_prefix):
    prefix = random_prefix(tiny())
    texts, labels = ["a joy", "a bore", "fun", "dull"] * 4, [1, 0, 1, 0] * 4
    bank = PrefixBank({"a": prefix}, dtype="float32", device="cpu")
    pipe = make_pipeline(bank, LogisticRegression()).fit(texts, labels)
    written = skops.io.dumps(pipe)
    trusted = ["prefixembed.bank.PrefixBank", "prefixembed.prefix.Prefix"]
    assert skops.io.get_untrusted_types(data=written) == trusted
    again = skops.io.loads(written, trusted=trusted)
    np.testing.assert_array_equal(again.predict_proba(texts), pipe.predict_proba(texts))
    found = again[0].prefixes["a"]
    assert found == prefix and not found.keys_values.flags.writeable


def test_one_bank_serves_threads(tiny, random_prefix):
    bank = PrefixBank({"a": random_prefix(tiny()), "b": random_prefix(tiny(), seed=1)}, **CPU)
    texts = [f"text {k}" * (k % 5) for k in range(50)]
    expected = bank.transform(texts)
    with ThreadPoolExecutor(8) as threads:
        for vectors in threads.map(lambda _: bank.transform(texts), range(24)):
            np.testing.assert_array_equal(vectors, expected)


MEMORY = """
import gc, json, os, sys, warnings
import numpy as np, psutil
from prefixembed import PrefixBank, PrefixEncoder
warnings.simplefilter("ignore")
process = psutil.Process()
rng = np.random.default_rng(0)
texts = [" ".join(["word"] * int(n)) for n in rng.integers(1, 12, size=40)]
labels = rng.integers(2, size=40)
settings = dict(max_length=64, max_epochs=2, batch_size=8, dtype="float32", device="cpu")
encoder = PrefixEncoder(sys.argv[1], **settings).fit(texts, labels)
bank = PrefixBank({"a": encoder, "b": encoder.prefix_}, dtype="float32", device="cpu")

def once(k):
    bank.set_params(combine=("concat", "mean")[k % 2]).transform(texts + [f"new {k}"])

def measure():
    gc.collect()
    return process.memory_info().rss, len(gc.get_objects()), process.num_fds()

for k in range(40):
    once(k)
PrefixEncoder(sys.argv[1], **settings).fit(texts, labels)
before = measure()
for k in range(200):
    once(k)
for k in range(10):
    PrefixEncoder(sys.argv[1], **settings).fit(texts, labels)
print(json.dumps([before, measure()]))
"""


def test_memory_stays_flat_over_200_transforms_and_10_fits(tiny):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tiny()], capture_output=True, text=True, check=True
    )
    before, after = json.loads(done.stdout.splitlines()[-1])
    rss, objects, files = (b - a for a, b in zip(before, after, strict=True))
    assert rss < 15e6, f"{rss / 1e6:.1f} MB more"
    assert objects < 2000
    assert files <= 0
