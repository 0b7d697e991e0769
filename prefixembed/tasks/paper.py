"""The tasks of the paper, from the Hub or from a folder, and demo tasks that need neither."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions

from prefixembed._fit.objectives import OBJECTIVES
from prefixembed._utils.parameters import PATH, Count, checked
from prefixembed.tasks.demo import DOCSTRING_TASKS, Task, demo_backbone, load_docstring_task
from prefixembed.tasks.table import CONVERTED, TASKS, Example, Reader, Row, TaskInfo

__all__ = [
    "DOCSTRING_TASKS",
    "Task",
    "TaskInfo",
    "TaskSplit",
    "demo_backbone",
    "fetch_task",
    "list_tasks",
    "load_docstring_task",
]


@dataclass(frozen=True, eq=False)
class TaskSplit:
    """Labelled rows of one split of a task.

    Parameters
    ----------
    info : TaskInfo
        Of which task.
    split : {"train", "test"}
        Which part of it.
    X : list
        Texts, pairs of texts, or rows of a context and its choices: what
        :meth:`PrefixEncoder.fit <prefixembed.PrefixEncoder.fit>` takes with ``info.objective``.
    y : ndarray of shape (n_rows,)
        Labels.
    groups : ndarray of shape (n_rows,), default=None
        What is scored together: in MultiRC, the question that an answer belongs to.
    """

    info: TaskInfo
    split: str
    X: list[Any]
    y: NDArray[Any]
    groups: NDArray[Any] | None = None

    def score(self, predicted: ArrayLike) -> dict[str, float]:
        """Score predictions for all rows, as the literature does.

        Parameters
        ----------
        predicted : array-like of shape (n_rows,)
            What was predicted for `X`.

        Returns
        -------
        scores : dict of str to float
            One entry for each of ``info.metrics``. ``"f1"`` is that of class 1; ``"f1a"`` is
            the same over all answers of MultiRC, and ``"exact_match"`` the share of its questions
            of which every answer is right.

        Raises
        ------
        ValueError
            If there are more predictions than rows, or fewer.
        """
        y_pred = np.asarray(predicted)
        if y_pred.shape != self.y.shape:
            raise ValueError(f"predicted must have shape {self.y.shape}, got {y_pred.shape}")
        return {name: _METRICS[name](self.y, y_pred, self.groups) for name in self.info.metrics}


def _exact_match(y: NDArray[Any], predicted: NDArray[Any], groups: NDArray[Any] | None) -> float:
    assert groups is not None
    _, group = np.unique(groups, return_inverse=True)
    wrong = np.bincount(group, weights=y != predicted)
    return float(np.mean(wrong == 0))


def _correlation(y: NDArray[Any], predicted: NDArray[Any], ranks: bool) -> float:
    from scipy.stats import pearsonr, spearmanr

    return float((spearmanr if ranks else pearsonr)(y, predicted)[0])


_METRICS: dict[str, Callable[[Any, Any, Any], float]] = {
    "accuracy": lambda y, p, groups: float(accuracy_score(y, p)),
    "f1": lambda y, p, groups: float(f1_score(y, p)),
    "f1a": lambda y, p, groups: float(f1_score(y, p)),
    "exact_match": _exact_match,
    "matthews": lambda y, p, groups: float(matthews_corrcoef(y, p)),
    "pearson": lambda y, p, groups: _correlation(y, p, ranks=False),
    "spearman": lambda y, p, groups: _correlation(y, p, ranks=True),
}


@checked(
    role=[StrOptions({"source", "target", "further"}), None],
    objective=[StrOptions(set(OBJECTIVES)), None],
)
def list_tasks(role: str | None = None, objective: str | None = None) -> list[TaskInfo]:
    """List the tasks that :func:`fetch_task` knows.

    Parameters
    ----------
    role : {"source", "target", "further"}, default=None
        Those that the paper learns prefixes on, those that it trains heads on, or others. None
        for all.
    objective : str, default=None
        Those of one kind. None for all.

    Returns
    -------
    tasks : list of TaskInfo
        The paper's seven source tasks, its eight target tasks, and three more.

    References
    ----------
    .. [1] K.-H. Huang et al., arXiv 2305.13499, section 4.

    Examples
    --------
    >>> from prefixembed.tasks import list_tasks
    >>> [task.name for task in list_tasks("source")]
    ['mnli', 'qnli', 'qqp', 'sst2', 'yelp2', 'record', 'winogrande']
    """
    return [
        info
        for info, _ in TASKS.values()
        if role in (None, info.role) and objective in (None, info.objective)
    ]


@checked(
    name=[StrOptions(set(TASKS))],
    split=[StrOptions({"train", "test"})],
    limit=[Count(0), None],
    data_dir=[*PATH, None],
    random_state=["random_state"],
)
def fetch_task(
    name: str,
    split: str = "train",
    limit: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> TaskSplit:
    """Fetch a split of a task, from the Hub or from a folder.

    Parameters
    ----------
    name : str
        One of :func:`list_tasks`.
    split : {"train", "test"}, default="train"
        Which part.
    limit : int, default=None
        Most rows, drawn at random; of rows that are scored together, all or none. None for all,
        in their own order.
    data_dir : str or path-like, default=None
        Folder with ``<name>.<split>.jsonl``, a row a line: ``text``, ``text_b`` of pairs,
        ``choices`` of multiple choice, ``group`` and ``label``; ReCoRD may have SuperGLUE's own
        form. None for the Hub, through ``datasets``.
    random_state : int, RandomState instance or None, default=None
        Which rows `limit` takes.

    Returns
    -------
    split : TaskSplit
        Rows with labels; those that have none are left out.

    Raises
    ------
    ValueError
        If there is no such task or split, or a line of a file is no row.
    OSError
        If the Hub cannot be reached, or there is no such file.

    Examples
    --------
    >>> from prefixembed.tasks import fetch_task
    >>> mr = fetch_task("mr", "test", limit=100, random_state=0)  # doctest: +SKIP
    """
    info, read = TASKS[name]
    if data_dir is None:
        rows = _hub_rows(info, split)
        examples = [e for row in rows for e in read(row) if _is_labelled(e, info)]
    else:
        examples = list(_folder_examples(info, split, Path(data_dir), read))
    groups = None if not examples or examples[0][2] is None else [g for *_, g in examples]
    if limit is not None:
        chosen = _sample(len(examples), groups, limit, check_random_state(random_state))
        examples = [examples[k] for k in chosen]
        groups = None if groups is None else [groups[k] for k in chosen]
    labels = np.array([label for _, label, _ in examples])
    return TaskSplit(
        info=info,
        split=split,
        X=[x for x, _, _ in examples],
        y=labels.astype(np.float64 if info.objective == "regression" else np.int64),
        groups=None if groups is None else np.array(groups),
    )


def _hub_rows(info: TaskInfo, split: str) -> Iterable[Row]:
    import datasets

    try:
        # What was converted has a folder a configuration, and no card that would name them.
        where = "data_dir" if info.revision == CONVERTED else "name"
        return datasets.load_dataset(
            info.hub,
            split=info.splits[split],
            revision=info.revision,
            **{where: info.config},
        )
    except (OSError, ValueError) as error:
        raise OSError(
            f"task {info.name!r} could not be fetched from the Hub ({info.hub}): {error}. Either "
            f"run where the Hub can be reached, or pass as data_dir a folder that has "
            f"{info.name}.{split}.jsonl"
        ) from error


def _folder_examples(info: TaskInfo, split: str, folder: Path, read: Reader) -> Iterator[Example]:
    path = folder / f"{info.name}.{split}.jsonl"
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {os.fspath(path)!r}: data_dir must have it, or be None for the Hub"
        )
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                found = [_plain_row(row)] if "text" in row else read(row)
                yield from [example for example in found if _is_labelled(example, info)]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(
                    f"line {number} of {os.fspath(path)!r} is no row of {info.name}: {error!r}"
                ) from error


def _plain_row(row: Row) -> Example:
    x = row["text"]
    for further in ("text_b", "choices"):
        if further in row:
            x = (row["text"], row[further])
    return x, row["label"], row.get("group")


def _is_labelled(example: Example, info: TaskInfo) -> bool:
    """Tell whether a row has a label, and refuse one that is none."""
    label = example[1]
    whole = info.objective != "regression"
    if label is None:
        return False
    # Bounds keep out infinity and NaN, and numbers that int64 cannot hold.
    is_number = isinstance(label, (int, float)) and -(2**53) < label < 2**53
    if not is_number or (whole and label != int(label)):
        kind = " whole" if whole else ""
        raise ValueError(f"label must be a{kind} number below 2**53, got {repr(label)[:80]}")
    # The Hub marks rows of unknown label by -1; scores are never negative.
    return bool(label >= 0)


def _sample(
    n_rows: int, groups: list[Any] | None, limit: int, random: np.random.RandomState
) -> NDArray[np.intp]:
    units = np.arange(n_rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    order = random.permutation(units.max(initial=-1) + 1)
    sizes = np.bincount(units)[order]
    kept = order[np.cumsum(sizes) <= limit]
    rank = np.full(len(order), -1)
    rank[kept] = np.arange(len(kept))
    rows = np.flatnonzero(rank[units] >= 0)
    return rows[np.argsort(rank[units][rows], kind="stable")]
