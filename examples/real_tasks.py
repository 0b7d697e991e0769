"""Run the quickstart on real benchmark tasks.

Source tasks are SST-2 (sentiment), QNLI (whether a passage answers a question) and SICK
(inference). Target tasks are customer reviews (CR) and paraphrases (MRPC), with few labels each::

    python examples/real_tasks.py --data DIR

The folder holds ``<task>.train.jsonl`` and ``<task>.test.jsonl`` with the fields ``text``,
``text_b`` (for pairs) and ``label``. Without ``--data``, the script uses the environment variable
PREFIXEMBED_DATA or the folder ``shared/data`` next to the checkout.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from quickstart import compare, learn, save_and_reload, update

from prefixembed import PrefixBank
from prefixembed.tasks import Task, demo_backbone, fetch_task

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def load_task(folder: Path, name: str, n_train: int, n_test: int) -> Task:
    """Load a task with a random part of each split."""
    train, test = (
        fetch_task(name, split, limit, folder, random_state=0)
        for split, limit in (("train", n_train), ("test", n_test))
    )
    return Task(name, train.X, train.y, test.X, test.y)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--source-texts", type=int, default=2000)
    parser.add_argument("--target-texts", type=int, default=300)
    args = parser.parse_args()
    folder = args.data or Path(os.environ.get("PREFIXEMBED_DATA", DEFAULT_DATA))
    if not folder.is_dir():
        sys.exit(f"folder {str(folder)!r} does not exist: set --data")

    params = {"backbone": demo_backbone(), "max_length": 128}
    sources = {
        name: load_task(folder, name, args.source_texts, 800) for name in ("sst2", "qnli", "sick")
    }
    bank = PrefixBank({name: learn(task, **params) for name, task in sources.items()})
    for name in ("cr", "mrpc"):
        target = load_task(folder, name, args.target_texts, 1000)
        compare(bank, target)
    save_and_reload(bank, target.X_test)
    update(bank, "qnli", lambda: learn(sources["qnli"], **params, max_steps=60))


if __name__ == "__main__":
    main()
