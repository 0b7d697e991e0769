r"""Measure scores and cost as a bank grows from a few source tasks to a hundred.

A hundred labelled tasks are not available, so real ones are split by topic. The texts of each task
are clustered by their vectors without prefixes, and a prefix is learned for each cluster. Banks of
the first n clusters, in random order, are compared with banks that have one prefix per whole task,
and with the bare backbone::

    python examples/many_sources.py --data DIR [--sources sst2 qnli sick cola stsb]
        [--counts 7 20 50 100] [--targets mr cr rte mrpc]

At the size of the paper::

    python examples/many_sources.py --backbone roberta-large --source-texts 100000 \\
        --sources mnli qnli qqp sst2 yelp2 --max-length 256 --target-texts 10000
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from reproduce_paper import main_score, search_head, steps
from sklearn.cluster import KMeans

from prefixembed import Prefix, PrefixBank, PrefixEncoder
from prefixembed.tasks import TaskSplit, demo_backbone, fetch_task


def split_by_topic(bare: PrefixBank, task: TaskSplit, n_topics: int, seed: int) -> list[Any]:
    """Return the rows of each cluster of similar texts that has at least two labels."""
    topics = KMeans(n_topics, n_init=3, random_state=seed).fit_predict(bare.transform(task.X))
    clusters = [np.flatnonzero(topics == topic) for topic in range(n_topics)]
    return [rows for rows in clusters if len(rows) >= 20 and len(np.unique(task.y[rows])) > 1]


def learn(args: argparse.Namespace, path: Path, task: TaskSplit, rows: Any, seed: int) -> Prefix:
    """Learn a prefix on some rows of a task, or load it if it has been saved."""
    if not path.exists():
        PrefixEncoder(
            args.backbone,
            objective=task.info.objective,
            max_steps=args.steps,
            max_length=args.max_length,
            pairs=args.pairs,
            early_stopping=False,
            on_truncate="ignore",
            random_state=seed,
        ).fit([task.X[row] for row in rows], task.y[rows]).prefix_.save(path)
    return Prefix.load(path)


def learn_all(args: argparse.Namespace, seed: int) -> tuple[dict[str, Prefix], dict[str, Prefix]]:
    """Learn a prefix for each whole task and for each of its topics."""
    bare = PrefixBank({}, backbone=args.backbone, max_length=args.max_length, on_truncate="ignore")
    whole, topics = {}, {}
    n_topics = -(-max(args.counts) // len(args.sources)) + 2
    for name in args.sources:
        task = fetch_task(name, "train", args.source_texts, args.data, random_state=seed)
        everything = np.arange(len(task.y))
        whole[name] = learn(args, args.out / f"{name}-{seed}.safetensors", task, everything, seed)
        for k, rows in enumerate(split_by_topic(bare, task, n_topics, seed)):
            path = args.out / f"{name}-{k}-{seed}.safetensors"
            topics[f"{name}-{k}"] = learn(args, path, task, rows, seed)
    order = np.random.default_rng(seed).permutation(list(topics))
    return whole, {name: topics[name] for name in order}


def banks(
    args: argparse.Namespace, whole: dict[str, Prefix], topics: dict[str, Prefix]
) -> dict[tuple[str, int], PrefixBank]:
    """Return banks by method and number of topics; 0 has no prefix, -1 one per whole task."""
    common = {"backbone": args.backbone, "max_length": args.max_length, "on_truncate": "ignore"}
    common |= {"cache": None, "pairs": args.pairs}
    found = {}
    for n in (0, -1, *args.counts):
        prefixes = whole if n == -1 else dict(list(topics.items())[:n])
        if len(prefixes) < n:
            raise SystemExit(f"there are {len(prefixes)} topics, fewer than {n}: add --sources")
        for label, how in (
            ("concatenated", {}),
            ("weights 1/n", {"weights": 1 / max(1, len(prefixes))}),
            ("mean", {"combine": "mean"}),
        ):
            found[label, n] = PrefixBank(prefixes, **common, **how)
    return found


def plot(scores: np.ndarray, labels: list[str], counts: list[int], path: Path) -> None:
    """Plot the average over targets against the number of prefixes."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for k, label in enumerate(labels):
        mean = scores[:, k].mean(axis=-1)  # (seed, count)
        axes.errorbar(counts, mean[:, 2:].mean(0), mean[:, 2:].std(0), marker="o", capsize=3,
                      color=f"C{k}", label=f"{label}, topics")  # fmt: skip
        axes.axhline(mean[:, 1].mean(), color=f"C{k}", linestyle=":", label=f"{label}, whole tasks")
    axes.axhline(scores[:, 0, 0].mean(), color="0.6", linestyle="--", label="bare backbone")
    axes.set_xscale("log")
    axes.set_xticks(counts, counts)
    axes.minorticks_off()
    axes.set(xlabel="prefixes in the bank", ylabel="test score, average over targets")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Compare the banks, print a table, and plot it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: the Hub)")
    parser.add_argument("--sources", nargs="+", default=["sst2", "qnli", "sick", "cola", "stsb"])
    parser.add_argument("--targets", nargs="+", default=["mr", "cr", "rte", "mrpc"])
    parser.add_argument("--counts", type=int, nargs="+", default=[7, 20, 50, 100])
    parser.add_argument("--source-texts", type=int, default=4000)
    parser.add_argument("--target-texts", type=int, default=600)
    parser.add_argument("--steps", type=steps, default="auto")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--pairs", choices=["joint", "apart"], default="joint")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backbone", default=None, help="default: demo_backbone()")
    parser.add_argument("--out", type=Path, default=Path("results/many_sources"))
    args = parser.parse_args()
    args.backbone = args.backbone or demo_backbone()
    args.out.mkdir(parents=True, exist_ok=True)
    found: list[Any] = []
    seconds: dict[tuple[str, int], list[float]] = {}
    for seed in args.seeds:
        compared = banks(args, *learn_all(args, seed))
        rows: dict[tuple[str, int], list[float]] = {key: [] for key in compared}
        for target in args.targets:
            train, test = (
                fetch_task(target, split, args.target_texts, args.data, random_state=seed)
                for split in ("train", "test")
            )
            for key, bank in compared.items():
                started = time.perf_counter()
                vectors = bank.transform(train.X), bank.transform(test.X)
                seconds.setdefault(key, []).append(time.perf_counter() - started)
                head = search_head(train.info).fit(vectors[0], train.y)
                rows[key].append(main_score(test.score(head.predict(vectors[1])), target))
        found.append(list(rows.values()))
        print(f"seed {seed}: done", flush=True)
    labels = list(dict.fromkeys(label for label, _ in seconds))
    columns = [0, -1, *args.counts]
    # (seed, count, label, target) to (seed, label, count, target)
    scores = np.array(found).reshape(len(found), len(columns), len(labels), -1).swapaxes(1, 2)
    heads = ["none", f"{len(args.sources)} whole", *(f"{n} topics" for n in args.counts)]
    print(f"| combined | {' | '.join(heads)} |\n{'|---' * (len(heads) + 1)}|")
    for k, label in enumerate(labels):
        mean = scores[:, k].mean(axis=-1)
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(mean.mean(0), mean.std(0), strict=True)]
        print(f"| {label} | {' | '.join(cells)} |")
    none = np.array(seconds["concatenated", 0])
    for label in labels:
        times = [float(np.median(np.array(seconds[label, n]) / none)) for n in columns]
        print(f"| time, {label} | {' | '.join(f'{t:.2f}' for t in times)} |")
    (args.out / "many_sources.json").write_text(
        json.dumps({"labels": labels, "columns": columns, "scores": scores.tolist()}, indent=1)
    )
    plot(scores, labels, args.counts, args.out / "many_sources.png")


if __name__ == "__main__":
    main()
