"""Measure the bytes, deviation and accuracy of smaller dtypes.

A prefix is learned on one task. Heads for the target tasks are trained on its vectors, with each
dtype that the backbone can compute in and each dtype that vectors can be stored in::

    python examples/benchmarks/storage.py [--data DIR]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, table
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed import PrefixBank, PrefixEncoder
from prefixembed.tasks import Task, demo_backbone, load_docstring_task


def read(data: Path, name: str, limit: int) -> Task:
    """Load a task from a folder."""
    sides: list[Any] = []
    for split in ("train", "test"):
        with open(data / f"{name}.{split}.jsonl", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file][:limit]
        pairs = "text_b" in rows[0]
        sides.append([(r["text"], r["text_b"]) if pairs else r["text"] for r in rows])
        sides.append(np.array([r["label"] for r in rows]))
    return Task(name, *sides)


def score(train: np.ndarray, test: np.ndarray, task: Task) -> float:
    """Return the test accuracy of a head whose C is chosen on the training texts."""
    head = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=[1e-3, 1e-2, 1e-1], l1_ratios=[0], cv=3, max_iter=2000, scoring="accuracy",
            use_legacy_attributes=False,
        ),
    )  # fmt: skip
    return float(head.fit(train, task.y_train).score(test, task.y_test))


def main() -> None:
    """Measure each dtype on each target task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: docstrings)")
    parser.add_argument("--limit", type=int, default=1500)
    args = parser.parse_args()
    if args.data:
        source = read(args.data, "sst2", 2000)
        targets = [read(args.data, name, args.limit) for name in ("mr", "cr", "mrpc")]
    else:
        source = load_docstring_task("package", 400)
        targets = [load_docstring_task("subpackage", 50), load_docstring_task("kind", 200)]
    params = {"on_truncate": "ignore", "max_length": 128, "pairs": "joint"}
    encoder = PrefixEncoder(demo_backbone(), random_state=0, dtype="float32", **params)
    bank = PrefixBank({source.name: encoder.fit(source.X_train, source.y_train)}, **params)
    kinds = [("float32", "float32"), ("bfloat16", "float32")]
    if torch.cuda.is_available():  # float16 is very slow on a CPU
        kinds.append(("float16", "float32"))
    kinds += [("float32", kind) for kind in ("float16", "int8", "binary")]
    exact, rows = {}, []
    for dtype, output_dtype in kinds:
        accuracies, worst = [], 0.0
        bank.set_params(dtype=dtype, output_dtype=output_dtype)
        for task in targets:
            train, test = bank.transform(task.X_train), bank.transform(task.X_test)
            width = test.nbytes // len(test)
            if output_dtype == "binary":
                train, test = (np.unpackbits(packed, axis=1) for packed in (train, test))
            # A scaler computes in the dtype of its input, and float16 is too small for it.
            train, test = train.astype(np.float32), test.astype(np.float32)
            accuracies.append(score(train, test, task))
            plain = exact.setdefault(task.name, test)
            vectors = test - 0.5 * (output_dtype == "binary")
            norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(plain, axis=1)
            worst = max(worst, 1 - float(((vectors * plain).sum(axis=1) / norms).min()))
        cells = [f"{accuracy:.3f}" for accuracy in accuracies]
        mean = f"{np.mean(accuracies):.3f}"
        rows.append((dtype, output_dtype, width, f"{worst:.0e}", *cells, mean))
    print(machine())
    names = [task.name for task in targets]
    print(table(("dtype", "output_dtype", "bytes", "1 - cosine, worst", *names, "mean"), rows))


if __name__ == "__main__":
    main()
