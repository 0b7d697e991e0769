r"""The paper's main table: source tasks, ways to make one representation of them, target tasks.

For each seed: learn a prefix for every source task, and fine-tune the whole backbone on all of
them; turn the texts of every target task into vectors in each representation; fit a standardised
logistic regression on the training texts, its C chosen by cross-validation there, and score it on
the test texts. What is done is kept, and the same call again does only what is missing. At the size
of the paper, from the Hub::

    python examples/reproduce_paper.py --backbone roberta-large --max-length 512 \\
        --source-texts 1000000 --target-texts 1000000 --seeds 0 1 2

and at a size that two cores bear, from a folder of JSONL files, on the demo backbone::

    python examples/reproduce_paper.py --data DIR --sources sst2 qnli sick cola stsb \\
        --targets mr cr mpqa rte mrpc boolq multirc cosmosqa --source-texts 6000 \\
        --target-texts 1000 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed import (
    ChoiceRanker,
    MultiTaskEncoder,
    Prefix,
    PrefixBank,
    PrefixEncoder,
    VectorCache,
    release_backbones,
)
from prefixembed.tasks import TaskInfo, TaskSplit, demo_backbone, fetch_task, list_tasks

GRID = [1e-3, 1e-2, 1e-1, 1.0]
BARE, MULTITASK = "bare backbone", "multi-task fine-tuning"
CHOSEN = "chosen on training texts"


# Arguments that do not change what has been done: they add to it, or say where it lies.
OPEN = (
    "data",
    "out",
    "seeds",
    "targets",
    "no_multitask",
    "combine",
    "sizes",
    "layers",
    "sentences",
)


class Results:
    """Scores by seed, target and representation, kept in a file with what they were made with."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.path = args.out / "results.json"
        fixed = {key: value for key, value in vars(args).items() if key not in OPEN}
        self.scores: dict[str, Any] = {"arguments": fixed}
        if self.path.exists():
            self.scores = json.loads(self.path.read_text())
        if self.scores["arguments"] != fixed:
            sys.exit(
                f"{self.path} was made with {self.scores['arguments']}, not with {fixed}: name "
                "another folder with --out"
            )

    def get(self, *key: Any) -> Any:
        """Give what was kept under a key, or None."""
        return self.scores.get("|".join(map(str, key)))

    def keep(self, value: Any, *key: Any) -> None:
        """Keep a value."""
        self.scores["|".join(map(str, key))] = value
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps(self.scores, indent=1))
        scratch.replace(self.path)


def fetch(args: argparse.Namespace, name: str, split: str, limit: int, seed: int) -> TaskSplit:
    """Fetch a split, at most so many rows of it."""
    return fetch_task(name, split, limit, args.data, seed)


def learn_prefixes(args: argparse.Namespace, seed: int, results: Results) -> dict[str, Prefix]:
    """Learn the prefix of every source task, or read it where it has been saved."""
    prefixes = {}
    for name in args.sources:
        path = args.out / f"{name}-{seed}.safetensors"
        if not path.exists():
            train = fetch(args, name, "train", args.source_texts, seed)
            encoder = PrefixEncoder(
                args.backbone,
                objective=train.info.objective,
                prefix_length=args.prefix_length,
                learning_rate=args.learning_rate,
                max_epochs=args.epochs,
                max_length=args.max_length,
                pairs=args.pairs,
                on_truncate="ignore",
                random_state=seed,
            ).fit(train.X, train.y)
            test = fetch(args, name, "test", args.source_texts, 0)
            results.keep(encoder.score(test.X, test.y), seed, name, "prefix, own task")
            results.keep(encoder.history_["seconds"][-1], seed, name, "prefix, seconds")
            encoder.prefix_.save(path)
            print(f"seed {seed} {name}: own score {results.get(seed, name, 'prefix, own task'):.3f}"
                  f", {encoder.history_['seconds'][-1]:.0f} s", flush=True)  # fmt: skip
        prefixes[name] = Prefix.load(path)
    return prefixes


