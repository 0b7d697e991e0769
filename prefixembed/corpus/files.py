"""Files of rows: which ones a path or a pattern names, and how each kind is read."""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import itertools
import json
import os
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefixembed._embed.texts import show
from prefixembed.corpus.columns import TextColumns, to_array
from prefixembed.corpus.tables import common_type

Row = dict[str, Any]

_BLOCK = 1_000  # rows that are read at a time
_MAX_KEYS = 200  # of a column of JSON that gets a type; keys may be names or dates without end
_CSV_LIMIT = threading.Lock()  # held while the limit of the csv module is raised


@dataclass(frozen=True)
class FileKind:
    """How files of one kind are read."""

    suffixes: tuple[str, ...]
    # Types of the columns of the file at a path, or None if it has no rows.
    schema: Callable[[str, TextColumns], pa.Schema | None]
    # Tables of its rows, of any length. A schema says which types are wanted, where it matters.
    tables: Callable[[str, TextColumns, pa.Schema], Iterator[pa.Table]]
    mixed: pa.DataType | None = None  # type of a column whose values have no common type


def find_files(paths: list[str]) -> tuple[FileKind, list[str]]:
    """Return the files that paths and patterns name, and the one kind that they are of.

    A path that exists means itself. Any other is a pattern, whose files come in the order of their
    names. Raise FileNotFoundError if nothing matches, and ValueError if a path is a folder, or if
    the files are of several kinds or of one that cannot be read.
    """
    files = [file for path in paths for file in _matching_files(path)]
    kinds = [_kind_of(file) for file in files]
    if not kinds:
        raise ValueError("dataset must not be an empty list")
    for file, kind in zip(files, kinds, strict=True):
        if kind is not kinds[0]:
            raise ValueError(
                f"files of a dataset must be of one kind, got {files[0]!r} and {file!r}"
            )
    return kinds[0], files


def _matching_files(path: str) -> list[str]:
    if os.path.exists(path):
        return [path]
    found = [name for name in sorted(glob.glob(path, recursive=True)) if not os.path.isdir(name)]
    if not found:
        raise FileNotFoundError(f"dataset: no file matches {path!r}")
    return found


def _kind_of(path: str) -> FileKind:
    suffixes = [suffix for kind in KINDS for suffix in kind.suffixes]
    if os.path.isdir(path):
        pattern = os.path.join(glob.escape(path), f"*{suffixes[0]}")
        raise ValueError(
            f"dataset must not be a folder, got {path!r}: name its files by a pattern such as "
            f"{pattern!r}; files with {', '.join(suffixes)} are read"
        )
    for kind in KINDS:
        if path.lower().endswith(kind.suffixes):
            return kind
    raise ValueError(
        f"files of a dataset must have one of the suffixes {', '.join(suffixes)}, got {path!r}"
    )


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """Open a file, which may be compressed. Raise ValueError with its name if it is damaged."""
    opener: Any = gzip.open if path.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path!r} cannot be read: {error}") from error


def _parquet_schema(path: str, text: TextColumns) -> pa.Schema | None:
    from datasets import Features

    with _opened_parquet(path) as file:
        if file.metadata.num_rows == 0:
            return None
        schema = file.schema_arrow
    for field in _check_names(schema, path):
        try:  # the datasets library does not know all types
            Features.from_arrow_schema(pa.schema([field]))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"column {field.name!r} of {path!r} cannot be read: {error}"
            ) from error
    return Features.from_arrow_schema(schema).arrow_schema


def _parquet_tables(path: str, text: TextColumns, schema: pa.Schema) -> Iterator[pa.Table]:
    with _opened_parquet(path) as file:
        for batch in file.iter_batches(_BLOCK):
            yield pa.Table.from_batches([batch])


@contextmanager
def _opened_parquet(path: str) -> Iterator[pq.ParquetFile]:
    with _opened(path) as file:
        try:
            yield pq.ParquetFile(file, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path!r} cannot be read: {error}") from error


def _csv_schema(path: str, text: TextColumns) -> pa.Schema | None:
    rows = list(itertools.islice(_csv_rows(path), 2))
    if len(rows) < 2:
        return None
    # CSV has no types: what looks like a number may be a code such as 007.
    return _schema([(name, pa.string()) for name in rows[0]], path)


def _csv_tables(path: str, text: TextColumns, schema: pa.Schema) -> Iterator[pa.Table]:
    rows = _csv_rows(path)
    header, start = next(rows), 0
    while block := list(itertools.islice(rows, _BLOCK)):
        columns = zip(header, zip(*block, strict=True), strict=True)
        yield pa.table(
            {
                name: to_array(list(values), pa.string(), f"{path!r}[{name!r}]", start)
                for name, values in columns
            }
        )
        start += len(block)


