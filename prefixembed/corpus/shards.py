"""The files of an embedded corpus: how a shard is written, checked and read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefixembed._files.atomic import write_atomically

if TYPE_CHECKING:
    from datasets import Features

# Folder of the shards' digests. It is hidden from programs that read all files of a folder.
DIGEST_FOLDER = ".digests"
_METADATA_KEY = b"prefixembed"


@dataclass(frozen=True)
class ShardFacts:
    """What a shard records about itself, in the metadata of its file."""

    texts: str  # digest of its texts
    n_truncated: int  # number of its texts that were cut


@dataclass(frozen=True)
class FileFormat:
    """How files of one format are written and read."""

    write: Callable[[pa.Table, str], None]  # to a path
    read_schema: Callable[[str], pa.Schema]  # of the file at a path


def _write_arrow(table: pa.Table, path: str) -> None:
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)


def _read_arrow_schema(path: str) -> pa.Schema:
    with pa.ipc.open_stream(path) as stream:
        return stream.schema


FILE_FORMATS = {
    "parquet": FileFormat(pq.write_table, pq.read_schema),
    "arrow": FileFormat(_write_arrow, _read_arrow_schema),
}


def shard_name(index: int, file_format: str) -> str:
    """Return the file name of a shard. Names sort in the order of the shards."""
    return f"part-{index:06d}.{file_format}"


def digest_texts(texts: Sequence[Any]) -> str:
    """Return a digest of texts, pairs or sentences in words."""
    content = json.dumps(texts, default=repr).encode()
    return hashlib.blake2b(content, digest_size=20).hexdigest()


def write_shard(
    path: Path,
    table: pa.Table,
    features: Features | None,
    vector_column: str,
    vectors: NDArray[Any],  # (vector, feature), in the order of the rows
    counts: NDArray[np.intp] | None,  # vectors of each row; None for one each
    facts: ShardFacts,
) -> None:
    """Write rows and their vectors to a file, whole or not at all.

    The suffix of `path` is the file format. The digest of the file is written last. `features` are
    the types of the columns; None derives them from the schema of the table.
    """
    from datasets import Features, List, Value

    width = vectors.shape[1]
    column: pa.Array = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width)
    feature: Any = List(Value(str(vectors.dtype)), length=width)
    if counts is not None:
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        column, feature = pa.ListArray.from_arrays(pa.array(offsets), column), List(feature)
    known = Features.from_arrow_schema(table.schema) if features is None else features
    metadata = Features({**known, vector_column: feature}).arrow_schema.metadata
    table = table.append_column(pa.field(vector_column, column.type), column)
    table = table.replace_schema_metadata({**metadata, _METADATA_KEY: json.dumps(asdict(facts))})
    digests = []

    def write(temporary: str) -> None:
        FILE_FORMATS[path.suffix[1:]].write(table, temporary)
        digests.append(_digest_file(temporary))

    write_atomically(path, write)
    write_atomically(_digest_path(path), lambda temporary: Path(temporary).write_text(digests[0]))


def shard_state(path: Path) -> str:
    """Read all of a shard's file, and return "missing", "damaged" or "intact".

    A file without a digest is missing: it was interrupted while it was written.
    """
    try:
        expected = _digest_path(path).read_bytes()
        found = _digest_file(path)
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "damaged"
    return "intact" if found.encode() == expected else "damaged"


def read_facts(path: Path) -> ShardFacts:
    """Return what an intact shard records about itself."""
    schema = FILE_FORMATS[path.suffix[1:]].read_schema(os.fspath(path))
    return ShardFacts(**json.loads(schema.metadata[_METADATA_KEY]))


def arrow_copy(path: Path) -> Path:
    """Return the path of an Arrow file, in the cache of the datasets library, of a Parquet file.

    It is written if the cache has none of the file as it is now.
    """
    from datasets import config

    facts = path.stat()
    key = repr((os.path.realpath(path), facts.st_size, facts.st_mtime_ns)).encode()
    name = hashlib.blake2b(key, digest_size=20).hexdigest()
    copy = Path(config.HF_DATASETS_CACHE) / "prefixembed" / f"{name}.arrow"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "rb") as file:  # a path is not left to readers that expand it
            table = pq.read_table(file)
        write_atomically(copy, lambda temporary: _write_arrow(table, temporary))
    return copy


def _digest_path(path: Path) -> Path:
    return path.parent / DIGEST_FOLDER / f"{path.name}.sha256"


def _digest_file(path: str | Path) -> str:
    # Parquet's own checksums do not cover its footer, which holds the names of the columns.
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
