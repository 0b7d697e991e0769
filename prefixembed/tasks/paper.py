"""The paper's tasks, fetched from the Hub or read from a folder."""

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
from prefixembed.tasks.table import CONVERTED, TASKS, Example, Reader, Row, TaskInfo


@dataclass(frozen=True, eq=False)
class TaskSplit:
    """Hold the labelled rows of one split of a task.

    Read more in the :doc:`user guide </guide/tasks>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    info : TaskInfo
        Description of the task.
    split : {"train", "test"}
        Which split this is.
    X : list
        Texts, pairs of texts, or rows of a context and its choices, as
        :meth:`PrefixEncoder.fit <prefixembed.PrefixEncoder.fit>` takes them with
        ``objective=info.objective``.
    y : ndarray of shape (n_rows,)
        Labels.
    groups : ndarray of shape (n_rows,), default=None
        Group of each row, for metrics that score rows together. In MultiRC, a group holds the
        answers to one question.
    """

    info: TaskInfo
    split: str
    X: list[Any]
    y: NDArray[Any]
    groups: NDArray[Any] | None = None

    def score(self, predicted: ArrayLike) -> dict[str, float]:
        """Score predictions by the metrics that the literature reports.

        Parameters
        ----------
        predicted : array-like of shape (n_rows,)
            Prediction for each row of `X`.

        Returns
        -------
        scores : dict of str to float
            Score by each of ``info.metrics``:

            - ``"accuracy"``, ``"matthews"``, ``"pearson"``, ``"spearman"``: as in scikit-learn
              and SciPy;
            - ``"f1"``: the F1 score of class 1;
            - ``"f1a"``: the F1 score of class 1 over all answers of MultiRC;
            - ``"exact_match"``: the share of questions in MultiRC whose answers are all
              classified correctly.

        Raises
        ------
        ValueError
            If the number of predictions differs from the number of rows.

        Examples
        --------
        >>> import numpy as np
        >>> from prefixembed.tasks import TaskSplit, list_tasks
        >>> split = TaskSplit(list_tasks()[0], "test", ["a", "b"], np.array([0, 1]))
        >>> split.score([0, 0])
        {'accuracy': 0.5}
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
    """List the tasks that :func:`fetch_task` can fetch.

    Read more in the :doc:`user guide </guide/tasks>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    role : {"source", "target", "further"}, default=None
        Which tasks to list. None for all.

        - ``"source"``: the seven tasks that the paper [1]_ learns prefixes on;
        - ``"target"``: the eight tasks that it trains heads on;
        - ``"further"``: three tasks that it does not use.
    objective : str, default=None
        List only tasks of this kind, such as ``"regression"``. None for all.

    Returns
    -------
    tasks : list of TaskInfo
        Descriptions of the tasks.

    References
    ----------
    .. [1] K.-H. Huang et al., "Learning Easily Updated General Purpose Text
       Representations with Adaptable Task-Specific Prefixes", arXiv 2305.13499, section 4.

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
    """Fetch a split of a task from the Hub or from a folder.

    Read more in the :doc:`user guide </guide/tasks>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    name : str
        Name of one of the tasks in :func:`list_tasks`.
    split : {"train", "test"}, default="train"
        Which split to fetch.
    limit : int, default=None
        Largest number of rows. They are drawn at random, and rows that are scored together are
        drawn together. None for all rows in their original order.
    data_dir : str or path-like, default=None
        Folder that holds a file ``<name>.<split>.jsonl`` with one JSON object per line. Its keys
        are ``text``, ``text_b`` for pairs, ``choices`` for multiple choice, ``group`` if rows are
        scored together, and ``label``. A file of ReCoRD may have the format of SuperGLUE
        instead. None to fetch the task from the Hub with ``datasets``.
    random_state : int, RandomState instance or None, default=None
        Seed for the rows that are drawn if `limit` is given.

    Returns
    -------
    split : TaskSplit
        Rows with labels. Rows without a label are left out.

    Raises
    ------
    ValueError
        If there is no such task or split, or a line of the file is not a row of the task.
    OSError
        If the Hub cannot be reached, or the file does not exist.

    See Also
    --------
    load_docstring_task : Demo tasks that need no download.

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
        drawn = _sample(len(examples), groups, limit, check_random_state(random_state))
        examples = [examples[k] for k in drawn]
        groups = None if groups is None else [groups[k] for k in drawn]
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

    # A converted dataset has one folder per configuration, and no card that names them.
    config = {"data_dir" if info.revision == CONVERTED else "name": info.config}
    try:
        return datasets.load_dataset(
            info.hub,
            split=info.test_split if split == "test" else "train",
            revision=info.revision,
            **config,
        )
    except (OSError, ValueError) as error:
        raise OSError(
            f"task {info.name!r} could not be fetched from {info.hub!r} on the Hub: {error}. "
            "Check the connection, or set data_dir to a folder that holds "
            f"{info.name}.{split}.jsonl"
        ) from error


def _folder_examples(info: TaskInfo, split: str, folder: Path, read: Reader) -> Iterator[Example]:
    path = folder / f"{info.name}.{split}.jsonl"
    if not path.is_file():
        raise FileNotFoundError(
            f"data_dir has no file {path.name}: {os.fspath(path)!r} does not exist. Set data_dir "
            "to None to fetch the task from the Hub"
        )
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                found = [_plain_row(row)] if "text" in row else read(row)
                yield from [example for example in found if _is_labelled(example, info)]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(
                    f"line {number} of {os.fspath(path)!r} is not a row of task {info.name!r}: "
                    f"{error!r}"
                ) from error


def _plain_row(row: Row) -> Example:
    x = row["text"]
    for further in ("text_b", "choices"):
        if further in row:
            x = (row["text"], row[further])
    return x, row["label"], row.get("group")


def _is_labelled(example: Example, info: TaskInfo) -> bool:
    """Return whether a row has a label; raise ValueError if the label is not a number."""
    label = example[1]
    if label is None:
        return False
    kind = "a number" if info.objective == "regression" else "an integer"
    # The bounds exclude infinity, NaN and numbers too large for int64.
    is_number = isinstance(label, (int, float)) and -(2**53) < label < 2**53
    if not is_number or (kind == "an integer" and label != int(label)):
        raise ValueError(f"label must be {kind} below 2**53, got {repr(label)[:80]}")
    # The Hub marks unknown labels by -1. Scores of regression tasks are never negative.
    return bool(label >= 0)


def _sample(
    n_rows: int, groups: list[Any] | None, limit: int, random: np.random.RandomState
) -> NDArray[np.intp]:
    """Draw at most `limit` rows, with whole groups in random order."""
    units = np.arange(n_rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    order = random.permutation(units.max(initial=-1) + 1)
    sizes = np.bincount(units)[order]
    kept = order[np.cumsum(sizes) <= limit]
    rank = np.full(len(order), -1)
    rank[kept] = np.arange(len(kept))
    rows = np.flatnonzero(rank[units] >= 0)
    return rows[np.argsort(rank[units][rows], kind="stable")]
