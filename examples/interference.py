"""Measure whether prefixes interfere with each other.

The head of each source task reads the vectors of a bank with its own prefix and one more prefix.
The diagonal of the table has each prefix alone. The script also concatenates prefixes in several
orders. Prefixes have no position, so the order can only affect rounding::

    python examples/interference.py [--data DIR] [--sources sst2 qnli sick cola]
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefixembed import Prefix, PrefixBank, PrefixEncoder
from prefixembed.slots import Slots
from prefixembed.tasks import Task, demo_backbone, fetch_task, load_docstring_task


def load_tasks(args: argparse.Namespace) -> dict[str, Task]:
    """Load source tasks from a folder, or the docstring tasks if there is none."""
    if args.data is None:
        return {name: load_docstring_task(name) for name in ("package", "kind", "name")}
    tasks = {}
    for name in args.sources:
        train, test = (
            fetch_task(name, split, args.texts, args.data, random_state=0)
            for split in ("train", "test")
        )
        tasks[name] = Task(name, train.X, train.y, test.X, test.y)
    return tasks


def learn(args: argparse.Namespace, task: Task) -> PrefixEncoder:
    """Learn a prefix, or load it if it has been saved."""
    path = args.out / f"{task.name}-{len(task.y_train)}.safetensors"
    if not path.exists():
        encoder = PrefixEncoder(
            args.backbone,
            max_length=128,
            pairs="joint",
            on_truncate="ignore",
            random_state=0,
        ).fit(task.X_train, task.y_train)
        encoder.prefix_.save(path)
    # The file tells no path of this machine.
    prefix = dataclasses.replace(Prefix.load(path), backbone=args.backbone)
    return PrefixEncoder.from_prefix(prefix)


def own_score(encoder: PrefixEncoder, bank: PrefixBank, task: Task) -> float:
    """Return the accuracy of a source task's own head on the vectors of a bank."""
    logits = encoder.prefix_.head.decision_function(bank.transform(task.X_test))
    return float(np.mean(encoder.classes_[logits.argmax(axis=1)] == task.y_test))


def concatenated_slots(prefixes: Sequence[Prefix]) -> Slots | None:
    """Return the slots of all prefixes one after the other."""
    found = [prefix.slots for prefix in prefixes if prefix.slots is not None]
    if not found:
        return None
    names = ("keys", "biases", "values")
    return Slots(*(np.concatenate([getattr(s, name) for s in found], axis=1) for name in names))


def difference_of_orders(prefixes: list[Prefix], texts: Any) -> tuple[int, float]:
    """Return how many orders were tried, and the largest difference between their vectors."""
    vectors = []
    for order in itertools.islice(itertools.permutations(prefixes), 24):
        # A bank sorts its prefixes, so each order is written as one long prefix.
        whole = dataclasses.replace(
            order[0],
            keys_values=np.concatenate([prefix.keys_values for prefix in order], axis=3),
            slots=concatenated_slots(order),
            head=None,
            training={},
        )
        bank = PrefixBank({"all": whole}, dtype="float32", cache=None, on_truncate="ignore")
        vectors.append(bank.transform(texts[:50]))
    return len(vectors), max(float(np.abs(other - vectors[0]).max()) for other in vectors)


def heatmap(names: list[str], scores: np.ndarray, path: Path) -> None:
    """Plot how much each prefix changes the score of each task."""
    import matplotlib.pyplot as plt

    change = scores - np.diag(scores)[:, None]
    limit = max(0.01, float(np.abs(change).max()))
    figure, axes = plt.subplots(figsize=(1.5 + 0.9 * len(names), 1 + 0.8 * len(names)),
                                layout="constrained")  # fmt: skip
    image = axes.imshow(change, cmap="RdBu", vmin=-limit, vmax=limit)
    for row, column in itertools.product(range(len(names)), repeat=2):
        dark = abs(change[row, column]) > 0.6 * limit
        axes.text(column, row, f"{change[row, column]:+.3f}", ha="center", va="center",
                  color="white" if dark else "black")  # fmt: skip
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="added prefix", ylabel="source task")
    figure.colorbar(image, label="accuracy minus accuracy with its own prefix alone")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure all pairs of prefixes, print a table, and plot it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: docstrings)")
    parser.add_argument("--sources", nargs="+", default=["sst2", "qnli", "sick", "cola"])
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--combine", choices=["concat", "mean"], default="concat")
    parser.add_argument("--backbone", default=None, help="default: demo_backbone()")
    parser.add_argument("--out", type=Path, default=Path("results/interference"))
    args = parser.parse_args()
    args.backbone = args.backbone or demo_backbone()
    args.out.mkdir(parents=True, exist_ok=True)
    tasks = load_tasks(args)
    encoders = {name: learn(args, task) for name, task in tasks.items()}
    bank = PrefixBank(encoders, combine=args.combine, on_truncate="ignore")
    names = list(tasks)
    scores = np.array(
        [
            [
                own_score(encoders[one], bank.set_params(active=sorted({one, other})), tasks[one])
                for other in names
            ]
            for one in names
        ]
    )  # (task, added prefix)
    whole = [own_score(encoders[one], bank.set_params(active=None), tasks[one]) for one in names]
    print(f"| source task | {' | '.join(names)} | all |\n{'|---' * (len(names) + 2)}|")
    for name, row, last in zip(names, scores, whole, strict=True):
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in row)} | {last:.3f} |")

    prefixes = [encoder.prefix_ for encoder in encoders.values()]
    n_orders, difference = difference_of_orders(prefixes, tasks[names[0]].X_test)
    print(f"\nlargest difference between the vectors of {n_orders} orders: {difference:.1e}")
    heatmap(names, scores, args.out / "interference.png")
    found = {"names": names, "scores": scores.tolist(), "all": whole, "orders": difference}
    (args.out / "interference.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
