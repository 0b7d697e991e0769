r"""Measure what another target task costs: one more head on a bank, or one more fine-tuned model.

This is the motivation of the paper. Predictions for 1 to 50 target tasks come from one bank with
one head per task, or from one fine-tuned backbone per task, which needs one forward pass per task.
The weights of a model do not change its cost, so one fine-tuned model stands for all of them.
Storage is what each side keeps for its tasks, without the shared backbone of the bank::

    python examples/many_targets.py --data DIR [--texts 300] [--counts 1 5 10 20 50]

At the size of the paper::

    python examples/many_targets.py --backbone roberta-large --texts 1000
"""

from __future__ import annotations

import argparse
import pickle
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from prefixembed import MultiTaskEncoder, PrefixBank, PrefixEncoder, TargetHeads, fit_prefixes
from prefixembed.tasks import demo_backbone, fetch_task, load_docstring_task


def read_texts(data: Path | None, n: int) -> list[str]:
    """Return sentences of film reviews, or docstring summaries if there is no folder."""
    if data is None:
        return list(load_docstring_task("package").X_train[:n])
    return list(fetch_task("mr", "train", n, data, random_state=0).X)


def median_seconds(call: Callable[[], object], rounds: int) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def plot(counts: list[int], bank: list[float], tuned: list[float], path: Path) -> None:
    """Plot milliseconds per text against the number of target tasks."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    axes.plot(counts, tuned, marker="s", color="tab:orange", label="a fine-tuned model per target")
    axes.plot(counts, bank, marker="o", color="tab:blue", label="one bank, a head per target")
    axes.set(xlabel="target tasks", ylabel="ms per text", xscale="log", yscale="log")
    axes.set_xticks(counts, counts)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure both sides, print a table, and plot it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: docstrings)")
    parser.add_argument("--backbone", default=None, help="default: demo_backbone()")
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 5, 10, 20, 50])
    parser.add_argument("--sources", type=int, default=7, help="number of prefixes in the bank")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/many_targets"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    backbone = args.backbone or demo_backbone()
    texts = read_texts(args.data, args.texts)
    # Labels do not affect the cost, so they are random.
    labels = np.random.default_rng(0).integers(2, size=(len(texts), max(args.counts)))
    settings = {
        "max_steps": 2,
        "early_stopping": False,
        "random_state": 0,
        "on_truncate": "ignore",
    }
    sources = {
        f"source {k}": (texts[:64], labels[:64, k % labels.shape[1]]) for k in range(args.sources)
    }
    encoder = PrefixEncoder(backbone, **settings)
    bank = PrefixBank(fit_prefixes(sources, encoder), cache=None, on_truncate="ignore")
    tuned = MultiTaskEncoder(backbone, cache=None, **settings)
    tuned.fit({"target": (texts[:64], labels[:64, 0])})
    rows = []
    for n in args.counts:
        many = TargetHeads(bank).fit({f"target {k}": (texts, labels[:, k]) for k in range(n)})
        seconds = [
            median_seconds(lambda many=many: many.predict(texts), args.rounds),
            median_seconds(lambda n=n: [tuned.predict(texts) for _ in range(n)], args.rounds),
        ]
        stored = len(pickle.dumps(many)), n * len(pickle.dumps(tuned))
        rows.append((n, *(1000 * s / len(texts) for s in seconds), *stored))
    columns = "bank, ms per text | fine-tuned, ms per text | ratio | bank, MB | fine-tuned, MB"
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{len(texts)} texts, {args.sources} prefixes\n\n"
        f"| target tasks | {columns} |\n|---|---|---|---|---|---|"
    )
    for n, bank_ms, tuned_ms, bank_bytes, tuned_bytes in rows:
        print(
            f"| {n} | {bank_ms:.2f} | {tuned_ms:.2f} | {tuned_ms / bank_ms:.1f} | "
            f"{bank_bytes / 1e6:.1f} | {tuned_bytes / 1e6:,.0f} |"
        )
    plot(args.counts, [r[1] for r in rows], [r[2] for r in rows], args.out / "many_targets.png")


if __name__ == "__main__":
    main()
