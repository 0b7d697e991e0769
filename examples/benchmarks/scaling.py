"""Measure how cost grows with prefixes, texts, tokens and the token budget.

python examples/benchmarks/scaling.py [--data DIR] [--texts 1000 10000 100000]
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import alternate, machine, random_prefixes, read_texts, table

from prefixembed import PrefixBank
from prefixembed.tasks import demo_backbone


def peak_memory(run: Callable[[], Any]) -> float:
    """Return by how many MB the memory of the process grows at its peak."""
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    sizes = [before]

    def watch() -> None:
        while not done.wait(0.01):
            sizes.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return (max(sizes) - before) / 1e6


def main() -> None:
    """Measure each direction, print tables, and plot them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: docstrings)")
    parser.add_argument("--texts", type=int, nargs="+", default=[1000, 3000, 10000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/scaling"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = demo_backbone()
    prefixes = random_prefixes(folder, 100)
    common = {"cache": None, "on_truncate": "ignore", "device": "cpu"}
    texts = read_texts(args.data, "short", 600)
    print(machine())

    banks = {
        n: PrefixBank(dict(list(prefixes.items())[:n]), backbone=folder, **common)
        for n in (0, 1, 7, 10, 30, 100)
    }
    sides = {str(n): lambda bank=bank: bank.transform(texts) for n, bank in banks.items()}
    seconds = {k: float(np.median(v)) for k, v in alternate(sides, args.rounds).items()}
    memory = {n: peak_memory(run) for n, run in sides.items()}
    rows = [
        (n, f"{len(texts) / s:.0f}", f"{s / seconds['0']:.2f}", f"{memory[n]:.0f}")
        for n, s in seconds.items()
    ]
    print(f"\n{len(texts)} short texts")
    print(
        table(
            (
                "prefixes of 16 slots",
                "texts per second",
                "time, ratio to none",
                "peak MB",
            ),
            rows,
        )
    )

    # Distinct texts with real words and lengths.
    rng = np.random.default_rng(0)
    words = " ".join(texts).split()
    lengths = [len(text.split()) for text in texts]
    made = [" ".join(rng.choice(words, rng.choice(lengths))) for _ in range(max(args.texts))]
    by_number, number_rows = {}, []
    for n in args.texts:
        started = time.perf_counter()
        memory_n = peak_memory(lambda n=n: banks[7].transform(made[:n]))
        by_number[n] = time.perf_counter() - started
        number_rows.append((f"{n:,}", f"{1000 * by_number[n] / n:.2f}", f"{memory_n:.0f}"))
    print("\nseven prefixes")
    print(table(("texts", "ms per text", "peak MB"), number_rows), flush=True)

    tokens = (16, 32, 64, 128, 256, 512)
    long_texts = {
        # A word has at least one token, so all texts are cut to the length.
        n: [" ".join(rng.choice(words, n)) for _ in range(max(16, 8192 // n))]
        for n in tokens
    }
    seven = banks[7].prefixes
    limited = {n: PrefixBank(seven, max_length=n, **common) for n in tokens}
    sides = {str(n): lambda n=n: limited[n].transform(long_texts[n]) for n in tokens}
    by_length = {int(k): float(np.median(v)) for k, v in alternate(sides, 3).items()}
    length_rows = [
        (n, f"{1000 * s / len(long_texts[n]):.2f}", f"{1e6 * s / len(long_texts[n]) / n:.0f}")
        for n, s in by_length.items()
    ]
    print("\nseven prefixes")
    print(table(("tokens per text", "ms per text", "µs per token"), length_rows))
    budgets = (256, 512, 1024, 2048, 4096, 16384)
    by_budget: dict[str, dict[str, float]] = {}
    for dtype in ("float32", "auto"):
        limits = {str(n): PrefixBank(seven, batch_tokens=n, dtype=dtype, **common) for n in budgets}
        sides = {n: lambda bank=bank: bank.transform(texts) for n, bank in limits.items()}
        by_budget[dtype] = {k: float(np.median(v)) for k, v in alternate(sides, 3).items()}
    budget_rows = [
        (n, *(f"{len(texts) / by_budget[dtype][str(n)]:.0f}" for dtype in by_budget))
        for n in budgets
    ]
    print("\nseven prefixes, texts per second")
    print(table(("batch_tokens", *by_budget), budget_rows))
    draw(seconds, by_number, {n: s / len(long_texts[n]) for n, s in by_length.items()}, args.out)
    found = {
        "prefixes": seconds,
        "texts": by_number,
        "tokens": by_length,
        "budgets": by_budget,
        "memory": memory,
    }
    (args.out / "scaling.json").write_text(json.dumps({"machine": machine(), **found}))


def draw(
    prefixes: dict[str, float], texts: dict[int, float], tokens: dict[int, float], out: Path
) -> None:
    """Plot one panel per direction."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    numbers = [int(n) for n in prefixes]
    left.plot(numbers, [s / prefixes["0"] for s in prefixes.values()], marker="o")
    left.axhline(1.5, color="0.5", linestyle="--", linewidth=1)
    left.set(xlabel="prefixes of length 5", ylabel="time, ratio to no prefix", ylim=(0, None))
    middle.loglog(list(texts), list(texts.values()), marker="o")
    middle.set(xlabel="texts", ylabel="seconds")
    right.loglog(list(tokens), [1000 * s for s in tokens.values()], marker="o")
    right.set(xlabel="tokens per text", ylabel="ms per text")
    middle.set_xticks(list(texts), [f"{n:,}" for n in texts])
    right.set_xticks(list(tokens), [str(n) for n in tokens])
    for axes in (middle, right):
        low, high = axes.get_ylim()
        ticks = [m * 10.0**e for e in range(-2, 5) for m in (1, 2, 5)]
        shown = [tick for tick in ticks if low <= tick <= high]
        axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
        axes.minorticks_off()
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    figure.savefig(out / "scaling.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
