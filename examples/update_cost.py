"""Compare the cost of changing one of n source tasks in a bank and in multi-task training.

To add or update a task, a bank learns one prefix. To remove a task, it deletes a dict entry.
Multi-task training starts again with all tasks. Each task consists of a few hundred texts of a
docstring task. The script measures seconds and counts FLOPs: a training step multiplies each
weight with each token three times in fine-tuning (forward, gradient of activations, gradient of
weights), and twice for a prefix::

    python examples/update_cost.py [--tasks 2 5 10 20] [--texts 300] [--backbone roberta-large]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefixembed import MultiTaskEncoder, PrefixBank, PrefixEncoder, load_backbone
from prefixembed._embed.texts import check_texts
from prefixembed._embed.tokens import tokenize
from prefixembed.tasks import demo_backbone, load_docstring_task

Tasks = dict[str, tuple[Any, Any]]
BATCH = 32


def make_tasks(n: int, n_texts: int) -> Tasks:
    """Split the docstring tasks into n tasks with different texts."""
    kinds = [load_docstring_task(name) for name in ("package", "kind", "name")]
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(task.y_train)) for task in kinds]
    tasks: Tasks = {}
    for k in range(n):
        task, order = kinds[k % 3], orders[k % 3]
        # When the texts of a task run out, they are used again from the start.
        rows = np.take(order, range(k // 3 * n_texts, (k // 3 + 1) * n_texts), mode="wrap")
        tasks[f"{task.name} {k // 3}"] = ([task.X_train[row] for row in rows], task.y_train[rows])
    return tasks


def flops(backbone: str, tasks: Tasks, steps: int, products: int) -> float:
    """Count the FLOPs of linear layers in some steps: two per weight, token and product."""
    loaded = load_backbone(backbone)
    weights = sum(
        module.weight.numel()
        for module in loaded.model.modules()
        if isinstance(module, torch.nn.Linear)
    )
    reading = dataclasses.replace(loaded.reading, max_length=128)
    lengths = [tokenize(loaded, check_texts(X), reading).lengths for X, _ in tasks.values()]
    n_tokens = float(np.concatenate(lengths).mean()) * BATCH * steps
    return 2.0 * weights * n_tokens * products


def measure(args: argparse.Namespace, n: int) -> dict[str, float]:
    """Measure seconds and FLOPs of both sides with n tasks."""
    tasks = make_tasks(n, args.texts)
    common = {"max_length": 128, "batch_size": BATCH, "random_state": 0, "early_stopping": False}
    started = time.perf_counter()
    MultiTaskEncoder(args.backbone, max_steps=n * args.steps, **common).fit(tasks)
    multitask = time.perf_counter() - started

    last = list(tasks)[-1]
    bank = PrefixBank({}, backbone=args.backbone)
    started = time.perf_counter()
    encoder = PrefixEncoder(args.backbone, max_steps=args.steps, **common).fit(*tasks[last])
    bank.add(last, encoder)
    add = time.perf_counter() - started
    started = time.perf_counter()
    bank.remove(last)
    remove = time.perf_counter() - started
    return {
        "multi-task, any change": multitask,
        "bank, add or update": add,
        "bank, remove": remove,
        "multi-task, any change, FLOPs": flops(args.backbone, tasks, n * args.steps, 3),
        "bank, add or update, FLOPs": flops(
            args.backbone, {last: tasks[last]}, args.steps, 2
        ),
    }  # fmt: skip


def plot(found: dict[int, dict[str, float]], path: Path) -> None:
    """Plot seconds against the number of tasks."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, color in (("multi-task, any change", "0.5"), ("bank, add or update", "tab:blue")):
        axes.plot(list(found), [costs[name] for costs in found.values()], marker="o",
                  color=color, label=name)  # fmt: skip
    axes.set(xlabel="source tasks", ylabel="seconds", ylim=(0, None))
    axes.set_xticks(list(found))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure each number of tasks, print a table, and plot it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 5, 10, 20])
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--steps", type=int, default=10, help="training steps per task")
    parser.add_argument("--backbone", default=None, help="default: demo_backbone()")
    parser.add_argument("--out", type=Path, default=Path("results/update_cost"))
    args = parser.parse_args()
    args.backbone = args.backbone or demo_backbone()
    args.out.mkdir(parents=True, exist_ok=True)
    for dtype in ("auto", "float32"):  # load the backbone before timing
        PrefixBank({}, backbone=args.backbone, dtype=dtype).transform(["a text"])
    found = {n: measure(args, n) for n in args.tasks}
    print("| source tasks | multi-task, s | bank, add or update, s | bank, remove, s | "
          "ratio, s | ratio, FLOPs |\n|---|---|---|---|---|---|")  # fmt: skip
    for n, costs in found.items():
        whole, one = costs["multi-task, any change"], costs["bank, add or update"]
        work = costs["multi-task, any change, FLOPs"] / costs["bank, add or update, FLOPs"]
        print(f"| {n} | {whole:.1f} | {one:.1f} | {costs['bank, remove']:.6f} | "
              f"{whole / one:.1f} | {work:.1f} |")  # fmt: skip
    (args.out / "update_cost.json").write_text(json.dumps(found, indent=1))
    plot(found, args.out / "update_cost.png")


if __name__ == "__main__":
    main()
