"""Evaluate a bank with MTEB: the bare backbone and each way to combine prefixes.

MTEB downloads its tasks from the Hub and keeps results in a folder, so that a second run evaluates
only what is new::

    pip install 'prefixembed[mteb]'
    python examples/judge_by_mteb.py BANK
    python examples/judge_by_mteb.py BANK --tasks STSBenchmark SciFact --cache vectors.db

BANK is a folder that ``PrefixBank.save`` wrote, or a repository on the Hub.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import mteb
import numpy as np
from sklearn.base import clone

from prefixembed import PrefixBank
from prefixembed.interop import to_mteb

# One task of each kind: classification, semantic similarity, retrieval, pairs, clustering.
TASKS = [
    "Banking77Classification",
    "STSBenchmark",
    "SciFact",
    "TwitterSemEval2015",
    "TwentyNewsgroupsClustering.v2",
]


def variants(bank: PrefixBank) -> dict[str, PrefixBank]:
    """Return the variants of a bank that are compared."""
    settings = {
        "bare backbone": {"active": []},
        "concat": {"combine": "concat", "weights": None},
        "concat, weights 1/n": {"combine": "concat", "weights": 1 / max(1, len(bank))},
        "mean": {"combine": "mean", "weights": None},
    }
    return {name: clone(bank).set_params(**params) for name, params in settings.items()}


def judge(bank: PrefixBank, tasks: Sequence[mteb.AbsTask], out: Path) -> dict[str, list[float]]:
    """Return the main score of each task for each variant."""
    scores = {}
    for name, variant in variants(bank).items():
        model = to_mteb(variant)
        results = mteb.evaluate(model, tasks, cache=mteb.ResultCache(out))
        by_task = {result.task_name: result.get_score() for result in results}
        scores[name] = [float(by_task[task.metadata.name]) for task in tasks]
        print(name, dict(zip(by_task, scores[name], strict=True)), flush=True)
    return scores


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bank")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="names of tasks in MTEB")
    parser.add_argument("--cache", default="memory", help="file for vectors")
    parser.add_argument("--backbone", help="where it is here, if the bank names a folder")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--out", type=Path, default=Path("results/mteb"), help="folder for results of MTEB"
    )
    args = parser.parse_args(argv)
    where = {"backbone": args.backbone} if args.backbone else {}
    bank = PrefixBank.from_pretrained(
        args.bank, cache=args.cache, dtype=args.dtype, device=args.device, on_truncate="ignore",
        **where,
    )  # fmt: skip
    tasks = mteb.get_tasks(tasks=args.tasks, languages=["eng"])
    scores = judge(bank, tasks, args.out)
    names = [task.metadata.name for task in tasks]
    print("\n| " + " | ".join(["", *names, "average"]) + " |")
    print("|" + "---|" * (len(names) + 2))
    for name, values in scores.items():
        cells = [f"{100 * score:.1f}" for score in [*values, float(np.mean(values))]]
        print("| " + " | ".join([name, *cells]) + " |")


if __name__ == "__main__":
    main()
