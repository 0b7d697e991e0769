r"""Measure what happens when two source tasks contradict each other.

The two source tasks share their texts and have opposite labels. A related target task shows what
remains of them in a bank of both prefixes, in a backbone that was fine-tuned on both with one
head each, and in a backbone that was fine-tuned on both as one task::

    python examples/contradiction.py --data DIR [--source sst2] [--targets cr mr] [--texts 2000]

At the size of the paper::

    python examples/contradiction.py --backbone roberta-large --source sst2 --texts 67000 \\
        --target-texts 10000
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from reproduce_paper import search_head, steps
from sklearn.base import clone

from prefixembed import MultiTaskEncoder, PrefixBank, PrefixEncoder
from prefixembed.tasks import demo_backbone, fetch_task


def representations(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Learn the representations that are compared."""
    train = fetch_task(args.source, "train", args.texts, args.data, random_state=seed)
    X, y = train.X, train.y
    common: dict[str, Any] = {
        "max_length": args.max_length, "on_truncate": "ignore", "random_state": seed,
    }  # fmt: skip
    prefixes = {
        name: PrefixEncoder(args.backbone, **common).fit(X, labels).prefix_
        for name, labels in (("true", y), ("flipped", 1 - y))
    }
    bank = {"prefixes": prefixes, "backbone": args.backbone, "on_truncate": "ignore"}
    bank |= {"max_length": args.max_length, "cache": None}
    tune = MultiTaskEncoder(args.backbone, max_steps=args.multitask_steps, **common)
    half = np.random.default_rng(seed).random(len(y)) < 0.5
    return {
        "bare backbone": PrefixBank(**bank, active=[]),
        "prefix, true labels": PrefixBank(**bank, active=["true"]),
        "prefix, flipped labels": PrefixBank(**bank, active=["flipped"]),
        "bank of both, concatenated": PrefixBank(**bank),
        "bank of both, mean": PrefixBank(**bank, combine="mean"),
        "fine-tuned, true labels": clone(tune).fit({"true": (X, y)}),
        "fine-tuned, one head each": clone(tune).fit({"true": (X, y), "flipped": (X, 1 - y)}),
        # Half of the texts have true labels, the others flipped ones.
        "fine-tuned, as one task": clone(tune).fit({"both": (X, np.where(half, y, 1 - y))}),
    }


def plot(
    names: list[str],
    scores: np.ndarray,
    targets: list[str],
    path: Path,
    label: str = "accuracy on {}",
) -> None:
    """Plot scores of shape (seed, representation, target).

    There is one panel per target and one dot per seed.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(targets), figsize=(3.5 + 3 * len(targets), 1 + 0.3 * len(names)), sharey=True,
        layout="constrained", squeeze=False,
    )  # fmt: skip
    rows = np.arange(len(names))[::-1]
    for k, (target, panel) in enumerate(zip(targets, axes[0], strict=True)):
        for of_seed in scores:
            panel.scatter(of_seed[:, k], rows, s=18, color="tab:blue")
        panel.scatter(scores[:, :, k].mean(axis=0), rows, marker="|", s=260, color="black")
        panel.axvline(scores[:, 0, k].mean(), color="0.7", linestyle="--")
        panel.set(xlabel=label.format(target))
        panel.set_yticks(rows, names)
        panel.locator_params(axis="x", nbins=5)
        panel.grid(axis="x", alpha=0.3)
    figure.suptitle("Dots: seeds. Bars: their mean. Dashed line: bare backbone", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Compare the representations, print a table, and plot it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: the Hub)")
    parser.add_argument("--source", default="sst2", help="task with the labels 0 and 1")
    parser.add_argument("--targets", nargs="+", default=["cr", "mr"])
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--target-texts", type=int, default=500)
    parser.add_argument("--multitask-steps", type=steps, default="auto")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backbone", default=None, help="default: demo_backbone()")
    parser.add_argument("--out", type=Path, default=Path("results/contradiction"))
    args = parser.parse_args()
    args.backbone = args.backbone or demo_backbone()
    args.out.mkdir(parents=True, exist_ok=True)
    collected: list[list[list[float]]] = []
    names: list[str] = []
    for seed in args.seeds:
        compared = representations(args, seed)
        names = list(compared)
        splits = [
            [
                fetch_task(target, "train", args.target_texts, args.data, random_state=seed),
                fetch_task(target, "test", None, args.data),
            ]
            for target in args.targets
        ]
        collected.append(
            [
                [
                    search_head(train.info)
                    .fit(encoder.transform(train.X), train.y)
                    .score(encoder.transform(test.X), test.y)
                    for train, test in splits
                ]
                for encoder in compared.values()
            ]
        )
    scores = np.array(collected)  # (seed, representation, target)
    print(f"| representation | {' | '.join(args.targets)} |\n{'|---' * (len(args.targets) + 1)}|")
    for k, name in enumerate(names):
        cells = [
            f"{mean:.3f} ± {std:.3f}"
            for mean, std in zip(scores[:, k].mean(0), scores[:, k].std(0), strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    (args.out / "contradiction.json").write_text(
        json.dumps({"names": names, "targets": args.targets, "scores": scores.tolist()}, indent=1)
    )
    plot(names, scores, args.targets, args.out / "contradiction.png")


if __name__ == "__main__":
    main()
