"""Measure the speed of embed_dataset, and its memory by number of rows.

python examples/benchmarks/corpus.py --rows 4000 --lengths 2000 8000 32000
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import alternate, machine, read_texts, table
from datasets import Dataset, IterableDataset

from prefixembed import PrefixBank, embed_dataset
from prefixembed.tasks import demo_backbone

SHARD = 1000


def make_rows(data: Path | None, n_rows: int) -> Iterator[dict[str, Any]]:
    """Yield rows of distinct short texts."""
    texts = read_texts(data, "short", 1000)
    for k in range(n_rows):
        yield {"text": f"{texts[k % len(texts)]} {k}"}


def embed(data: Path | None, n_rows: int) -> None:
    """Embed a stream of rows."""
    source = IterableDataset.from_generator(lambda: make_rows(data, n_rows))
    with tempfile.TemporaryDirectory() as folder:
        bank = PrefixBank({}, backbone=demo_backbone())
        embed_dataset(bank, source, "text", folder, shard_size=SHARD)


def peak_megabytes(data: Path | None, n_rows: int, results: Any) -> None:
    """Put the peak memory of a process that embeds `n_rows` rows into a queue."""
    embed(data, n_rows)
    results.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def speed(data: Path | None, n_rows: int) -> None:
    """Print the speed of each side; the sides take turns."""
    rows = list(make_rows(data, n_rows))
    dataset = Dataset.from_list(rows)
    texts = [row["text"] for row in rows]
    bank = PrefixBank({}, backbone=demo_backbone(), cache=None)

    def add(batch: dict[str, Any]) -> dict[str, Any]:
        return {"vector": bank.transform(batch["text"])}

    def by_map() -> None:
        dataset.map(add, batched=True, batch_size=SHARD, load_from_cache_file=False)

    def by_embed_dataset() -> None:
        with tempfile.TemporaryDirectory() as folder:
            embed_dataset(bank, dataset, "text", folder, shard_size=SHARD)

    sides = {
        "transform, in memory": lambda: bank.transform(texts),
        "Dataset.map with transform": by_map,
        "embed_dataset": by_embed_dataset,
    }
    seconds = {name: np.median(times) for name, times in alternate(sides, 3).items()}
    base = seconds["transform, in memory"]
    cells = [(name, f"{n_rows / s:.0f}", f"{base / s:.2f}") for name, s in seconds.items()]
    print(table(("side", "texts per second", "ratio"), cells))


def main() -> None:
    """Measure speed and memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: docstrings)")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2000, 8000, 32000])
    args = parser.parse_args()
    print(machine())
    speed(args.data, args.rows)
    cells = []
    context = multiprocessing.get_context("spawn")
    for n_rows in args.lengths:
        results = context.Queue()
        process = context.Process(target=peak_megabytes, args=(args.data, n_rows, results))
        process.start()
        cells.append((f"{n_rows:,}", f"{results.get():.0f}"))
        process.join()
    print()
    print(table(("rows", "peak memory, MB"), cells))


if __name__ == "__main__":
    main()
