"""Embed Parquet files with Ray Data: each actor holds one backbone and a whole bank.

python examples/ray_data.py BANK 'texts/*.parquet' text embedded
python examples/ray_data.py BANK 'texts/*.parquet' text embedded --actors 8 --gpus 1

BANK is a folder that ``PrefixBank.save`` wrote and that all machines see, or a repository on the
Hub. Inside a Ray cluster, that cluster is used; otherwise, this machine. Ray must be installed::

    pip install 'prefixembed[ray]'
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import ray

from prefixembed import PrefixBank


class Embed:
    """Add a column of vectors to batches; each actor holds one of these."""

    def __init__(self, bank: PrefixBank, column: str) -> None:
        self.bank, self.column = bank, column

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embed a batch of rows."""
        return {**batch, "vector": self.bank.transform(batch[self.column])}


def embed(
    rows: ray.data.Dataset, bank: PrefixBank, column: str, actors: int = 1, gpus: float = 0
) -> ray.data.Dataset:
    """Return the rows with a column of vectors, which is computed when it is read.

    Batches should hold many texts, since texts are sorted by length within a batch.
    """
    return rows.map_batches(
        Embed,
        fn_constructor_args=(bank, column),
        batch_size=4096,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=gpus or None,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Embed the files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bank")
    parser.add_argument("files")
    parser.add_argument("column")
    parser.add_argument("out")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="per actor")
    parser.add_argument("--backbone", help="where it is here, if the bank names a folder")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args(argv)
    # Most corpora hold each text once: a cache would only grow.
    where = {"backbone": args.backbone} if args.backbone else {}
    bank = PrefixBank.from_pretrained(args.bank, cache=None, dtype=args.dtype, **where)
    rows = embed(ray.data.read_parquet(args.files), bank, args.column, args.actors, args.gpus)
    rows.write_parquet(args.out)


if __name__ == "__main__":
    main()
