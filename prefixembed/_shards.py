"""A corpus as shards: where rows come from, and Parquet files that tell what is in them."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefixembed._warnings import warn
from prefixembed.prefix import write_atomically

if TYPE_CHECKING:
    from datasets import Features

_READERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
_OURS = b"prefixembed"


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
        """Give the rows in order, at most so many at a time."""
        if self.n_rows is None:
            yield from self.dataset.iter(batch_size=n_rows)
            return
        for start in range(0, self.n_rows, n_rows):
            yield self.dataset[start : min(start + n_rows, self.n_rows)]


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


def shard_name(index: int) -> str:
    """Name the file of a shard, so that names sort as shards do."""
    return f"part-{index:06d}.parquet"


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
    """Write rows with their vectors; a kill leaves no file, or a whole one.

    Parameters
    ----------
    path : Path
        Of the Parquet file.
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
    write_atomically(path, lambda file: pq.write_table(table, file, write_page_checksum=True))


def read_facts(path: Path) -> dict[str, Any] | None:
    """Tell what is in a shard, having read it whole.

    Parameters
    ----------
    path : Path
        Of the Parquet file.

    Returns
    -------
    facts : dict or None
        None where there is no file, or a damaged one, of which it warns.
    """
    if not path.exists():
        return None
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            facts = json.loads(file.schema_arrow.metadata[_OURS])
            for group in range(file.num_row_groups):
                file.read_row_group(group)
    except (OSError, pa.ArrowException, TypeError, KeyError, ValueError) as error:
        warn(f"{path} is damaged ({str(error)[:80]}) and is made again")
        return None
    return facts
