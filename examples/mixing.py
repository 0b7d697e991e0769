r"""Measure whether large tasks dominate multi-task training.

One source task has many texts and is easy to learn, the others have few. Multi-task training
samples tasks in proportion to their texts (temperature 1), more evenly (2), or equally (inf). The
score of each task on held-out texts is recorded about 20 times. A prefix is learned without
other tasks, so its curve does not depend on the mix::

    python examples/mixing.py --data DIR [--large sst2] [--small sick cola] [--ratio 10]

At the size of the paper::

    python examples/mixing.py --backbone roberta-large --large yelp2 --small mnli cola \\
        --texts 100000 --max-length 512
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from prefixembed import MultiTaskEncoder, PrefixEncoder
from prefixembed.tasks import TaskSplit, demo_backbone, fetch_task

Curve = dict[str, list[float]]
Curves = dict[str, dict[str, Curve]]


def score_curve(history: dict[str, list[float]], name: str = "") -> Curve:
    """Return the score of a task on held-out texts by step."""
    ending = f"[{name}]" if name else ""
    keys = [f"valid_{metric}{ending}" for metric in ("accuracy", "r2")]
    scores = next(history[key] for key in keys if key in history)
    return {"step": history["step"], "score": scores}


def measure(args: argparse.Namespace, tasks: dict[str, TaskSplit], seed: int) -> Curves:
    """Return the curve of each task for each way of training."""
    objectives = {name: task.info.objective for name, task in tasks.items()}
    data = {name: (task.X, task.y) for name, task in tasks.items()}
    common: dict[str, Any] = {
        "max_length": args.max_length, "max_steps": args.steps, "n_iter_no_change": args.steps,
        "validation_fraction": 0.2, "on_truncate": "ignore", "random_state": seed,
        "pairs": args.pairs,
    }  # fmt: skip
    curves: Curves = {}
    for temperature in args.temperatures:
        encoder = MultiTaskEncoder(
            args.backbone, temperature=temperature, objectives=objectives, **common
        ).fit(data)
        curves[f"multi-task, temperature {temperature:g}"] = {
            name: score_curve(encoder.history_, name) for name in tasks
        }
    curves["fine-tuned alone"], curves["prefix"] = {}, {}
    for name, (X, y) in data.items():
        alone = MultiTaskEncoder(args.backbone, objectives={name: objectives[name]}, **common)
        curves["fine-tuned alone"][name] = score_curve(alone.fit({name: (X, y)}).history_)
        prefix = PrefixEncoder(args.backbone, objective=objectives[name], **common)
        curves["prefix"][name] = score_curve(prefix.fit(X, y).history_)
    return curves


def plot(args: argparse.Namespace, found: list[Curves], path: Path) -> None:
    """Plot the curves of each task, averaged over seeds."""
    import matplotlib.pyplot as plt

    names = list(found[0]["prefix"])
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.6 * len(names), 4.2), layout="constrained", squeeze=False
    )
    for name, panel in zip(names, axes[0], strict=True):
        for number, label in enumerate(found[0]):
            runs = [curves[label][name] for curves in found]
            mean = np.mean([curve["score"] for curve in runs], axis=0)
            style = {"prefix": "-", "fine-tuned alone": ":"}.get(label, "--")
            panel.plot(runs[0]["step"], mean, style, marker="o", markersize=3,
                       color=f"C{number}", label=label)  # fmt: skip
        panel.set(title=name, xlabel="step")
        panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("score on held-out texts")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Train, print a table of the last scores, and plot the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: the Hub)")
    parser.add_argument("--large", default="sst2", help="task with many texts")
    parser.add_argument("--small", nargs="+", default=["sick", "cola"])
    parser.add_argument("--texts", type=int, default=4000, help="number of texts of the large task")
    parser.add_argument("--ratio", type=int, default=10, help="its texts per text of a small task")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1, 2, np.inf])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--pairs", choices=["joint", "apart"], default="joint")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backbone", default=None, help="default: demo_backbone()")
    parser.add_argument("--out", type=Path, default=Path("results/mixing"))
    args = parser.parse_args()
    args.backbone = args.backbone or demo_backbone()
    args.out.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in args.seeds:
        tasks = {
            name: fetch_task(
                name, "train", args.texts if name == args.large else args.texts // args.ratio,
                args.data, random_state=seed,
            )
            for name in (args.large, *args.small)
        }  # fmt: skip
        found.append(measure(args, tasks, seed))
        (args.out / "mixing.json").write_text(json.dumps(found, indent=1))
    names = list(found[0]["prefix"])
    print(f"| training | {' | '.join(names)} |\n{'|---' * (len(names) + 1)}|")
    for label in found[0]:
        last = np.array([[c[label][name]["score"][-1] for name in names] for c in found])
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(last.mean(0), last.std(0), strict=True)]
        print(f"| {label} | {' | '.join(cells)} |")
    plot(args, found, args.out / "mixing.png")


if __name__ == "__main__":
    main()