def _csv_rows(path: str) -> Iterator[list[str]]:
    """Yield the header and the rows of a CSV file, all of one length."""
    width = 0
    with _opened(path) as file:
        # What is not UTF-8 becomes surrogates, which no array takes: the error names their row.
        lines = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(lines, strict=True)
        while True:
            try:
                row = _next_row(reader)
            except csv.Error as error:
                raise ValueError(
                    f"line {reader.line_num} of {path!r} is not CSV: {error}"
                ) from None
            if row is None:
                return
            width = width or len(row)
            if row and len(row) != width:
                raise ValueError(
                    f"line {reader.line_num} of {path!r} has {len(row)} values, but its header has "
                    f"{width}"
                )
            if row:  # not an empty line
                yield row


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    # The csv module limits the length of all values in the process, to 131,072 by default.
    with _CSV_LIMIT:
        limit = csv.field_size_limit(2**31 - 1)
        try:
            return next(reader, None)
        finally:
            csv.field_size_limit(limit)


def _json_schema(path: str, text: TextColumns) -> pa.Schema | None:
    types: dict[str, pa.DataType] = {}
    rows, n_rows = _json_rows(path), 0
    while block := list(itertools.islice(rows, _BLOCK)):
        n_rows += len(block)
        for name in dict.fromkeys(itertools.chain.from_iterable(block)):
            if name in text.names:
                types[name] = text.type
            elif (known := types.get(name, pa.null())) != pa.json_():
                found = _json_type([row.get(name) for row in block])
                types[name] = common_type(known, found) or pa.json_()
                if len(_inner_fields(types[name])) > _MAX_KEYS:
                    types[name] = pa.json_()
    if not n_rows:
        return None
    for name, kind in types.items():
        inner = [kind, *(field.type for field in _inner_fields(kind))]
        if any(pa.types.is_struct(part) and part.num_fields == 0 for part in inner):
            types[name] = pa.json_()  # Parquet does not store objects without keys
    return _schema(types.items(), path)


def _json_type(values: list[Any]) -> pa.DataType:
    """Return the type of values, or that of JSON if they have none in common."""
    try:
        return pa.array(values).type
    except (ValueError, TypeError, OverflowError):  # which Arrow's own errors are, too
        return pa.json_()


def _json_tables(path: str, text: TextColumns, schema: pa.Schema) -> Iterator[pa.Table]:
    rows, start = _json_rows(path), 0
    while block := list(itertools.islice(rows, _BLOCK)):
        columns = {}
        for field in schema:
            values = [row.get(field.name) for row in block]
            if field.name in text.names:
                columns[field.name] = text.to_array(values, field.name, repr(path), start)
            else:
                columns[field.name] = _json_array(values, field, path, start)
        yield pa.table(columns)
        start += len(block)


def _json_array(values: list[Any], field: pa.Field, path: str, start: int) -> pa.Array:
    try:
        if field.type == pa.json_():
            encoded = [None if value is None else _encoded(value) for value in values]
            return pa.ExtensionArray.from_storage(field.type, pa.array(encoded, pa.string()))
        return pa.array(values, field.type)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"column {field.name!r} of {path!r} cannot be read as {field.type} in rows {start} to "
            f"{start + len(values) - 1}: {error}"
        ) from error


def _encoded(value: Any) -> str:
    """Return a value as JSON; raise ValueError if the datasets library cannot decode it."""
    from datasets import Json

    encoded = json.dumps(value, ensure_ascii=False, allow_nan=False)
    Json().decode_example(encoded)
    return encoded


def _json_rows(path: str) -> Iterator[Row]:
    """Yield the objects of a file that has one on each line, or one list of them."""
    is_first = True
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else line.strip()
            if not line:
                continue
            if is_first and line.startswith(b"["):
                rows = _parsed(line + b"\n" + file.read(), repr(path))
                for row, value in enumerate(rows):
                    yield _checked_row(value, f"row {row} of {path!r}")
                return
            is_first = False
            where = f"line {number} of {path!r}"
            yield _checked_row(_parsed(line, where), where)


def _parsed(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def _checked_row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a JSON object, got {show(value)}")
    return value


def _check_names(schema: pa.Schema, path: str) -> pa.Schema:
    """Return the schema of a file, or raise ValueError if names in it cannot be told apart."""
    for name, count in Counter(schema.names).items():
        if count > 1:
            raise ValueError(f"{path!r} has several columns {name!r}")
    for field in schema:
        if any("\0" in part.name for part in [field, *_inner_fields(field.type)]):
            # Where the datasets library makes types of names, they end there.
            raise ValueError(f"column {field.name!r} of {path!r} has a NUL in a name")
    return schema


def _inner_fields(kind: pa.DataType) -> list[pa.Field]:
    """Return the fields within a type, however deep it is."""
    found, kinds = [], [kind]
    while kinds:
        kind = kinds.pop()
        fields = [kind.field(k) for k in range(kind.num_fields)]
        found += fields
        kinds += [field.type for field in fields]
    return found


def _schema(types: Iterable[tuple[str, pa.DataType]], path: str) -> pa.Schema:
    """Return the schema of a file; raise ValueError if its names cannot be stored."""
    types = list(types)
    to_array([name for name, _ in types], pa.string(), f"names of columns of {path!r}", 0)
    return _check_names(pa.schema(types), path)


KINDS = (
    FileKind((".parquet",), _parquet_schema, _parquet_tables),
    FileKind((".csv", ".csv.gz"), _csv_schema, _csv_tables),
    FileKind(
        (".json", ".jsonl", ".json.gz", ".jsonl.gz"), _json_schema, _json_tables, mixed=pa.json_()
    ),
)
