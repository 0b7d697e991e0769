"""Embed Parquet files with Ray Data: one actor a device, each with one backbone and all prefixes.

python examples/ray_data.py BANK 'texts/*.parquet' text embedded
python examples/ray_data.py BANK 'texts/*.parquet' text embedded --actors 8 --gpus 1

BANK is a folder that ``PrefixBank.save`` wrote and all machines see, or a repository on the Hub.
Inside a cluster of Ray, that cluster is used, and otherwise this machine. Needs Ray::

    pip install 'prefixembed[ray]'
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import ray

from prefixembed import PrefixBank


class Embed:
    """Adds a column of vectors to batches; one for each actor."""

    def __init__(self, bank: PrefixBank, column: str) -> None:
        self.bank, self.column = bank, column

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embed a batch of rows."""
        return {**batch, "vector": self.bank.transform(batch[self.column])}


def embed(
    rows: ray.data.Dataset, bank: PrefixBank, column: str, actors: int = 1, gpus: float = 0
) -> ray.data.Dataset:
    """Give rows with a column more, made when they are asked for.

    Batches should hold many texts: within one, texts are sorted by length.
    """
    return rows.map_batches(
        Embed,
        fn_constructor_args=(bank, column),
        batch_size=4096,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=gpus or None,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Embed files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bank")
    parser.add_argument("files")
    parser.add_argument("column")
    parser.add_argument("out")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="of an actor")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args(argv)
    # Each text goes by once: a cache would only grow.
    bank = PrefixBank.from_pretrained(args.bank, cache=None, dtype=args.dtype)
    rows = embed(ray.data.read_parquet(args.files), bank, args.column, args.actors, args.gpus)
    rows.write_parquet(args.out)


if __name__ == "__main__":
    main()
