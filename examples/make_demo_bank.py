"""Learn the prefixes that come with the library, and write them with a card.

Five source tasks are learned on the demo backbone at default settings, in float32. On the same
kind of processor, and with the same versions of torch and transformers, the same call writes files
with the same digests::

    python examples/make_demo_bank.py --data DIR

`DIR` holds a JSONL file per task and split, as :func:`prefixembed.tasks.fetch_task` reads them.
Without it, the datasets are fetched from the Hub.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from prefixembed import Prefix, PrefixBank, PrefixEncoder
from prefixembed.tasks import demo_backbone, fetch_task
from prefixembed.tasks.ready import FOLDER

# Where each corpus comes from, and the terms that its authors give.
TASKS = {
    "sst2": ("Stanford Sentiment Treebank (Socher et al., 2013), as in GLUE", "none stated"),
    "qnli": ("SQuAD questions (Rajpurkar et al., 2016), as in GLUE", "CC BY-SA 4.0"),
    "sick": ("SICK (Marelli et al., 2014)", "CC BY-NC-SA 3.0"),
    "cola": ("CoLA (Warstadt et al., 2018), as in GLUE", "none stated"),
    "stsb": ("STS Benchmark (Cer et al., 2017), as in GLUE", "none stated for the whole"),
}
NAME = "all-MiniLM-L6-v2"


def learn(name: str, args: argparse.Namespace) -> tuple[Prefix, float, int]:
    """Return the prefix of a task, its score on test texts, and the number of these."""
    train = fetch_task(name, "train", args.texts, args.data, 0)
    test = fetch_task(name, "test", 1500, args.data, 0)
    encoder = PrefixEncoder(
        demo_backbone(),
        objective=train.info.objective,
        max_length=128,
        on_truncate="ignore",
        dtype="float32",
        device="cpu",
        random_state=0,
        cache=None,
    ).fit(train.X, train.y)
    # Neither the folder of this machine nor the time it took belongs to what was learned.
    facts = {k: v for k, v in encoder.prefix_.training.items() if k != "seconds"}
    prefix = replace(encoder.prefix_, backbone=NAME, training=facts)
    return prefix, encoder.score(test.X, test.y), len(test.y)


def card(rows: list[tuple[str, Prefix, float, int]], texts: int) -> str:
    """Return the card of the bank, in Markdown."""
    lines = [
        "# Prefixes that come with prefixembed",
        "",
        f"Five source tasks on the frozen backbone {NAME}, each learned by itself by",
        f"`examples/make_demo_bank.py` on at most {texts:,} training texts: default parameters,",
        "`max_length=128`, float32, `random_state=0`. The library's licence covers these files.",
        "The texts are not among them; look at the terms of the data before commercial use.",
        "",
        "| prefix | data | terms of the data | texts | steps | test score | kB | digest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, prefix, score, n_test in rows:
        source, terms = TASKS[name]
        facts = prefix.facts()
        metric = "R²" if prefix.objective == "regression" else "accuracy"
        lines.append(
            f"| {name} | {source} | {terms} | {facts['training']['n_texts']:,} | "
            f"{facts['training']['n_steps']} | {metric} {score:.3f} on {n_test:,} | "
            f"{facts['n_bytes'] / 1000:.0f} | {prefix.digest[:16]} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Learn all prefixes, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: the Hub)")
    parser.add_argument("--texts", type=int, default=2000, help="at most so many per task")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    rows = []
    for name in TASKS:
        rows.append((name, *learn(name, args)))
        print(f"{name}: {rows[-1][2]:.3f}, {rows[-1][1].digest}", flush=True)
    PrefixBank({name: prefix for name, prefix, *_ in rows}).save(args.out)
    (args.out / ".bank.lock").unlink(missing_ok=True)
    (args.out / "README.md").write_text(card(rows, args.texts), encoding="utf-8")


if __name__ == "__main__":
    main()
