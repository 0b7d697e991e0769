r"""Compare methods for one classification task: accuracy, time and size.

Each method learns from the same labelled texts and predicts the same test texts:

- ``tfidf``: TF-IDF of words and word pairs, and logistic regression;
- ``sentence-transformers``: its vectors, and logistic regression;
- ``bank``: vectors of the bank that comes with the library, and logistic regression;
- ``prefix``: a prefix learned on the task itself, with its own head;
- ``fine-tuning``: the whole backbone fine-tuned on the task, with its own head;
- ``setfit``: SetFit, which fine-tunes on pairs of texts (``pip install setfit``).

All but the first use all-MiniLM-L6-v2. What each method chooses, it chooses on the training texts:
C and scaling by cross-validation, the learning rate of fine-tuning by validation loss. The time for
that counts as training; the time to load a backbone does not. MB is what a task adds on disk. For
``sentence-transformers`` and ``bank`` that is the head, because all tasks share the backbone and
the bank. SetFit trains on at most ``--setfit-pairs`` pairs. Its default is one pass over all pairs,
which for two equal classes are 20,200 pairs of 200 texts, and 501,000 of 1,000.

With a folder of JSONL files, the tasks are customer reviews (CR), opinions (MPQA) and the package
that a docstring comes from. None of them is a source task of the bank. MR and SST-2 are left out:
the bank learned from SST-2, and MR comes from the same reviews. Without a folder, all tasks are
docstring tasks::

    python examples/which_method.py --data DIR --texts 200 1000 --seeds 0 1 2
    python examples/which_method.py --methods tfidf bank --texts 200

Each result is written as soon as it is there. The same call again computes only what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import threadpoolctl
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed import MultiTaskEncoder, PrefixBank, PrefixEncoder
from prefixembed.tasks import (
    DOCSTRING_TASKS,
    Task,
    demo_backbone,
    demo_bank,
    fetch_task,
    load_docstring_task,
)

Row = dict[str, Any]


def search(steps: list[tuple[str, Any]], grid: dict[str, Any], y: np.ndarray) -> GridSearchCV:
    """Return a search over a pipeline that ends in logistic regression, by stratified folds."""
    pipeline = Pipeline([*steps, ("clf", LogisticRegression(max_iter=2000))])
    folds = min(5, int(np.bincount(y).min()))
    cv = StratifiedKFold(folds, shuffle=True, random_state=0)
    return GridSearchCV(pipeline, grid, cv=cv, error_score="raise")


class Method(ABC):
    """One way from labelled texts to predictions. Labels are 0, 1, 2, ..."""

    def __init__(self, args: argparse.Namespace, seed: int) -> None:
        self.args, self.seed = args, seed
        self.chosen: Row = {}

    def load(self) -> None:  # noqa: B027, not every method shares something
        """Load what all tasks share."""

    @abstractmethod
    def fit(self, X: list[str], y: np.ndarray) -> None:
        """Learn the task."""

    @abstractmethod
    def predict(self, X: list[str]) -> np.ndarray:
        """Return a label per text."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what this task adds."""


class TfIdf(Method):
    """TF-IDF of words and word pairs, and logistic regression."""

    def fit(self, X: list[str], y: np.ndarray) -> None:
        """Choose C, and fit."""
        vectors = TfidfVectorizer(ngram_range=(1, 2))
        grid = {"clf__C": [1e-2, 1e-1, 1.0, 10.0, 100.0]}
        self.found = search([("tfidf", vectors)], grid, y).fit(X, y)
        self.chosen = {"C": self.found.best_params_["clf__C"]}

    def predict(self, X: list[str]) -> np.ndarray:
        """Return a label per text."""
        return self.found.predict(X)

    def save(self, folder: Path) -> None:
        """Write vocabulary and head."""
        joblib.dump(self.found.best_estimator_, folder / "model.joblib")


class Vectors(Method):
    """Logistic regression on the vectors of a frozen model."""

    embed: Callable[[list[str]], np.ndarray]

    def fit(self, X: list[str], y: np.ndarray) -> None:
        """Embed once, choose C and whether to scale, and fit."""
        grid = {
            "scale": ["passthrough", StandardScaler()],
            "clf__C": [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0],
        }
        self.found = search([("scale", "passthrough")], grid, y).fit(self.embed(X), y)
        best = self.found.best_params_
        self.chosen = {"C": best["clf__C"], "scaled": best["scale"] != "passthrough"}

    def predict(self, X: list[str]) -> np.ndarray:
        """Return a label per text."""
        return self.found.predict(self.embed(X))

    def save(self, folder: Path) -> None:
        """Write the head."""
        joblib.dump(self.found.best_estimator_, folder / "head.joblib")


