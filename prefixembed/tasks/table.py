"""What is known of the paper's tasks without their data, and how rows of the Hub are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Row = Mapping[str, Any]
# What a row of a task is: its X, its label, and what it is scored together with.
Example = tuple[Any, Any, Any]
Reader = Callable[[Row], Iterable[Example]]

# Where datasets that once came as scripts are kept in a form that no code has to be run for.
CONVERTED = "refs/convert/parquet"


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


def _single(text: str, label: str = "label") -> Reader:
    return lambda row: [(row[text], row[label], None)]


def _pair(first: str, second: str, labels: tuple[int, ...] | None = None) -> Reader:
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


def _info(
    name: str,
    role: str,
    hub: str,
    config: str | None,
    read: Reader,
    description: str,
    objective: str = "classification",
    metrics: tuple[str, ...] = ("accuracy",),
    test: str = "validation",
    revision: str | None = None,
) -> tuple[TaskInfo, Reader]:
    splits = MappingProxyType({"train": "train", "test": test})
    info = TaskInfo(name, role, objective, metrics, hub, config, revision, splits, description)
    return info, read


TASKS: dict[str, tuple[TaskInfo, Reader]] = {
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
              revision=CONVERTED),
        _info("winogrande", "source", "allenai/winogrande", "winogrande_xl", _winogrande,
              "which of two names fills a gap", "multiple_choice", revision=CONVERTED),
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
              "whether the answer to a question on a passage is yes", revision=CONVERTED),
        _info("multirc", "target", _SUPERGLUE, "multirc", _multirc,
              "whether an answer to a question on a passage is right",
              metrics=("f1a", "exact_match"), revision=CONVERTED),
        _info("cosmosqa", "target", "allenai/cosmos_qa", "default", _cosmosqa,
              "which answer to a question on an everyday story is right", "multiple_choice",
              revision=CONVERTED),
        _info("cola", "further", _GLUE, "cola", _single("sentence"),
              "whether a sentence is grammatical", metrics=("matthews", "accuracy")),
        _info("stsb", "further", _GLUE, "stsb", _pair("sentence1", "sentence2"),
              "how alike two sentences are, from 0 to 5", "regression",
              metrics=("pearson", "spearman")),
        _info("sick", "further", "RobZamp/sick", "default",
              _pair("sentence_A", "sentence_B", (1, 0, 2)),
              "whether a sentence follows from another (1), contradicts it (2), or neither (0)",
              test="test", revision=CONVERTED),
    )
}  # fmt: skip
