"""Facts about the paper's tasks, and readers for the rows of their datasets on the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
# One example of a task: its X, its label, and the group that it is scored with.
Example = tuple[Any, Any, Any]
Reader = Callable[[Row], Iterable[Example]]

# The Hub's branch of Parquet files, for datasets whose main branch needs a script to be run.
CONVERTED = "refs/convert/parquet"


@dataclass(frozen=True)
class TaskInfo:
    """Describe a task without its data.

    Read more in the :doc:`user guide </guide/tasks>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    name : str
        Name of the task, as :func:`fetch_task` takes it.
    role : {"source", "target", "further"}
        What the paper uses the task for. ``"further"`` means that the paper does not use it.
    hub : str
        Name of the dataset on the Hub.
    config : str or None
        Configuration of the dataset.
    description : str
        What the label says.
    objective : str, default="classification"
        Kind of the task, as the ``objective`` of :class:`~prefixembed.PrefixEncoder`.
    metrics : tuple of str, default=("accuracy",)
        Metrics that the literature reports, the main one first.
    revision : str, default=None
        Revision of the dataset. None for the newest one.
    test_split : str, default="validation"
        Split of the dataset that is used as test data. It is the validation split if the labels
        of the test split are not public.
    """

    name: str
    role: str
    hub: str
    config: str | None
    description: str
    objective: str = "classification"
    metrics: tuple[str, ...] = ("accuracy",)
    revision: str | None = None
    test_split: str = "validation"


def _single(text: str, label: str = "label") -> Reader:
    return lambda row: [(row[text], row[label], None)]


def _pair(first: str, second: str, labels: tuple[int, ...] | None = None) -> Reader:
    """Return a reader of pairs; `labels` holds our label for each label of the Hub."""

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
    # The context is the sentence up to the gap. A choice is an option and the rest of the sentence.
    before, _, after = row["sentence"].partition("_")
    choices = [row[option] + after for option in ("option1", "option2")]
    return [((before.strip(), choices), int(row["answer"] or 0) - 1, None)]


def _record(row: Row) -> Iterable[Example]:
    """Read one query, as on the Hub, or several with one passage, as in SuperGLUE's files."""
    if "qas" not in row:
        yield from _record_query(row["passage"], row["query"], row["entities"], row["answers"])
        return
    text = row["passage"]["text"]
    # SuperGLUE's positions include the last character.
    entities = [text[e["start"] : e["end"] + 1] for e in row["passage"]["entities"]]
    for question in row["qas"]:
        answers = [answer["text"] for answer in question.get("answers", [])]
        yield from _record_query(text, question["query"], entities, answers)


def _record_query(
    passage: str, query: str, entities: list[str], answers: list[str]
) -> Iterator[Example]:
    # Each entity is a choice. Of several correct ones, only the first is kept.
    right = next((entity for entity in entities if entity in answers), None)
    choices = [e for e in dict.fromkeys(entities) if e == right or e not in answers]
    if right is not None:
        filled = [query.replace("@placeholder", entity) for entity in choices]
        yield (passage, filled), choices.index(right), None


_GLUE, _SUPERGLUE = "nyu-mll/glue", "aps/super_glue"

TASKS: dict[str, tuple[TaskInfo, Reader]] = {
    info.name: (info, read)
    for info, read in (
        (TaskInfo("mnli", "source", _GLUE, "mnli",
                  "whether a sentence follows from another, contradicts it, or neither",
                  test_split="validation_matched"),
         _pair("premise", "hypothesis")),
        (TaskInfo("qnli", "source", _GLUE, "qnli", "whether a sentence answers a question"),
         _pair("question", "sentence", (1, 0))),
        (TaskInfo("qqp", "source", _GLUE, "qqp", "whether two questions ask the same",
                  metrics=("accuracy", "f1")),
         _pair("question1", "question2")),
        (TaskInfo("sst2", "source", _GLUE, "sst2",
                  "whether a phrase from a film review is positive"),
         _single("sentence")),
        (TaskInfo("yelp2", "source", "fancyzhx/yelp_polarity", None,
                  "whether a review of a business is positive", test_split="test"),
         _single("text")),
        (TaskInfo("record", "source", _SUPERGLUE, "record",
                  "which entity in a news passage fills a gap", "multiple_choice",
                  revision=CONVERTED),
         _record),
        (TaskInfo("winogrande", "source", "allenai/winogrande", "winogrande_xl",
                  "which of two names fills a gap", "multiple_choice", revision=CONVERTED),
         _winogrande),
        (TaskInfo("rte", "target", _GLUE, "rte", "whether a sentence follows from a passage"),
         _pair("sentence1", "sentence2", (1, 0))),
        (TaskInfo("mrpc", "target", _GLUE, "mrpc", "whether two sentences mean the same",
                  metrics=("accuracy", "f1"), test_split="test"),
         _pair("sentence1", "sentence2")),
        (TaskInfo("cr", "target", "SetFit/SentEval-CR", None,
                  "whether a sentence from a product review is positive", test_split="test"),
         _single("text")),
        (TaskInfo("mr", "target", "cornell-movie-review-data/rotten_tomatoes", None,
                  "whether a sentence from a film review is positive", test_split="test"),
         _single("text")),
        (TaskInfo("mpqa", "target", "rahulsikder223/SentEval-MPQA", None,
                  "whether a phrase from the news is positive", test_split="test"),
         _single("sentence")),
        (TaskInfo("boolq", "target", _SUPERGLUE, "boolq",
                  "whether the answer to a question about a passage is yes", revision=CONVERTED),
         _pair("question", "passage")),
        (TaskInfo("multirc", "target", _SUPERGLUE, "multirc",
                  "whether an answer to a question about a passage is correct",
                  metrics=("f1a", "exact_match"), revision=CONVERTED),
         _multirc),
        (TaskInfo("cosmosqa", "target", "allenai/cosmos_qa", "default",
                  "which answer to a question about an everyday story is correct",
                  "multiple_choice", revision=CONVERTED),
         _cosmosqa),
        (TaskInfo("cola", "further", _GLUE, "cola", "whether a sentence is grammatical",
                  metrics=("matthews", "accuracy")),
         _single("sentence")),
        (TaskInfo("stsb", "further", _GLUE, "stsb",
                  "how similar two sentences are, from 0 to 5", "regression",
                  metrics=("pearson", "spearman")),
         _pair("sentence1", "sentence2")),
        (TaskInfo("sick", "further", "RobZamp/sick", "default",
                  "whether a sentence follows from another (1), contradicts it (2), or neither (0)",
                  revision=CONVERTED, test_split="test"),
         _pair("sentence_A", "sentence_B", (1, 0, 2))),
    )
}  # fmt: skip
