r"""Measure whether prefixes that were learned on whole texts help or harm vectors of words.

The paper evaluates whole texts only. The two targets here label words:

- ``entities``: whether a word is part of a name, in the passages of ReCoRD;
- ``code``: the role of a name in a line of Python (call, attribute, argument, or other name), in
  files of the standard library.

A head reads the vector of each word. The arguments are those of ``reproduce_paper.py``. Prefixes
and models that it has learned in the same ``--out`` are used again::

    python examples/token_targets.py --data DIR --sources sst2 qnli sick cola stsb \\
        --sentences 600

At the size of the paper::

    python examples/token_targets.py --backbone roberta-large --source-texts 1000000 \\
        --sentences 10000
"""

from __future__ import annotations

import ast
import io
import json
import keyword
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from contradiction import plot
from reproduce_paper import (
    fine_tune,
    learn_prefixes,
    make_head,
    parse,
    read_arguments,
    representations,
)
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_score

from prefixembed import PrefixBank

# Words, their labels, and the source of each sentence. Folds do not split a source.
Sentences = list[tuple[list[str], list[str], str]]


def entity_rows(data: Path | None) -> Iterator[tuple[str, list[str]]]:
    """Yield passages of ReCoRD with the names in them, from a folder or the Hub."""
    if data is None:
        import datasets

        rows = datasets.load_dataset("aps/super_glue", data_dir="record", split="train",
                                     revision="refs/convert/parquet", streaming=True)  # fmt: skip
        yield from ((row["passage"], row["entities"]) for row in rows)
        return
    (path,) = data.glob("record*.train.jsonl")
    for line in path.read_text(encoding="utf-8").splitlines():
        passage = json.loads(line)["passage"]
        text = passage["text"]
        # The end that SuperGLUE gives is inclusive.
        yield text, [text[e["start"] : e["end"] + 1] for e in passage["entities"]]


def entities(data: Path | None, limit: int) -> Sentences:
    """Label each word of a passage by whether it is part of a name."""
    found: Sentences = []
    for text, names in entity_rows(data):
        inside = np.zeros(len(text) + 1, bool)
        for name in set(names):
            for match in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text):
                inside[match.start() : match.end()] = True
        for sentence in re.finditer(r"[^\n]+?(?:[.!?](?=\s)|$)", text, re.MULTILINE):
            words = list(re.finditer(r"\S+", sentence.group()))
            start = sentence.start()
            # The first letter of a word decides, since punctuation is not part of a name.
            firsts = [
                start
                + w.start()
                + (letter.start() if (letter := re.search(r"\w", w.group())) else 0)
                for w in words
            ]
            labels = ["name" if inside[first] else "other" for first in firsts]
            if words:
                found.append(([w.group() for w in words], labels, text[:40]))
        if len(found) >= limit:
            break
    return found[:limit]


def code(data: Path | None, limit: int) -> Sentences:
    """Label each name in lines of Python by its role, and other tokens as "sign"."""
    found: Sentences = []
    for path in sorted(Path(ast.__file__).parent.glob("*.py")):
        try:
            lines = list(tokenize.generate_tokens(io.StringIO(path.read_text()).readline))
        except (SyntaxError, UnicodeDecodeError):
            continue
        words: list[str] = []
        labels: list[str] = []
        depth = 0
        for before, token, after in zip(lines, lines[1:], lines[2:], strict=False):
            depth += {"(": 1, ")": -1}.get(token.string, 0)
            if token.type == tokenize.NEWLINE:
                if "call" in labels and len(words) < 60:
                    found.append((words, labels, path.name))
                words, labels = [], []
            elif token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER):
                words.append(token.string)
                labels.append(role(before, token, after, depth))
    order = np.random.default_rng(0).permutation(len(found))
    return [found[k] for k in order[:limit]]


def role(
    before: tokenize.TokenInfo, token: tokenize.TokenInfo, after: tokenize.TokenInfo, depth: int
) -> str:
    """Return the role of a token in its line."""
    if token.type != tokenize.NAME or keyword.iskeyword(token.string):
        return "sign"
    if after.string == "(":
        return "call"
    if before.string == ".":
        return "attribute"
    return "argument" if after.string == "=" and depth > 0 else "name"


TARGETS: dict[str, Callable[[Path | None, int], Sentences]] = {"entities": entities, "code": code}


def score(bank: PrefixBank, sentences: Sentences) -> list[float]:
    """Return the balanced accuracy of words in four folds that do not split a source."""
    words, tags, sources = zip(*sentences, strict=True)
    vectors = clone(bank).set_params(output="words").transform(list(words))
    labels = np.concatenate(tags)
    groups = np.repeat(sources, [len(sentence) for sentence in words])
    # Signs are easy to recognize, so only the other tokens are scored.
    scored = labels != "sign"
    found = cross_val_score(
        make_head().set_params(logisticregression__C=0.01), vectors[scored], labels[scored],
        groups=groups[scored], cv=GroupKFold(4), scoring="balanced_accuracy",
    )  # fmt: skip
    return [float(value) for value in found]


def main() -> None:
    """Run what is missing, write the table, and plot it."""
    parser = parse(__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=600, help="maximum number per target")
    parser.set_defaults(targets=list(TARGETS))
    args, results = read_arguments(parser)
    tasks = {target: TARGETS[target](args.data, args.sentences) for target in args.targets}
    names: list[str] = []
    collected: list[list[list[float]]] = []
    for seed in args.seeds:
        prefixes = learn_prefixes(args, seed, results)
        tuned = None if args.no_multitask else fine_tune(args, seed, results)
        banks = representations(args, prefixes, tuned)
        names = list(banks)
        for target, sentences in tasks.items():
            for name, bank in banks.items():
                if results.get(seed, f"words of {target}", name) is None:
                    results.keep(score(bank, sentences), seed, f"words of {target}", name)
        collected.append(
            [
                [np.mean(results.get(seed, f"words of {target}", name)) for target in tasks]
                for name in names
            ]
        )
    scores = np.array(collected)  # (seed, representation, target)
    lines = [f"| representation | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    for k, name in enumerate(names):
        lines.append(f"| {name} | {' | '.join(f'{v:.3f}' for v in scores[:, k].mean(axis=0))} |")
    for target, sentences in tasks.items():
        counts = Counter(label for _, labels, _ in sentences for label in labels)
        print(f"{target}: {len(sentences)} sentences, words", dict(sorted(counts.items())))
    (args.out / "token_targets.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    plot(
        names, scores, list(tasks), args.out / "token_targets.png", "balanced accuracy, words of {}"
    )


if __name__ == "__main__":
    main()
