"""A corpus as shards: where rows come from, and files that tell what is in them."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefixembed.prefix import write_atomically

if TYPE_CHECKING:
    from datasets import Features

_READERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
_OURS = b"prefixembed"
DIGESTS = ".digests"  # hidden from what reads all files of a folder


@dataclass(frozen=True)
class Source:
    """Where the rows of a corpus come from.

    Parameters
    ----------
    dataset : datasets.Dataset or datasets.IterableDataset
        In Arrow's format.
    n_rows : int or None
        None where that is not known ahead.
    """

    dataset: Any
    n_rows: int | None

    @property
    def features(self) -> Features | None:
        """Types of the columns, where they are known."""
        return self.dataset.features

    def tables(self, n_rows: int) -> Iterator[pa.Table]:
        """Give the rows in order, so many at a time, with one schema."""
        schema = None
        for k, table in enumerate(self._tables(n_rows)):
            schema = table.schema if schema is None else schema
            yield _in_schema(table, schema, f"rows {k * n_rows} to {k * n_rows + len(table) - 1}")

    def _tables(self, n_rows: int) -> Iterator[pa.Table]:
        if self.n_rows is None:
            yield from self.dataset.iter(batch_size=n_rows)
            return
        for start in range(0, self.n_rows, n_rows):
            yield self.dataset[start : min(start + n_rows, self.n_rows)]


def _in_schema(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """Give rows the types of those before, which streams of no known types need not have."""
    if table.schema.equals(schema):
        return table
    if table.column_names != schema.names:
        raise ValueError(f"{where} have columns {table.column_names}, those before {schema.names}")
    columns = []
    for wanted, found in zip(schema, table.schema, strict=True):
        try:
            columns.append(table.column(wanted.name).cast(wanted.type))
        except pa.ArrowException as error:
            raise ValueError(
                f"column {wanted.name!r} is {found.type} in {where} and {wanted.type} before: say "
                "what it is by the features of the dataset"
            ) from error
    return pa.table(columns, schema=schema)


def open_source(dataset: Any) -> Source:
    """Open what a user calls a corpus.

    Parameters
    ----------
    dataset : datasets.Dataset, datasets.IterableDataset, str, path-like or list of them
        Rows, or files or patterns of files that hold them.

    Returns
    -------
    source : Source
        Nothing has been read yet of files.

    Raises
    ------
    FileNotFoundError
        If a pattern names no file.
    ValueError
        If it is something else, or files are of several kinds or of none that is known.
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
            "dataset must be a Dataset or IterableDataset of datasets, or paths of files, got "
            f"{type(dataset).__name__}"
        )
    files = [name for pattern in patterns for name in _matches(os.fspath(pattern))]
    kinds = {Path(name).suffix for name in files}
    if len(kinds) != 1 or not kinds <= _READERS.keys():
        raise ValueError(f"files must be of one kind of {sorted(_READERS)}, got {sorted(kinds)}")
    reader = _READERS[kinds.pop()]
    rows = load_dataset(reader, data_files=files, split="train", streaming=True)
    return Source(rows.with_format("arrow"), None)


def _matches(pattern: str) -> list[str]:
    found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
    if not found:
        raise FileNotFoundError(f"dataset: there is no file {pattern!r}")
    return found


def pack(table: pa.Table) -> bytes:
    """Make bytes of rows: what every engine sends, a view of a larger table included."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def unpack(packed: bytes) -> pa.Table:
    """Make rows of what :func:`pack` gave."""
    with pa.ipc.open_stream(packed) as stream:
        return stream.read_all()


def shard_name(index: int, file_format: str) -> str:
    """Name the file of a shard, so that names sort as shards do."""
    return f"part-{index:06d}.{file_format}"


def _write_arrow(table: pa.Table, file: str) -> None:
    with pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def _read_arrow_schema(file: str) -> pa.Schema:
    with pa.ipc.open_stream(file) as stream:
        return stream.schema


# By file format: how a table is written, and its schema read.
FORMATS: dict[str, tuple[Callable[[pa.Table, str], None], Callable[[str], pa.Schema]]] = {
    "parquet": (pq.write_table, pq.read_schema),
    "arrow": (_write_arrow, _read_arrow_schema),
}


def digest_texts(texts: Sequence[Any]) -> str:
    """Tell texts from others, whatever they are."""
    content = json.dumps(texts, default=repr).encode()
    return hashlib.blake2b(content, digest_size=20).hexdigest()


def write_shard(
    path: Path,
    table: pa.Table,
    features: Features | None,
    name: str,
    vectors: NDArray[Any],
    counts: NDArray[np.intp] | None,
    facts: dict[str, Any],
) -> None:
    """Write rows with their vectors; a kill leaves no shard, or a whole one.

    Parameters
    ----------
    path : Path
        Of the file; its suffix says which format. Its digest goes beside it, last.
    table : pyarrow.Table
        The rows.
    features : datasets.Features or None
        Types of their columns. None for those that Arrow knows.
    name : str
        Of the column of vectors.
    vectors : ndarray of shape (n_vectors, width)
        Row by row.
    counts : ndarray of shape (n_rows,), default=None
        How many vectors each row has. None for one each.
    facts : dict
        What :func:`read_facts` is to give.
    """
    from datasets import Features, List, Value

    width = vectors.shape[1]
    column: pa.Array = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width)
    feature: Any = List(Value(str(vectors.dtype)), length=width)
    if counts is not None:
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        column, feature = pa.ListArray.from_arrays(pa.array(offsets), column), List(feature)
    known = Features.from_arrow_schema(table.schema) if features is None else features
    described = Features({**known, name: feature}).arrow_schema.metadata
    table = table.append_column(pa.field(name, column.type), column)
    table = table.replace_schema_metadata({**described, _OURS: json.dumps(facts)})
    digests = []

    def write(file: str) -> None:
        FORMATS[path.suffix[1:]][0](table, file)
        digests.append(_digest_file(file))

    write_atomically(path, write)
    write_atomically(_digest_path(path), lambda file: Path(file).write_text(digests[0]))


def look_at(path: Path) -> str:
    """Tell whether a shard is there, having read it whole.

    Parameters
    ----------
    path : Path
        Of the file.

    Returns
    -------
    state : {"missing", "damaged", "whole"}
        Of a file without a digest, writing was not finished: it is missing.
    """
    try:
        expected = _digest_path(path).read_bytes()
        found = _digest_file(path)
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "damaged"
    return "whole" if found.encode() == expected else "damaged"


def read_facts(path: Path) -> dict[str, Any]:
    """Give what :func:`write_shard` was told to keep in a shard that is whole."""
    schema = FORMATS[path.suffix[1:]][1](os.fspath(path))
    facts: dict[str, Any] = json.loads(schema.metadata[_OURS])
    return facts


def _digest_path(path: Path) -> Path:
    return path.parent / DIGESTS / f"{path.name}.sha256"


def _digest_file(path: str | Path) -> str:
    # Of the whole file: Parquet's own checksums leave its footer out, which names the columns.
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
