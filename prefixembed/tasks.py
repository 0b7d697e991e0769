"""The tasks of the paper, from the Hub or from a folder, and demo tasks that need neither."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from sklearn.utils import check_random_state

from prefixembed._docstrings import DOCSTRING_TASKS, Task, demo_backbone, load_docstring_task

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

Row = Mapping[str, Any]
# What a row of a task is: its X, its label, and what it is scored together with.
Example = tuple[Any, Any, Any]

# Where datasets that once came as scripts are kept in a form that no code has to be run for.
_CONVERTED = "refs/convert/parquet"


@dataclass(frozen=True)
class TaskInfo:
    """What is known of a task without its data.

    Parameters
    ----------
    name : str
        What :func:`fetch_task` calls it.
    role : {"source", "target", "further"}
        What the paper uses it as; ``"further"`` if it does not.
    objective : str
        Its kind, as :class:`~prefixembed.PrefixEncoder`'s ``objective``.
    metrics : tuple of str
        How the literature scores it, the first one first.
    hub : str
        Dataset on the Hub.
    config : str or None
        Configuration there.
    revision : str or None
        Revision there.
    splits : mapping of str to str
        What ``"train"`` and ``"test"`` are there. Where the labels of a test split are not
        public, the validation split stands in.
    description : str
        What is to be told.
    """

    name: str
    role: str
    objective: str
    metrics: tuple[str, ...]
    hub: str
    config: str | None
    revision: str | None
    splits: Mapping[str, str]
    description: str


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
    groups : ndarray of shape (n_rows,) or None
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


def _single(text: str, label: str = "label") -> Callable[[Row], Iterable[Example]]:
    return lambda row: [(row[text], row[label], None)]


def _pair(
    first: str, second: str, labels: tuple[int, ...] | None = None
) -> Callable[[Row], Iterable[Example]]:
    """Read pairs; `labels` has what each label of the Hub is here."""

    def read(row: Row) -> Iterable[Example]:
        label = row["label"]
        if labels is not None and label >= 0:
            label = labels[label]
        return [((row[first], row[second]), label, None)]

    return read


def _multirc(row: Row) -> Iterable[Example]:
    index = row["idx"]
    group = f"{index['paragraph']}-{index['question']}"
    return [((row["paragraph"], f"{row['question']} {row['answer']}"), row["label"], group)]


def _cosmosqa(row: Row) -> Iterable[Example]:
    choices = [row[f"answer{k}"] for k in range(4)]
    return [((f"{row['context']} {row['question']}", choices), row["label"], None)]


def _winogrande(row: Row) -> Iterable[Example]:
    # The sentence up to the gap is the context, and what follows with either filling a choice.
    before, _, after = row["sentence"].partition("_")
    choices = [row[option] + after for option in ("option1", "option2")]
    return [((before.strip(), choices), int(row["answer"] or 0) - 1, None)]


def _record(row: Row) -> Iterable[Example]:
    """Read ReCoRD as the Hub has it, or with several queries a passage as SuperGLUE's files do."""
    if "qas" not in row:
        yield from _record_query(row["passage"], row["query"], row["entities"], row["answers"])
        return
    text = row["passage"]["text"]
    # SuperGLUE counts the last character in.
    entities = [text[e["start"] : e["end"] + 1] for e in row["passage"]["entities"]]
    for question in row["qas"]:
        answers = [answer["text"] for answer in question.get("answers", [])]
        yield from _record_query(text, question["query"], entities, answers)


def _record_query(
    passage: str, query: str, entities: list[str], answers: list[str]
) -> Iterator[Example]:
    # One choice an entity. Where several are right, the first one stays and the others go.
    right = next((entity for entity in entities if entity in answers), None)
    choices = [e for e in dict.fromkeys(entities) if e == right or e not in answers]
    if right is not None:
        filled = [query.replace("@placeholder", entity) for entity in choices]
        yield (passage, filled), choices.index(right), None


_GLUE, _SUPERGLUE = "nyu-mll/glue", "aps/super_glue"
_Reader = Callable[[Row], Iterable[Example]]