def fine_tune(args: argparse.Namespace, seed: int, results: Results) -> str:
    """Fine-tune the whole backbone on all source tasks, or name the folder where it is."""
    folder = args.out / f"multitask-{seed}"
    # save() writes the configuration last.
    if not (folder / "config.json").exists():
        splits = {
            name: fetch(args, name, "train", args.source_texts, seed) for name in args.sources
        }
        encoder = MultiTaskEncoder(
            args.backbone,
            objectives={name: split.info.objective for name, split in splits.items()},
            learning_rate=args.multitask_learning_rate,
            max_epochs=args.multitask_epochs,
            max_length=args.max_length,
            pairs=args.pairs,
            on_truncate="ignore",
            random_state=seed,
        ).fit({name: (split.X, split.y) for name, split in splits.items()})
        for name in splits:
            test = fetch(args, name, "test", args.source_texts, 0)
            results.keep(encoder.score(test.X, test.y, name), seed, name, "multi-task, own task")
        results.keep(encoder.history_["seconds"][-1], seed, "", "multi-task, seconds")
        encoder.save(folder)
        print(f"seed {seed} multi-task: {encoder.history_['seconds'][-1]:.0f} s", flush=True)
    return str(folder)


def representations(
    args: argparse.Namespace, prefixes: dict[str, Prefix], tuned: str | None
) -> dict[str, PrefixBank]:
    """Name each representation, and give the bank that makes it."""
    common = {"max_length": args.max_length, "on_truncate": "ignore", "cache": None}
    common["pairs"] = args.pairs
    bank = {"prefixes": prefixes, "backbone": args.backbone, **common}
    found = {BARE: PrefixBank(**bank, active=[])}
    found |= {f"{name} alone": PrefixBank(**bank, active=[name]) for name in prefixes}
    found["bank, concatenated (the paper)"] = PrefixBank(**bank)
    found["bank, weights 1/n"] = PrefixBank(**bank, weights=1 / len(prefixes))
    found["bank, mean"] = PrefixBank(**bank, combine="mean")
    if tuned is not None:
        found[MULTITASK] = PrefixBank({}, backbone=tuned, **common)
    if args.pooled_layers > 1:
        for name in [name for name in found if not name.endswith(" alone")]:
            more = clone(found[name]).set_params(pooled_layers=args.pooled_layers)
            found[f"{name}, last {args.pooled_layers} layers"] = more
    return found


def make_head() -> Any:
    """Make what is trained on vectors."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))


def search_head(info: TaskInfo) -> Any:
    """Choose C on folds of the training texts, by what the task is scored by."""
    scoring = "f1" if info.metrics[0] == "f1a" else "accuracy"
    return GridSearchCV(make_head(), {"logisticregression__C": GRID}, cv=3, scoring=scoring)


def search_ranker(bank: PrefixBank) -> Any:
    """Choose C by the share of rows whose right choice is picked, on folds of rows."""
    ranker = ChoiceRanker(clone(bank).set_params(cache=VectorCache()), make_head())
    return GridSearchCV(ranker, {"head__logisticregression__C": GRID}, cv=3)


def run_target(
    args: argparse.Namespace,
    seed: int,
    target: str,
    banks: Mapping[str, PrefixBank],
    results: Results,
) -> None:
    """Fill in the scores of a target task: on test texts, and by cross-validation on training."""
    missing = [name for name in banks if results.get(seed, target, name) is None]
    if not missing:
        return
    limit = args.target_texts
    train = fetch(args, target, "train", limit, seed)
    test = fetch(args, target, "test", limit, 0)
    for name in missing:
        bank = banks[name]
        if train.info.objective == "multiple_choice":
            search: Any = search_ranker(bank).fit(train.X, train.y)
            predicted, training = search.predict(test.X), search.best_score_
        else:
            search = search_head(train.info).fit(bank.transform(train.X), train.y)
            predicted, training = search.predict(bank.transform(test.X)), search.best_score_
        scores = test.score(predicted) | {"training": float(training)}
        results.keep(scores, seed, target, name)
    print(f"seed {seed} {target}: done", flush=True)


def run(args: argparse.Namespace, results: Results) -> dict[str, np.ndarray]:
    """Run what is missing, and give scores of shape (seed, target) by representation."""
    names: list[str] = []
    for seed in args.seeds:
        prefixes = learn_prefixes(args, seed, results)
        tuned = None if args.no_multitask else fine_tune(args, seed, results)
        banks = representations(args, prefixes, tuned)
        names = list(banks)
        for target in args.targets:
            run_target(args, seed, target, banks, results)
        if tuned is not None:
            release_backbones(tuned)
    return collect(results, args.seeds, args.targets, names)


def main_score(result: dict[str, float], target: str) -> float:
    """Give the score that stands in the table: the literature's first one."""
    (info,) = (info for info in list_tasks() if info.name == target)
    return result[info.metrics[0]]


