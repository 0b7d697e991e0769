r"""Reproduce the main table of the paper: scores of representations on target tasks.

For each seed, the script learns a prefix for each source task, and fine-tunes the whole backbone on
all source tasks. It embeds the texts of each target task with each representation, fits a
standardized logistic regression whose C is chosen by cross-validation on the training texts, and
scores it on the test texts. Results are kept, and the same call again computes only what is
missing. At the size of the paper, from the Hub::

    python examples/reproduce_paper.py --backbone roberta-large --max-length 512 \\
        --source-texts 1000000 --target-texts 1000000 --seeds 0 1 2

At a size for two cores, from a folder of JSONL files, on the demo backbone::

    python examples/reproduce_paper.py --data DIR --sources sst2 qnli sick cola stsb \\
        --targets mr cr mpqa rte mrpc boolq multirc cosmosqa --source-texts 2000 \\
        --target-texts 600 --seeds 0 1 2

``--preset paper`` learns prefixes as the paper did: positions in attention alone.
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

GRID = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
BARE, MULTITASK = "bare backbone", "multi-task fine-tuning"
CHOSEN = "chosen on training texts"

# These arguments may differ between calls that share a folder: earlier results stay valid.
OPEN = {
    "data", "out", "seeds", "targets", "no_multitask", "combine", "sizes", "layers", "sentences",
}  # fmt: skip


class Results:
    """Keep scores by seed, target and representation in a file, with their arguments."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.path = args.out / "results.json"
        fixed = {key: value for key, value in vars(args).items() if key not in OPEN}
        self.scores: dict[str, Any] = {"arguments": fixed}
        if self.path.exists():
            self.scores = json.loads(self.path.read_text())
        if self.scores["arguments"] != fixed:
            sys.exit(
                f"{self.path} was made with {self.scores['arguments']}, not with {fixed}: set "
                "--out to another folder"
            )

    def get(self, *key: Any) -> Any:
        """Return the value of a key, or None."""
        return self.scores.get("|".join(map(str, key)))

    def keep(self, value: Any, *key: Any) -> None:
        """Store a value and write the file."""
        self.scores["|".join(map(str, key))] = value
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps(self.scores, indent=1))
        scratch.replace(self.path)


def fetch(args: argparse.Namespace, name: str, split: str, limit: int, seed: int) -> TaskSplit:
    """Fetch at most `limit` rows of a split."""
    return fetch_task(name, split, limit, args.data, seed)


def make_encoder(args: argparse.Namespace, **params: Any) -> PrefixEncoder:
    """Return an encoder with the parameters of the preset, and those that arguments set."""
    given = {"prefix_length": args.prefix_length, "ffn_length": args.ffn_length}
    given |= {"learning_rate": args.learning_rate, "pairs": args.pairs}
    params |= {name: value for name, value in given.items() if value is not None}
    params |= {"max_steps": args.steps, "max_length": args.max_length, "on_truncate": "ignore"}
    if args.preset == "default":
        return PrefixEncoder(args.backbone, **params)
    return PrefixEncoder.preset(args.preset, args.backbone, **params)


def learn_prefixes(args: argparse.Namespace, seed: int, results: Results) -> dict[str, Prefix]:
    """Learn the prefix of each source task, or load it if it has been saved."""
    prefixes = {}
    for name in args.sources:
        path = args.out / f"{name}-{seed}.safetensors"
        if not path.exists():
            train = fetch(args, name, "train", args.source_texts, seed)
            encoder = make_encoder(args, objective=train.info.objective, random_state=seed)
            encoder.fit(train.X, train.y)
            test = fetch(args, name, "test", args.source_texts, 0)
            results.keep(encoder.score(test.X, test.y), seed, name, "prefix, own task")
            results.keep(encoder.history_["seconds"][-1], seed, name, "prefix, seconds")
            encoder.prefix_.save(path)
            print(f"seed {seed} {name}: own score {results.get(seed, name, 'prefix, own task'):.3f}"
                  f", {encoder.history_['seconds'][-1]:.0f} s", flush=True)  # fmt: skip
        prefixes[name] = Prefix.load(path)
    return prefixes


