"""Compare ways to combine prefixes on real source and target tasks.

For each seed, the script learns one prefix for each of five source tasks. It embeds the texts of
seven target tasks with each representation, fits a standardized logistic regression whose C is
chosen by cross-validation on the training texts, and scores it on the test texts. Results are kept
in a JSON file, and the same call again computes only what is missing.

    python examples/benchmarks/combination.py --data DIR --seeds 0 1 2

The folder holds ``<task>.train.jsonl`` and ``<task>.test.jsonl`` with the fields ``text``,
``text_b`` (for pairs) and ``label``.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed import Prefix, PrefixBank, PrefixEncoder
from prefixembed.tasks import demo_backbone

SOURCES = ("sst2", "qnli", "sick", "cola", "stsb")
TARGETS = ("mr", "cr", "mpqa", "rte", "mrpc", "boolq", "multirc")
LONG = ("boolq", "multirc")  # passages, which take long, so fewer of them are used


def read_task(folder: Path, name: str, split: str) -> tuple[list[Any], np.ndarray]:
    """Read texts or pairs, and labels; a similarity from 0 to 5 becomes six classes."""
    with open(folder / f"{name}.{split}.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts = [(row["text"], row["text_b"]) if "text_b" in row else row["text"] for row in rows]
    labels = np.array([row["label"] for row in rows])
    return texts, np.round(labels).astype(int)


def sample(texts: list[Any], labels: np.ndarray, limit: int, seed: int) -> tuple[Any, Any]:
    """Take at most `limit` rows at random."""
    chosen = np.random.default_rng(seed).permutation(len(texts))[:limit]
    return [texts[k] for k in chosen], labels[chosen]


def learn_sources(args: argparse.Namespace, seed: int) -> dict[str, Prefix]:
    """Learn the prefix of each source task, or load it if it has been saved."""
    prefixes = {}
    for name in SOURCES:
        path = args.out / f"{name}-{seed}.safetensors"
        if not path.exists():
            X, y = sample(*read_task(args.data, name, "train"), args.source_texts, seed)
            encoder = PrefixEncoder(
                args.backbone,
                prefix_length=args.prefix_length,
                max_steps=args.steps,
                max_length=args.max_length,
                pairs="joint",
                on_truncate="ignore",
                random_state=seed,
            ).fit(X, y)
            X_test, y_test = read_task(args.data, name, "test")
            print(f"seed {seed} {name}: source accuracy {encoder.score(X_test, y_test):.3f}, "
                  f"{encoder.history_['seconds'][-1]:.0f} s", flush=True)  # fmt: skip
            encoder.prefix_.save(path)
        prefixes[name] = Prefix.load(path)
    return prefixes


def representations(prefixes: dict[str, Prefix]) -> dict[str, dict[str, Any]]:
    """Return the parameters of a bank for each representation, by name."""
    n = len(prefixes)
    return {
        "bare backbone": {"active": []},
        **{f"{name} alone": {"active": [name]} for name in prefixes},
        "concatenated": {},
        "concatenated, weight 1/n": {"weights": 1 / n},
        "concatenated, weight 1/n^2": {"weights": 1 / n**2},
        "mean": {"combine": "mean"},
    }


def score(vectors: list[np.ndarray], labels: list[np.ndarray]) -> float:
    """Fit a head on training vectors, and return its accuracy on test vectors."""
    head = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=[1e-3, 1e-2, 1e-1, 1.0],
            l1_ratios=[0],
            cv=5,
            max_iter=2000,
            scoring="accuracy",
            use_legacy_attributes=False,
        ),
    )
    return float(head.fit(vectors[0], labels[0]).score(vectors[1], labels[1]))


def run_seed(args: argparse.Namespace, seed: int, results: dict[str, float]) -> None:
    """Compute the missing scores of a seed, and save after each target."""
    prefixes = learn_sources(args, seed)
    bank = PrefixBank(
        prefixes, backbone=args.backbone, max_length=args.max_length, pairs="joint",
        on_truncate="ignore",
    )  # fmt: skip
    for target in args.targets:
        limit = args.long_target_texts if target in LONG else args.target_texts
        train = sample(*read_task(args.data, target, "train"), limit, seed)
        test = sample(*read_task(args.data, target, "test"), limit, 0)
        labels = [train[1], test[1]]
        singles = []
        for name, params in representations(prefixes).items():
            key = f"{seed}|{target}|{name}"
            is_single = name.endswith("alone")
            if key in results and not is_single:
                continue
            if f"{seed}|{target}|average of single vectors" in results and is_single:
                continue
            own = PrefixBank(**{**bank.get_params(deep=False), **params})
            vectors = [own.transform(split[0]) for split in (train, test)]
            results[key] = score(vectors, labels)
            if is_single:
                singles.append(vectors)
        if singles:
            mean = [np.mean(split, axis=0) for split in zip(*singles, strict=True)]
            results[f"{seed}|{target}|average of single vectors"] = score(mean, labels)
        args.results.write_text(json.dumps(results, indent=1))
        print(f"seed {seed} {target}: done", flush=True)


def table(results: dict[str, float], seeds: list[int], targets: list[str]) -> str:
    """Return a table with one row per representation: mean and deviation over seeds."""
    names = dict.fromkeys(key.split("|")[2] for key in results)
    lines = [
        f"| representation | passes | {' | '.join(targets)} | average |",
        "|---" * (len(targets) + 3) + "|",
    ]
    for name in names:
        scores = np.array(
            [[results[f"{seed}|{target}|{name}"] for target in targets] for seed in seeds]
        )  # (seed, target)
        passes = len(SOURCES) if name.startswith("average") else 1
        averages = scores.mean(axis=1)
        cells = " | ".join(f"{value:.3f}" for value in scores.mean(axis=0))
        spread = averages.std(ddof=1) if len(seeds) > 1 else float("nan")
        lines.append(f"| {name} | {passes} | {cells} | {averages.mean():.3f} ± {spread:.3f} |")
    return "\n".join(lines)


def plot(results: dict[str, float], seeds: list[int], targets: list[str], path: Path) -> None:
    """Plot the average over targets of each representation, one dot per seed."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(key.split("|")[2] for key in results))[::-1]
    averages = np.array(
        [
            [np.mean([results[f"{seed}|{target}|{name}"] for target in targets]) for seed in seeds]
            for name in names
        ]
    )  # (representation, seed)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    rows = np.arange(len(names))
    axes.axvline(averages[names.index("bare backbone")].mean(), color="0.7", linestyle="--")
    axes.scatter(averages, np.broadcast_to(rows[:, None], averages.shape), s=18, color="tab:blue")
    axes.scatter(averages.mean(axis=1), rows, marker="|", s=260, color="black")
    axes.set_yticks(rows, names)
    axes.set_xlabel(f"test accuracy, average over {len(targets)} target tasks")
    axes.set_title("Dots: seeds. Bars: their mean. Dashed line: bare backbone", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Run what is missing, print the table, and plot it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of JSONL files")
    parser.add_argument("--out", type=Path, default=Path("results/combination"))
    parser.add_argument("--backbone", default=None, help="default: the demo backbone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--source-texts", type=int, default=6000)
    parser.add_argument("--target-texts", type=int, default=2500)
    parser.add_argument("--long-target-texts", type=int, default=1000)
    parser.add_argument("--prefix-length", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--max-length", type=int, default=128)
    args = parser.parse_args()
    args.backbone = args.backbone or demo_backbone()
    args.out.mkdir(parents=True, exist_ok=True)
    args.results = args.out / "results.json"
    results = json.loads(args.results.read_text()) if args.results.exists() else {}
    started = time.perf_counter()
    for seed in args.seeds:
        run_seed(args, seed, results)
    print(
        f"{time.perf_counter() - started:.0f} s, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}\n"
    )
    print(table(results, args.seeds, args.targets))
    plot(results, args.seeds, args.targets, args.out / "combination.png")


if __name__ == "__main__":
    main()
