"""Measure the wall time of a grid search: 8 subsets of a bank, 10 values of C, 5 folds.

The same pipeline runs with a cache in memory, with a cache on disk, without a cache, and with
``Pipeline(memory=...)``. Each side starts with an empty cache::

    python examples/benchmarks/search.py [--data DIR]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from common import bars, machine, random_prefixes, read_texts, table
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed import PrefixBank, VectorCache, fill_cache, prefix_subsets
from prefixembed.tasks import demo_backbone


def read_labelled(data: Path | None, limit: int) -> tuple[list[str], np.ndarray]:
    """Return real texts with two classes: whether a text is longer than the median."""
    texts = read_texts(data, "short", limit)
    lengths = np.array([len(text) for text in texts])
    return texts, (lengths > np.median(lengths)).astype(int)


def main() -> None:
    """Run the fast sides three times, and the others once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: docstrings)")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("results/search"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    X, y = read_labelled(args.data, args.texts)
    prefixes = random_prefixes(demo_backbone(), 3)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)

    def search(cache: object, n_jobs: int = 1, memory: str | None = None) -> GridSearchCV:
        bank = PrefixBank(prefixes, cache=cache, on_truncate="ignore")
        head = LogisticRegression(max_iter=1000)
        steps = [("enc", bank), ("scale", StandardScaler()), ("clf", head)]
        grid = {"enc__active": prefix_subsets(bank), "clf__C": list(np.logspace(-4, 0, 10))}
        pipe = Pipeline(steps, memory=memory)
        return GridSearchCV(pipe, grid, cv=folds, n_jobs=n_jobs, error_score="raise")

    def in_memory(folder: str) -> GridSearchCV:
        return search(VectorCache()).fit(X, y)

    def on_disk(folder: str) -> GridSearchCV:
        return search(f"{folder}/vectors.db").fit(X, y)

    def on_disk_two_workers(folder: str) -> GridSearchCV:
        filled = search(f"{folder}/vectors.db", n_jobs=2)
        fill_cache(filled, X)
        return filled.fit(X, y)

    sides = {
        "cache in memory": (in_memory, 3),
        "cache on disk": (on_disk, 3),
        "cache on disk, prefilled, n_jobs=2": (on_disk_two_workers, 3),
        "Pipeline(memory=...), cache=None": (lambda f: search(None, memory=f).fit(X, y), 1),
        "cache=None": (lambda folder: search(None).fit(X, y), 1),
    }
    PrefixBank(prefixes, cache=None).transform(X)  # load the backbone before timing
    seconds, scores = {}, {}
    for name, (run, rounds) in sides.items():
        taken = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                found = run(folder)
                taken.append(time.perf_counter() - started)
        seconds[name] = float(np.median(taken))
        scores[name] = found.best_score_
        print(f"{name}: {seconds[name]:.1f} s", flush=True)
    base = seconds["cache in memory"]
    rows = [(n, f"{s:.1f}", f"{s / base:.1f}", f"{scores[n]:.4f}") for n, s in seconds.items()]
    print(f"\n{machine()}; {len(X)} texts, 400 fits and a refit")
    print(table(("side", "seconds", "ratio to the cache in memory", "best score"), rows))
    ratios = {name: value / base for name, value in seconds.items()}
    bars(
        args.out / "search.png", ratios, "wall time of a grid search, ratio to the cache in memory"
    )
    (args.out / "search.json").write_text(json.dumps({"machine": machine(), "seconds": seconds}))


if __name__ == "__main__":
    main()