def collect(
    results: Results, seeds: list[int], targets: list[str], names: list[str]
) -> dict[str, np.ndarray]:
    """Give scores of shape (seed, target) by representation, and of the one that is chosen.

    Chosen is, for each target, the bank or single prefix that cross-validation on its training
    texts finds best.
    """
    found = {
        name: np.array([[main_score(results.get(s, t, name), t) for t in targets] for s in seeds])
        for name in names
    }
    own = [name for name in names if not name.startswith(MULTITASK)]
    chosen = [
        [
            main_score(
                max((results.get(s, t, name) for name in own), key=lambda r: r["training"]), t
            )
            for t in targets
        ]
        for s in seeds
    ]
    return {**found, CHOSEN: np.array(chosen)}


def table(scores: Mapping[str, np.ndarray], targets: list[str]) -> str:
    """Lay scores out: a row a representation, mean and standard deviation over seeds."""
    lines = [f"| representation | {' | '.join(targets)} | average |"]
    lines.append("|---" * (len(targets) + 2) + "|")
    for name, some in scores.items():
        averages = some.mean(axis=1)
        cells = " | ".join(f"{value:.3f}" for value in some.mean(axis=0))
        spread = f" ± {averages.std(ddof=1):.3f}" if len(averages) > 1 else ""
        lines.append(f"| {name} | {cells} | {averages.mean():.3f}{spread} |")
    return "\n".join(lines)


def plot(scores: Mapping[str, np.ndarray], n_targets: int, path: Path) -> None:
    """Draw the average over targets of each representation, a dot a seed."""
    import matplotlib.pyplot as plt

    names = list(scores)[::-1]
    averages = [scores[name].mean(axis=1) for name in names]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.28 * len(names)), layout="constrained")
    for row, (name, some) in enumerate(zip(names, averages, strict=True)):
        color = "tab:orange" if name.startswith(MULTITASK) else "tab:blue"
        axes.scatter(some, np.full(len(some), row), s=18, color=color)
        axes.scatter(some.mean(), row, marker="|", s=260, color="black")
    axes.axvline(scores[BARE].mean(), color="0.7", linestyle="--")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(f"score on test texts, average over {n_targets} target tasks")
    axes.set_title("Dots: seeds; bars: their mean; dashed: bare backbone", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse(description: str) -> argparse.ArgumentParser:
    """Make the parser of what decides prefixes, rivals and targets."""
    sources, targets = ([info.name for info in list_tasks(role)] for role in ("source", "target"))
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, help="folder of JSONL files; default: the Hub")
    parser.add_argument("--out", type=Path, default=Path("results/paper"))
    parser.add_argument("--backbone", default=None, help="default: the demo backbone")
    parser.add_argument("--sources", nargs="+", default=sources)
    parser.add_argument("--targets", nargs="+", default=targets)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--source-texts", type=int, default=6000)
    parser.add_argument("--target-texts", type=int, default=1000)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument(
        "--pooled-layers", type=int, default=1, help="also read so many last layers"
    )
    parser.add_argument(
        "--pairs", choices=["joint", "apart"], default="joint", help="how pairs are read"
    )
    parser.add_argument("--prefix-length", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--multitask-learning-rate", type=float, default=5e-5)
    parser.add_argument("--multitask-epochs", type=int, default=2)
    parser.add_argument("--no-multitask", action="store_true")
    return parser


def read_arguments(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Results]:
    """Read the command line, and what the same call has done before."""
    args = parser.parse_args()
    args.backbone = args.backbone or demo_backbone()
    args.out.mkdir(parents=True, exist_ok=True)
    return args, Results(args)


def main() -> None:
    """Run what is missing, write the table and draw the plot."""
    args, results = read_arguments(parse(__doc__.splitlines()[0]))
    started = time.perf_counter()
    scores = run(args, results)
    laid_out = table(scores, args.targets)
    (args.out / "table.md").write_text(laid_out + "\n")
    plot(scores, len(args.targets), args.out / "paper.png")
    print(
        f"{time.perf_counter() - started:.0f} s, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}\n\n{laid_out}"
    )


if __name__ == "__main__":
    main()
