"""Where the rows of a corpus come from: datasets, streams and files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from datasets import Features

# Loader of the datasets library for each file suffix.
_LOADERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


@dataclass(frozen=True)
class Source:
    """The rows of a corpus, in order."""

    dataset: Any  # a Dataset or IterableDataset in Arrow format
    n_rows: int | None  # None for a stream, whose length is not known in advance

    @property
    def features(self) -> Features | None:
        """Types of the columns, or None if the stream does not declare them."""
        return self.dataset.features

    def tables(self, size: int) -> Iterator[tuple[int, pa.Table]]:
        """Yield tables of up to `size` rows, each with the number of its first row.

        All tables have the schema of the first one.
        """
        schema, start = None, 0
        for table in self._batches(size):
            schema = table.schema if schema is None else schema
            yield start, _cast(table, schema, f"rows {start} to {start + len(table) - 1}")
            start += len(table)

    def _batches(self, size: int) -> Iterator[pa.Table]:
        if self.n_rows is None:
            yield from self.dataset.iter(batch_size=size)
            return
        for start in range(0, self.n_rows, size):
            yield self.dataset[start : min(start + size, self.n_rows)]


def open_source(dataset: Any) -> Source:
    """Open the `dataset` parameter of :func:`embed_dataset`; files are opened as a stream.

    Raise FileNotFoundError if a pattern matches no file, and ValueError if `dataset` is something
    else, or if the files have several suffixes or an unknown one.
    """
    from datasets import Dataset, IterableDataset, load_dataset

    if isinstance(dataset, Dataset):
        return Source(dataset.with_format("arrow"), len(dataset))
    if isinstance(dataset, IterableDataset):
        return Source(dataset.with_format("arrow"), None)
    patterns = [dataset] if isinstance(dataset, (str, os.PathLike)) else dataset
    if not isinstance(patterns, list) or not all(
        isinstance(pattern, (str, os.PathLike)) for pattern in patterns
    ):
        raise ValueError(
            "dataset must be a Dataset or an IterableDataset of the datasets library, or paths of "
            f"files, got {type(dataset).__name__}"
        )
    files = [name for pattern in patterns for name in _matching_files(os.fspath(pattern))]
    suffixes = {Path(name).suffix for name in files}
    if len(suffixes) != 1 or not suffixes <= _LOADERS.keys():
        raise ValueError(
            f"files of a dataset must have one suffix of {sorted(_LOADERS)}, got {sorted(suffixes)}"
        )
    loader = _LOADERS[suffixes.pop()]
    rows = load_dataset(loader, data_files=files, split="train", streaming=True)
    return Source(rows.with_format("arrow"), None)


def _matching_files(pattern: str) -> list[str]:
    # A path that exists is taken literally, even if it contains brackets.
    found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
    if not found:
        raise FileNotFoundError(f"dataset: no file matches {pattern!r}")
    return found


def _cast(table: pa.Table, schema: pa.Schema, rows: str) -> pa.Table:
    """Cast a table to the schema of earlier rows: a stream without types may change them."""
    if table.schema.equals(schema):
        return table
    if table.column_names != schema.names:
        raise ValueError(
            f"{rows} have columns {table.column_names}, but earlier rows have {schema.names}"
        )
    columns = []
    for wanted, found in zip(schema, table.schema, strict=True):
        try:
            columns.append(table.column(wanted.name).cast(wanted.type))
        except pa.ArrowException as error:
            raise ValueError(
                f"column {wanted.name!r} has type {found.type} in {rows}, but {wanted.type} in "
                "earlier rows: set the features of the dataset to declare its type"
            ) from error
    return pa.table(columns, schema=schema)