class SentenceTransformers(Vectors):
    """Vectors of sentence-transformers."""

    def load(self) -> None:
        """Load the model, and run it once."""
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(demo_backbone())
        self.embed = lambda X: model.encode(X, show_progress_bar=False)
        self.embed(["a text"])


class Bank(Vectors):
    """Vectors of the bank that comes with the library."""

    def load(self) -> None:
        """Load the bank, and run it once."""
        # With a cache, texts that another method has seen would cost nothing.
        self.embed = demo_bank(cache=None, on_truncate="ignore").transform
        self.embed(["a text"])


class OwnPrefix(Method):
    """A prefix that is learned on the task itself."""

    def load(self) -> None:
        """Load the backbone, and run it once."""
        PrefixBank({}, backbone=demo_backbone(), cache=None).transform(["a text"])

    def fit(self, X: list[str], y: np.ndarray) -> None:
        """Learn the prefix and its head."""
        self.encoder = PrefixEncoder(
            demo_backbone(), random_state=self.seed, cache=None, on_truncate="ignore"
        ).fit(X, y)
        self.chosen = {"steps": int(self.encoder.history_["step"][-1])}

    def predict(self, X: list[str]) -> np.ndarray:
        """Return a label per text."""
        return self.encoder.predict(X)

    def save(self, folder: Path) -> None:
        """Write the prefix, which holds its head."""
        self.encoder.prefix_.save(folder / "prefix.safetensors")


class FineTuning(Method):
    """Fine-tuning of the whole backbone, at the best of several learning rates."""

    def load(self) -> None:
        """Load the backbone, and run it once."""
        bank = PrefixBank({}, backbone=demo_backbone(), dtype="float32", cache=None)
        bank.transform(["a text"])

    def fit(self, X: list[str], y: np.ndarray) -> None:
        """Fine-tune once per learning rate, and keep the lowest validation loss."""
        lowest = np.inf
        for rate in self.args.rates:
            encoder = MultiTaskEncoder(
                demo_backbone(),
                learning_rate=rate,
                random_state=self.seed,
                cache=None,
                on_truncate="ignore",
            ).fit({"task": (X, y)})
            loss = min(encoder.history_["valid_loss"])
            if loss < lowest:
                lowest, self.encoder = loss, encoder
                self.chosen = {"rate": rate, "steps": int(encoder.history_["step"][-1])}
        self.encoder.predict(["a text"])  # loads the fine-tuned backbone

    def predict(self, X: list[str]) -> np.ndarray:
        """Return a label per text."""
        return self.encoder.predict(X, "task")

    def save(self, folder: Path) -> None:
        """Write the backbone and the head."""
        self.encoder.save(folder)
        joblib.dump(self.encoder.heads_, folder / "heads.joblib")


