"""Measure accuracy, training time and inference time by prefix length.

One source task is learned with prefixes of several lengths, with several seeds each. Heads on the
vectors are scored on a target task. By default, the tasks are docstring tasks::

    python examples/prefix_length.py [--lengths 1 2 5 10 20 50] [--seeds 0 1 2]
    python examples/prefix_length.py --data DIR --source sst2 --target cr
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed import PrefixBank, PrefixEncoder
from prefixembed.tasks import Task, demo_backbone, fetch_task, load_docstring_task


def load(args: argparse.Namespace, name: str, limit: int) -> Task:
    """Load a task from a folder, or a docstring task if there is none."""
    if args.data is None:
        task = load_docstring_task(name)
        return Task(name, task.X_train[:limit], task.y_train[:limit], task.X_test, task.y_test)
    train, test = (fetch_task(name, s, limit, args.data, random_state=0) for s in ("train", "test"))
    return Task(name, train.X, train.y, test.X, test.y)


def target_score(bank: PrefixBank, target: Task) -> float:
    """Return the test accuracy of a head on the vectors of a bank."""
    head = LogisticRegressionCV(
        Cs=[1e-3, 1e-2, 1e-1, 1.0], l1_ratios=[0], cv=5, max_iter=2000, scoring="accuracy",
        use_legacy_attributes=False,
    )  # fmt: skip
    pipe = make_pipeline(bank, StandardScaler(), head).fit(target.X_train, target.y_train)
    return float(pipe.score(target.X_test, target.y_test))


def seconds_to_transform(banks: dict[int, PrefixBank], texts: Any) -> dict[int, float]:
    """Return the median time of each bank; the banks take turns."""
    times: dict[int, list[float]] = {length: [] for length in banks}
    for _ in range(6):
        for length, bank in banks.items():
            started = time.perf_counter()
            bank.transform(texts)
            times[length].append(time.perf_counter() - started)
    return {length: float(np.median(warm[1:])) for length, warm in times.items()}


def plot(lengths: list[int], found: dict[str, np.ndarray], bare: float, path: Path) -> None:
    """Plot both accuracies, with bands of one standard deviation over seeds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, color in (("source task", "tab:orange"), ("target task", "tab:blue")):
        mean, spread = found[name].mean(axis=0), found[name].std(axis=0)
        axes.plot(lengths, mean, marker="o", color=color, label=name)
        axes.fill_between(lengths, mean - spread, mean + spread, color=color, alpha=0.2)
    axes.axhline(bare, color="0.5", linestyle="--", label="target task, bare backbone")
    axes.set_xscale("log")
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set(xlabel="prefix length", ylabel="test accuracy")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure each length, print a table, and plot it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: docstrings)")
    parser.add_argument("--source", default="package")
    parser.add_argument("--target", default="subpackage")
    parser.add_argument("--source-texts", type=int, default=2000)
    parser.add_argument("--target-texts", type=int, default=200)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 2, 5, 10, 20, 50])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backbone", default=None, help="default: demo_backbone()")
    parser.add_argument("--out", type=Path, default=Path("results/prefix_length"))
    args = parser.parse_args()
    args.backbone = args.backbone or demo_backbone()
    args.out.mkdir(parents=True, exist_ok=True)
    source = load(args, args.source, args.source_texts)
    target = load(args, args.target, args.target_texts)
    common = {"max_length": 128, "on_truncate": "ignore"}
    bare_bank = PrefixBank({}, backbone=args.backbone, **common)
    bare = target_score(bare_bank, target)

    shape = (len(args.seeds), len(args.lengths))
    names = ("source task", "target task", "seconds to learn")
    found = {name: np.zeros(shape) for name in names}
    banks = {0: bare_bank.set_params(cache=None)}
    for column, length in enumerate(args.lengths):
        for row, seed in enumerate(args.seeds):
            encoder = PrefixEncoder(
                args.backbone,
                prefix_length=length,
                ffn_length=0,
                learning_rate=0.02,
                random_state=seed,
                **common,
            ).fit(source.X_train, source.y_train)
            bank = PrefixBank({"one": encoder}, **common)
            found["source task"][row, column] = encoder.score(source.X_test, source.y_test)
            found["target task"][row, column] = target_score(bank, target)
            found["seconds to learn"][row, column] = encoder.history_["seconds"][-1]
        banks[length] = bank.set_params(cache=None)
    taken = seconds_to_transform(banks, list(target.X_test)[:400])

    print(f"target task, bare backbone: {bare:.3f}\n")
    print("| length | source task | target task | training, s | transform time, ratio to none |\n"
          "|---|---|---|---|---|")  # fmt: skip
    for column, length in enumerate(args.lengths):
        own, other, seconds = (found[name][:, column] for name in names)
        print(f"| {length} | {own.mean():.3f} ± {own.std():.3f} | {other.mean():.3f} ± "
              f"{other.std():.3f} | {np.median(seconds):.0f} | "
              f"{taken[length] / taken[0]:.2f} |", flush=True)  # fmt: skip
    plot(args.lengths, found, bare, args.out / "prefix_length.png")
    kept = {name: values.tolist() for name, values in found.items()}
    kept |= {"lengths": args.lengths, "bare": bare, "seconds to transform": taken}
    (args.out / "prefix_length.json").write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
