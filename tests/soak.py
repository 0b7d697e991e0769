"""Soak test: repeat everyday work, and measure memory, objects, open files and threads.

``test_sharing.py`` runs a few rounds, and checks that nothing grows. To run it for an hour::

    python tests/soak.py BACKBONE --minutes 60

BACKBONE is a folder or a Hub name. Each round fits a prefix with checkpoints, puts it into a bank
in place of an older one, computes vectors with several settings, and saves and loads everything.
"""

import argparse
import gc
import json
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import psutil
from joblib import dump, load
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from prefixembed import Prefix, PrefixBank, PrefixEncoder, VectorCache

CPU = {"dtype": "float32", "device": "cpu", "max_length": 64, "on_truncate": "ignore"}


class Soak:
    """Run rounds of work on one bank."""

    def __init__(self, backbone, folder):
        self.backbone, self.folder = backbone, Path(folder)
        self.rng = np.random.default_rng(0)
        self.cache = VectorCache(self.folder / "vectors.db", max_bytes=2**20)
        self.memory = VectorCache(max_bytes=2**18)
        self.bank = PrefixBank({}, backbone=backbone, cache=self.memory, **CPU)
        self.n_rounds = 0

    def texts(self, n):
        lengths = self.rng.integers(0, 12, size=n)
        return [" ".join(f"w{self.rng.integers(999)}" for _ in range(k)) for k in lengths]

    def round(self):
        """Fit, transform, pickle, save and load once."""
        k = self.n_rounds
        texts, labels = self.texts(40), np.arange(40) % 2
        encoder = PrefixEncoder(
            self.backbone, max_steps=10, batch_size=8, random_state=k, cache=self.cache,
            checkpoint_dir=self.folder / "checkpoints", **CPU,
        ).fit(texts, labels)  # fmt: skip
        encoder.predict(texts)
        name = f"task {k % 5}"
        if name in self.bank:
            self.bank.remove(name)
        self.bank.add(name, encoder.prefix_)
        for params in (
            {"combine": "concat", "cache": self.memory},
            {"combine": "mean", "cache": self.cache},
            {"combine": "concat", "weights": 0.5, "cache": None},
        ):
            self.bank.set_params(weights=None).set_params(**params)
            vectors = self.bank.transform(texts)
            assert np.isfinite(vectors).all()
        pairs = list(zip(texts[::2], texts[1::2], strict=True))
        self.bank.transform(iter(pairs))
        self.bank.set_params(weights=None, output="words").transform([t.split() for t in texts])
        self.bank.set_params(output="texts", cache=self.memory)
        pipe = make_pipeline(self.bank, LogisticRegression()).fit(texts, labels)
        dump(pipe, self.folder / "pipe.joblib")
        again = load(self.folder / "pipe.joblib")
        np.testing.assert_array_equal(again.predict(texts), pipe.predict(texts))
        self.bank.save(self.folder / "bank")
        loaded = PrefixBank.load(self.folder / "bank")
        assert list(loaded.items()) == list(self.bank.items())
        encoder.prefix_.save(self.folder / "one.safetensors")
        assert Prefix.load(self.folder / "one.safetensors") == encoder.prefix_
        try:
            self.bank.transform([None])
        except ValueError:
            pass
        else:
            raise AssertionError("None was accepted as a text")
        for run in (self.folder / "checkpoints").iterdir():
            for file in run.iterdir():
                file.unlink()
            run.rmdir()
        self.n_rounds += 1


def measure(process):
    """Return memory in bytes, and the number of objects, open files and threads."""
    gc.collect()
    n_files = process.num_fds() if os.name == "posix" else process.num_handles()
    return process.memory_info().rss, len(gc.get_objects()), n_files, process.num_threads()


def main():
    """Run for a number of minutes or rounds, and print the first and the last measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbone")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(args.backbone, folder)
        for _ in range(15):  # fill the caches first
            soak.round()
        measured = [measure(process)]
        started = time.monotonic()
        n_printed = 0
        while soak.n_rounds < 15 + args.rounds or time.monotonic() - started < 60 * args.minutes:
            soak.round()
            minutes = (time.monotonic() - started) / 60
            if minutes - n_printed >= 1:
                n_printed += 1
                measured.append(measure(process))
                print(f"{minutes:.0f} min, {soak.n_rounds} rounds: {measured[-1]}", flush=True)
        measured.append(measure(process))
    print(json.dumps({"rounds": soak.n_rounds, "first": measured[0], "last": measured[-1]}))


if __name__ == "__main__":
    main()