def default_pairs(y: np.ndarray) -> int:
    """Count the pairs that SetFit draws by default: as many of two classes as of one."""
    sizes = np.bincount(y)
    same = int((sizes * (sizes + 1) // 2).sum())
    return 2 * max(same, len(y) * (len(y) + 1) // 2 - same)


class SetFit(Method):
    """SetFit at its default settings, apart from a largest number of pairs."""

    def load(self) -> None:
        """Load a model of its own, since training changes it, and run it once."""
        from setfit import SetFitModel

        self.model = SetFitModel.from_pretrained(demo_backbone())
        self.model.encode(["a text"], show_progress_bar=False)

    def fit(self, X: list[str], y: np.ndarray) -> None:
        """Train on pairs of texts, then fit the head."""
        from datasets import Dataset
        from setfit import Trainer, TrainingArguments

        with tempfile.TemporaryDirectory() as scratch:
            settings = TrainingArguments(
                output_dir=scratch,
                max_steps=-(-min(self.args.setfit_pairs, default_pairs(y)) // 16),
                save_strategy="no",
                report_to="none",
                show_progress_bar=False,
                seed=self.seed,
            )
            data = Dataset.from_dict({"text": X, "label": y.tolist()})
            trainer = Trainer(self.model, args=settings, train_dataset=data)
            trainer.train()
            self.chosen = {"steps": int(trainer.st_trainer.state.global_step)}

    def predict(self, X: list[str]) -> np.ndarray:
        """Return a label per text."""
        return np.asarray(self.model.predict(X, show_progress_bar=False))

    def save(self, folder: Path) -> None:
        """Write the backbone and the head."""
        self.model.save_pretrained(folder)


METHODS: dict[str, type[Method]] = {
    "tfidf": TfIdf,
    "sentence-transformers": SentenceTransformers,
    "bank": Bank,
    "prefix": OwnPrefix,
    "fine-tuning": FineTuning,
    "setfit": SetFit,
}
SHOWN = {
    "tfidf": "TF-IDF + LR",
    "sentence-transformers": "sentence-transformers + LR",
    "bank": "ready bank + LR",
    "prefix": "prefix on the task",
    "fine-tuning": "full fine-tuning",
    "setfit": "SetFit",
}
NEEDS = {"sentence-transformers": "sentence_transformers", "setfit": "setfit"}


def load_task(args: argparse.Namespace, name: str) -> Task:
    """Load a task of a folder, or a docstring task, with labels 0, 1, 2, ..."""
    if name in DOCSTRING_TASKS:
        task = load_docstring_task(name)
        X_train, y_train, X_test, y_test = task.X_train, task.y_train, task.X_test, task.y_test
    else:
        train, test = (fetch_task(name, split, data_dir=args.data) for split in ("train", "test"))
        X_train, y_train, X_test, y_test = train.X, train.y, test.X, test.y
    classes, codes = np.unique(y_train, return_inverse=True)
    kept = np.random.default_rng(0).permutation(len(y_test))[: args.test_texts]
    y_test = np.searchsorted(classes, np.asarray(y_test)[kept])
    return Task(name, list(X_train), codes, [X_test[k] for k in kept], y_test)


def draw(task: Task, n: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Return `n` training texts with labels, in which classes keep their shares."""
    if n >= len(task.y_train):
        sys.exit(f"task {task.name!r} has {len(task.y_train)} training texts: set --texts lower")
    rows, _ = train_test_split(
        np.arange(len(task.y_train)), train_size=n, stratify=task.y_train, random_state=seed
    )
    return [task.X_train[k] for k in rows], task.y_train[rows]


def measure(args: argparse.Namespace, task: Task, n: int, seed: int, name: str) -> Row:
    """Return accuracy, times and size of one method on one draw of texts."""
    X, y = draw(task, n, seed)
    method = METHODS[name](args, seed)
    method.load()
    started = time.perf_counter()
    method.fit(X, y)
    trained = time.perf_counter()
    predicted = method.predict(task.X_test)
    ended = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        method.save(Path(folder))
        n_bytes = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {
        "accuracy": float(np.mean(predicted == task.y_test)),
        "train": trained - started,
        "per_1000": (ended - trained) / len(task.X_test) * 1000,
        "MB": n_bytes / 1e6,
        "chosen": method.chosen,
    }


class Rows:
    """Keep results in a file of one JSON object per line, which a killed run leaves usable."""

    FIELDS = ("task", "texts", "seed", "method")

    def __init__(self, path: Path, settings: Row) -> None:
        self.path, self.settings = path, settings
        self.rows: dict[tuple[Any, ...], Row] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        # A line without an end was being written when the run was killed.
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        for row in map(json.loads, whole):
            if row["settings"] != settings:
                sys.exit(
                    f"{path} was made with {row['settings']}, not with {settings}: set --out to "
                    "another folder"
                )
            self.rows[tuple(row[field] for field in self.FIELDS)] = row
        if text and not text.endswith("\n"):
            path.write_text("".join(whole), encoding="utf-8")

    def keep(self, key: tuple[Any, ...], row: Row) -> None:
        """Append a row."""
        row = {**dict(zip(self.FIELDS, key, strict=True)), **row, "settings": self.settings}
        self.rows[key] = row
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def summarize(args: argparse.Namespace, rows: Rows) -> list[Row]:
    """Return mean and standard deviation over seeds, per task, number of texts and method."""
    found = []
    for task in args.tasks:
        for n in args.texts:
            for method in args.methods:
                some = [rows.rows[task, n, seed, method] for seed in args.seeds]
                row: Row = {"task": task, "texts": n, "method": method, "seeds": len(some)}
                for field in ("accuracy", "train", "per_1000", "MB"):
                    values = [one[field] for one in some]
                    row[field] = {"mean": float(np.mean(values)), "std": float(np.std(values))}
                found.append(row)
    return found


def table(rows: list[Row], task: str, n: int) -> str:
    """Return a Markdown table of the methods on a task."""
    lines = [
        "| method | accuracy | training, s | s per 1,000 texts | MB |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if (row["task"], row["texts"]) == (task, n):
            cells = [
                f"{row[key]['mean']:.{places}f} ± {row[key]['std']:.{places}f}"
                for key, places in (("accuracy", 3), ("train", 1), ("per_1000", 2))
            ]
            size = row["MB"]["mean"]
            cells.append(f"{size:.0f}" if size >= 10 else f"{size:.2g}")
            lines.append(f"| {SHOWN[row['method']]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(args: argparse.Namespace, rows: list[Row], shares: dict[str, float], path: Path) -> None:
    """Plot accuracy from zero, in a panel per task, with a bar per method and number of texts."""
    import matplotlib.pyplot as plt

    height = 1.8 + 0.25 * len(args.methods) * len(args.texts)
    figure, axes = plt.subplots(1, len(args.tasks), figsize=(4 * len(args.tasks), height),
                                sharey=True, layout="constrained", squeeze=False)  # fmt: skip
    positions = np.arange(len(args.methods))[::-1]
    width = 0.8 / len(args.texts)
    for panel, task in zip(axes[0], args.tasks, strict=True):
        for k, n in enumerate(args.texts):
            some = [row["accuracy"] for row in rows if (row["task"], row["texts"]) == (task, n)]
            mean = [value["mean"] for value in some]
            bars = panel.barh(
                positions + (len(args.texts) / 2 - k - 0.5) * width,
                mean,
                width,
                xerr=[value["std"] for value in some],
                color=plt.cm.Blues(0.4 + 0.4 * k / max(1, len(args.texts) - 1)),
                label=f"{n:,} texts",
            )
            panel.bar_label(bars, [f"{value:.2f}" for value in mean], padding=4, fontsize=8)
        panel.axvline(shares[task], color="0.3", linestyle="--", linewidth=1,
                      label="largest class")  # fmt: skip
        panel.set(title=task, xlim=(0, 1.12), xlabel="test accuracy, from zero")
        panel.set_xticks(np.linspace(0, 1, 6))
        panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_yticks(positions, [SHOWN[name] for name in args.methods])
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the arguments, and fill in what depends on others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: none)")
    parser.add_argument("--tasks", nargs="+", help="default: cr mpqa package with --data, "
                        "else package kind subpackage")  # fmt: skip
    parser.add_argument("--texts", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--test-texts", type=int, default=1500, help="at most so many")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-5, 2e-4],
                        help="learning rates that fine-tuning tries")  # fmt: skip
    parser.add_argument("--setfit-pairs", type=int, default=4000,
                        help="largest number of pairs that SetFit trains on")  # fmt: skip
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--out", type=Path, default=Path("results/which_method"))
    args = parser.parse_args(argv)
    default = ["package", "kind", "subpackage"] if args.data is None else ["cr", "mpqa", "package"]
    args.tasks = args.tasks or default
    for name in list(args.methods):
        if name in NEEDS and find_spec(NEEDS[name]) is None:
            print(f"{name} is left out: it is not installed", flush=True)
            args.methods.remove(name)
    args.threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(args.threads)
    threadpoolctl.threadpool_limits(args.threads)
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)  # of tokenizers, which read it on first use
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, print the tables, and plot accuracy."""
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    names = ("test_texts", "rates", "setfit_pairs", "threads")
    rows = Rows(args.out / "rows.jsonl", {name: getattr(args, name) for name in names})
    tasks = {name: load_task(args, name) for name in args.tasks}
    for seed in args.seeds:
        for task in tasks.values():
            for n in args.texts:
                for method in args.methods:
                    key = (task.name, n, seed, method)
                    if key not in rows.rows:
                        row = measure(args, task, n, seed, method)
                        rows.keep(key, row)
                        done = f"{row['accuracy']:.3f} in {row['train']:.0f} s"
                        print(f"{task.name}, {n} texts, seed {seed}, {method}: {done}", flush=True)
    found = summarize(args, rows)
    shares = {name: float(np.bincount(t.y_test).max() / len(t.y_test)) for name, t in tasks.items()}
    for name, task in tasks.items():
        for n in args.texts:
            print(f"\n{name}: {n:,} training and {len(task.y_test):,} test texts, largest class "
                  f"{shares[name]:.3f}\n\n{table(found, name, n)}")  # fmt: skip
    kept = {"settings": rows.settings, "largest class": shares, "rows": found}
    (args.out / "which_method.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    plot(args, found, shares, args.out / "which_method.png")


if __name__ == "__main__":
    main()