def _info(
    name: str,
    role: str,
    hub: str,
    config: str | None,
    read: _Reader,
    description: str,
    objective: str = "classification",
    metrics: tuple[str, ...] = ("accuracy",),
    test: str = "validation",
    revision: str | None = None,
) -> tuple[TaskInfo, _Reader]:
    splits = MappingProxyType({"train": "train", "test": test})
    info = TaskInfo(name, role, objective, metrics, hub, config, revision, splits, description)
    return info, read


_TASKS: dict[str, tuple[TaskInfo, _Reader]] = {
    info.name: (info, read)
    for info, read in (
        _info("mnli", "source", _GLUE, "mnli", _pair("premise", "hypothesis"),
              "whether a sentence follows from another, contradicts it, or neither",
              test="validation_matched"),
        _info("qnli", "source", _GLUE, "qnli", _pair("question", "sentence", (1, 0)),
              "whether a sentence answers a question"),
        _info("qqp", "source", _GLUE, "qqp", _pair("question1", "question2"),
              "whether two questions ask the same", metrics=("accuracy", "f1")),
        _info("sst2", "source", _GLUE, "sst2", _single("sentence"),
              "whether a phrase of a film review is positive"),
        _info("yelp2", "source", "fancyzhx/yelp_polarity", None, _single("text"),
              "whether a review of a business is positive", test="test"),
        _info("record", "source", _SUPERGLUE, "record", _record,
              "which entity of a news passage fills a gap", "multiple_choice",
              revision=_CONVERTED),
        _info("winogrande", "source", "allenai/winogrande", "winogrande_xl", _winogrande,
              "which of two names fills a gap", "multiple_choice", revision=_CONVERTED),
        _info("rte", "target", _GLUE, "rte", _pair("sentence1", "sentence2", (1, 0)),
              "whether a sentence follows from a passage"),
        _info("mrpc", "target", _GLUE, "mrpc", _pair("sentence1", "sentence2"),
              "whether two sentences mean the same", metrics=("accuracy", "f1"), test="test"),
        _info("cr", "target", "SetFit/SentEval-CR", None, _single("text"),
              "whether a sentence of a product review is positive", test="test"),
        _info("mr", "target", "cornell-movie-review-data/rotten_tomatoes", None, _single("text"),
              "whether a sentence of a film review is positive", test="test"),
        _info("mpqa", "target", "rahulsikder223/SentEval-MPQA", None, _single("sentence"),
              "whether a phrase of the news is positive", test="test"),
        _info("boolq", "target", _SUPERGLUE, "boolq", _pair("question", "passage"),
              "whether the answer to a question on a passage is yes", revision=_CONVERTED),
        _info("multirc", "target", _SUPERGLUE, "multirc", _multirc,
              "whether an answer to a question on a passage is right",
              metrics=("f1a", "exact_match"), revision=_CONVERTED),
        _info("cosmosqa", "target", "allenai/cosmos_qa", "default", _cosmosqa,
              "which answer to a question on an everyday story is right", "multiple_choice",
              revision=_CONVERTED),
        _info("cola", "further", _GLUE, "cola", _single("sentence"),
              "whether a sentence is grammatical", metrics=("matthews", "accuracy")),
        _info("stsb", "further", _GLUE, "stsb", _pair("sentence1", "sentence2"),
              "how alike two sentences are, from 0 to 5", "regression",
              metrics=("pearson", "spearman")),
        _info("sick", "further", "RobZamp/sick", "default",
              _pair("sentence_A", "sentence_B", (1, 0, 2)),
              "whether a sentence follows from another (1), contradicts it (2), or neither (0)",
              test="test", revision=_CONVERTED),
    )
}  # fmt: skip


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
        for info, _ in _TASKS.values()
        if role in (None, info.role) and objective in (None, info.objective)
    ]


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
    if name not in _TASKS:
        raise ValueError(f"name must be one of {', '.join(_TASKS)}, got {name!r}")
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    info, read = _TASKS[name]
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
        where = "data_dir" if info.revision == _CONVERTED else "name"
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


def _folder_examples(info: TaskInfo, split: str, folder: Path, read: _Reader) -> Iterator[Example]:
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
            except (ValueError, KeyError, TypeError) as error:
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
    is_number = isinstance(label, Real) and math.isfinite(label)
    if not is_number or (whole and label != int(label)):
        raise ValueError(f"label must be a{' whole' if whole else ''} number, got {label!r}")
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
