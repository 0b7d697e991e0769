"""What it costs to add, update and remove one of n source tasks: a bank beside multi-task training.

To add or update a task, a bank learns one prefix; to remove one, it deletes a dict entry.
Multi-task training starts again with all tasks. Each task here is a few hundred texts of one of
the tasks of docstrings, so that both sides read as many texts a task; seconds are measured, and
FLOPs counted: a step of fine-tuning multiplies each weight with each token three times (forward,
gradient of activations, gradient of weights), one of a prefix twice::

    python examples/update_cost.py [--tasks 2 5 10 20] [--texts 300] [--backbone roberta-large]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefixembed import MultiTaskEncoder, PrefixBank, PrefixEncoder, load_backbone
from prefixembed._embed.batching import tokenize
from prefixembed.tasks import demo_backbone, load_docstring_task

Tasks = dict[str, tuple[Any, Any]]


def make_tasks(n: int, n_texts: int) -> Tasks:
    """Cut the docstring tasks into n tasks of different texts."""
    kinds = [load_docstring_task(name) for name in ("package", "kind", "name")]
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(task.y_train)) for task in kinds]
    tasks: Tasks = {}
    for k in range(n):
        task, order = kinds[k % 3], orders[k % 3]
        # Where the texts of a task run out, they are used again from the start.
        rows = np.take(order, range(k // 3 * n_texts, (k // 3 + 1) * n_texts), mode="wrap")
        tasks[f"{task.name} {k // 3}"] = ([task.X_train[row] for row in rows], task.y_train[rows])
    return tasks


def flops(backbone: str, tasks: Tasks, epochs: int, products: int) -> float:
    """Count the products of linear layers: two FLOPs a weight, token, and pass through it."""
    loaded = load_backbone(backbone)
    weights = sum(
        module.weight.numel()
        for module in loaded.model.modules()
        if isinstance(module, torch.nn.Linear)
    )
    n_tokens = sum(
        int(tokenize(loaded.tokenizer(128), [tuple(x) if not isinstance(x, str) else x for x in X])
            .lengths.sum())
        for X, _ in tasks.values()
    )  # fmt: skip
    return 2.0 * weights * n_tokens * epochs * products


def measure(args: argparse.Namespace, n: int) -> dict[str, float]:
    """Time both sides with n tasks."""
    tasks = make_tasks(n, args.texts)
    common = {"max_length": 128, "max_epochs": args.epochs, "random_state": 0}
    common |= {"early_stopping": False}
    started = time.perf_counter()
    MultiTaskEncoder(args.backbone, **common).fit(tasks)
    multitask = time.perf_counter() - started

    last = list(tasks)[-1]
    bank = PrefixBank({}, backbone=args.backbone)
    started = time.perf_counter()
    encoder = PrefixEncoder(args.backbone, **common).fit(*tasks[last])
    bank.add(last, encoder)
    add = time.perf_counter() - started
    started = time.perf_counter()
    bank.remove(last)
    remove = time.perf_counter() - started
    return {
        "multi-task, any change": multitask,
        "bank, add or update": add,
        "bank, remove": remove,
        "multi-task, any change, FLOPs": flops(args.backbone, tasks, args.epochs, 3),
        "bank, add or update, FLOPs": flops(
            args.backbone, {last: tasks[last]}, args.epochs, 2
        ),
    }  # fmt: skip


def plot(found: dict[int, dict[str, float]], path: Path) -> None:
    """Draw seconds against the number of tasks."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, color in (("multi-task, any change", "0.5"), ("bank, add or update", "tab:blue")):
        axes.plot(list(found), [some[name] for some in found.values()], marker="o",
                  color=color, label=name)  # fmt: skip
    axes.set(xlabel="source tasks", ylabel="seconds", ylim=(0, None))
    axes.set_xticks(list(found))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure, print a table and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 5, 10, 20])
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--backbone", default=None, help="default: the demo backbone")
    parser.add_argument("--out", type=Path, default=Path("results/update_cost"))
    args = parser.parse_args()
    args.backbone = args.backbone or demo_backbone()
    args.out.mkdir(parents=True, exist_ok=True)
    for dtype in ("auto", "float32"):  # loaded before clocks run
        PrefixBank({}, backbone=args.backbone, dtype=dtype).transform(["a text"])
    found = {n: measure(args, n) for n in args.tasks}
    print("| source tasks | multi-task, s | bank, add or update, s | bank, remove, s | "
          "times, in s | times, in FLOPs |\n|---|---|---|---|---|---|")  # fmt: skip
    for n, some in found.items():
        whole, one = some["multi-task, any change"], some["bank, add or update"]
        work = some["multi-task, any change, FLOPs"] / some["bank, add or update, FLOPs"]
        print(f"| {n} | {whole:.1f} | {one:.1f} | {some['bank, remove']:.6f} | "
              f"{whole / one:.1f} | {work:.1f} |")  # fmt: skip
    (args.out / "update_cost.json").write_text(json.dumps(found, indent=1))
    plot(found, args.out / "update_cost.png")


if __name__ == "__main__":
    main()