def fine_tune(args: argparse.Namespace, seed: int, results: Results) -> str:
    """Fine-tune the backbone on all source tasks if it has not been saved; return its folder."""
    folder = args.out / f"multitask-{seed}"
    # save() writes the configuration last, so its presence means that the folder is complete.
    if not (folder / "config.json").exists():
        splits = {
            name: fetch(args, name, "train", args.source_texts, seed) for name in args.sources
        }
        encoder = MultiTaskEncoder(
            args.backbone,
            objectives={name: split.info.objective for name, split in splits.items()},
            learning_rate=args.multitask_learning_rate,
            max_steps=args.multitask_steps,
            max_length=args.max_length,
            pairs=make_encoder(args).pairs,
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
    """Return the bank of each representation, by name."""
    common = {"max_length": args.max_length, "on_truncate": "ignore", "cache": None}
    common |= {"pairs": make_encoder(args).pairs}
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
    """Return the head that is trained on vectors."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))


def search_head(info: TaskInfo) -> Any:
    """Return a search for C by cross-validation, with the metric of the task."""
    scoring = "f1" if info.metrics[0] == "f1a" else "accuracy"
    return GridSearchCV(make_head(), {"logisticregression__C": GRID}, cv=3, scoring=scoring)


def search_ranker(bank: PrefixBank) -> Any:
    """Return a search for the C of a ranker by cross-validated accuracy."""
    ranker = ChoiceRanker(clone(bank).set_params(cache=VectorCache()), make_head())
    return GridSearchCV(ranker, {"head__logisticregression__C": GRID}, cv=3)


def run_target(
    args: argparse.Namespace,
    seed: int,
    target: str,
    banks: Mapping[str, PrefixBank],
    results: Results,
) -> None:
    """Compute the missing scores of a target task: on test texts, and by cross-validation."""
    missing = [name for name in banks if results.get(seed, target, name) is None]
    if not missing:
        return
    limit = args.target_texts
    train = fetch(args, target, "train", limit, seed)
    test = fetch(args, target, "test", args.test_texts, 0)
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
    """Run what is missing, and return scores of shape (seed, target) by representation."""
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
    """Return the score that the table shows: the first metric of the task."""
    (info,) = (info for info in list_tasks() if info.name == target)
    return result[info.metrics[0]]


def collect(
    results: Results, seeds: list[int], targets: list[str], names: list[str]
) -> dict[str, np.ndarray]:
    """Return scores of shape (seed, target) by representation, and of the chosen ones.

    The chosen representation of a target is the bank or prefix with the best cross-validated score
    on its training texts.
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
    """Return a table with one row per representation: mean and deviation over seeds."""
    lines = [f"| representation | {' | '.join(targets)} | average |"]
    lines.append("|---" * (len(targets) + 2) + "|")
    for name, values in scores.items():
        averages = values.mean(axis=1)
        cells = " | ".join(f"{value:.3f}" for value in values.mean(axis=0))
        spread = f" ± {averages.std(ddof=1):.3f}" if len(averages) > 1 else ""
        lines.append(f"| {name} | {cells} | {averages.mean():.3f}{spread} |")
    return "\n".join(lines)


def plot(scores: Mapping[str, np.ndarray], n_targets: int, path: Path) -> None:
    """Plot the average over targets of each representation, one dot per seed."""
    import matplotlib.pyplot as plt

    names = list(scores)[::-1]
    averages = [scores[name].mean(axis=1) for name in names]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.28 * len(names)), layout="constrained")
    for row, (name, values) in enumerate(zip(names, averages, strict=True)):
        color = "tab:orange" if name.startswith(MULTITASK) else "tab:blue"
        axes.scatter(values, np.full(len(values), row), s=18, color=color)
        axes.scatter(values.mean(), row, marker="|", s=260, color="black")
    axes.axvline(scores[BARE].mean(), color="0.7", linestyle="--")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(f"test score, average over {n_targets} target tasks")
    axes.set_title("Dots: seeds. Bars: their mean. Dashed line: bare backbone", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def steps(text: str) -> int | str:
    """Read a number of training steps, or "auto"."""
    return text if text == "auto" else int(text)


def parse(description: str) -> argparse.ArgumentParser:
    """Return the parser of the arguments that the scripts of the paper share."""
    sources, targets = ([info.name for info in list_tasks(role)] for role in ("source", "target"))
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: the Hub)")
    parser.add_argument("--out", type=Path, default=Path("results/paper"))
    parser.add_argument("--backbone", default=None, help="default: demo_backbone()")
    parser.add_argument("--sources", nargs="+", default=sources)
    parser.add_argument("--targets", nargs="+", default=targets)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--source-texts", type=int, default=6000)
    parser.add_argument("--target-texts", type=int, default=1000)
    parser.add_argument("--test-texts", type=int, default=1500)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument(
        "--pooled-layers", type=int, default=1, help="also pool this many last layers"
    )
    parser.add_argument(
        "--pairs", choices=["auto", "joint", "apart"], help="how pairs are read (default: preset)"
    )
    parser.add_argument(
        "--preset", choices=["default", "paper"], default="default", help="how prefixes are learned"
    )
    parser.add_argument("--prefix-length", type=int, help="default: that of the preset")
    parser.add_argument("--ffn-length", type=int, help="default: that of the preset")
    parser.add_argument("--learning-rate", type=float, help="default: that of the preset")
    parser.add_argument("--steps", type=steps, default="auto")
    parser.add_argument("--multitask-learning-rate", type=float, default=5e-5)
    parser.add_argument("--multitask-steps", type=steps, default="auto")
    parser.add_argument("--no-multitask", action="store_true")
    return parser


def read_arguments(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Results]:
    """Parse the command line, and load earlier results."""
    args = parser.parse_args()
    args.backbone = args.backbone or demo_backbone()
    args.out.mkdir(parents=True, exist_ok=True)
    return args, Results(args)


def main() -> None:
    """Run what is missing, write the table, and plot it."""
    args, results = read_arguments(parse(__doc__.splitlines()[0]))
    started = time.perf_counter()
    scores = run(args, results)
    lines = table(scores, args.targets)
    (args.out / "table.md").write_text(lines + "\n")
    plot(scores, len(args.targets), args.out / "paper.png")
    print(
        f"{time.perf_counter() - started:.0f} s, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}\n\n{lines}"
    )


if __name__ == "__main__":
    main()
