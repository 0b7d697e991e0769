"""Where the rows of a corpus come from: datasets, streams and files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from prefixembed.corpus.columns import TextColumns
from prefixembed.corpus.files import FileKind, find_files
from prefixembed.corpus.tables import common_type, conform, regroup

if TYPE_CHECKING:
    from datasets import Features

_HINT = ": set the features of the dataset to declare its type"


@dataclass(frozen=True)
class Source(ABC):
    """The rows of a corpus, in order."""

    text: TextColumns
    n_rows: int | None  # None if it is not known in advance
    features: Features | None  # types of the columns; None if rows come without types

    @abstractmethod
    def parts(self, size: int) -> Iterator[pa.Table]:
        """Yield tables of up to `size` rows, whose columns of texts have plain types."""

    def tables(self, size: int) -> Iterator[tuple[int, pa.Table]]:
        """Yield tables of `size` rows, and a shorter last one, each with the number of its first.

        All tables have the schema of the first one.
        """
        schema, start = None, 0
        for group in regroup(self.parts(size), size):
            where = f"rows {start} to {start + sum(map(len, group)) - 1}"
            try:
                # One chunk, since each chunk becomes a batch of an Arrow file.
                table = pa.concat_tables(group, promote_options="permissive").combine_chunks()
            except pa.ArrowException as error:
                raise ValueError(f"{where} have no common types: {error}{_HINT}") from error
            schema = table.schema if schema is None else schema
            yield start, conform(table, schema, where, _HINT)
            start += len(table)


@dataclass(frozen=True)
class DatasetSource(Source):
    """The rows of a dataset or of a stream of the datasets library."""

    dataset: Any  # in Arrow format

    def parts(self, size: int) -> Iterator[pa.Table]:
        """See :class:`Source`."""
        start = 0
        for table in self._slices(size):
            yield self.text.read(table, "dataset", start)
            start += len(table)

    def _slices(self, size: int) -> Iterator[pa.Table]:
        if self.n_rows is None:
            # Rows without types come one by one, since the library does not join those that differ.
            yield from self.dataset.iter(1 if self.dataset.features is None else size)
            return
        for start in range(0, self.n_rows, size):
            yield self.dataset[start : min(start + size, self.n_rows)]


@dataclass(frozen=True)
class FileSource(Source):
    """The rows of files."""

    kind: FileKind
    files: list[str]
    schema: pa.Schema  # that of all files together

    def parts(self, size: int) -> Iterator[pa.Table]:
        """See :class:`Source`."""
        for path in self.files:
            start = 0
            for table in self.kind.tables(path, self.text, self.schema):
                plain = self.text.read(table, repr(path), start)
                self.text.check(plain, repr(path), start)
                where = f"rows {start} to {start + len(table) - 1} of {path!r}"
                yield conform(plain, self.schema, where)
                start += len(table)


def open_source(dataset: Any, text: TextColumns) -> Source:
    """Open the `dataset` parameter of :func:`embed_dataset`.

    Raise FileNotFoundError if a pattern matches no file, and ValueError if `dataset` is something
    else, has a format that is not applied, or names files that cannot be read together.
    """
    from datasets import Dataset, IterableDataset

    if isinstance(dataset, Dataset):
        dataset, n_rows = _visible(dataset), len(dataset)
        features = _with_plain_texts(dataset.features, text)
        return DatasetSource(text, n_rows, features, dataset)
    if isinstance(dataset, IterableDataset):
        features = dataset.features and _with_plain_texts(dataset.features, text)
        return DatasetSource(text, None, features, dataset.with_format("arrow"))
    paths = [dataset] if isinstance(dataset, (str, os.PathLike)) else dataset
    if not isinstance(paths, list) or not all(
        isinstance(path, (str, os.PathLike)) for path in paths
    ):
        raise ValueError(
            "dataset must be a Dataset or an IterableDataset of the datasets library, or paths of "
            f"files, got {type(dataset).__name__}"
        )
    return _open_files([os.fsdecode(path) for path in paths], text)


def _visible(dataset: Any) -> Any:
    """Return a dataset in Arrow format, with the columns that its own format shows."""
    shown = dataset.format
    if shown["type"] == "custom":
        raise ValueError(
            "dataset must not have a transform (with_transform, set_transform), which is not "
            "applied: use dataset.map to apply it, or dataset.with_format(None) to drop it"
        )
    if not shown["output_all_columns"]:
        dataset = dataset.select_columns(shown["columns"])
    return dataset.with_format("arrow")


def _open_files(paths: list[str], text: TextColumns) -> FileSource:
    from datasets import Features

    kind, found = find_files(paths)
    types, files = Features(), []
    for path in found:
        schema = kind.schema(path, text)
        if schema is not None:
            text.check_names(schema.names, repr(path))
            new = _with_plain_texts(Features.from_arrow_schema(schema), text)
            types = _merged(types, new, path, kind.mixed)
            files.append(path)
    return FileSource(text, None, types, kind, files, types.arrow_schema.remove_metadata())


def _merged(types: Features, new: Features, path: str, mixed: pa.DataType | None) -> Features:
    """Return the types of columns of files that have `types`, and of one more, at a path."""
    from datasets import Features

    merged = Features({**types, **new})
    for name in types.keys() & new.keys():
        if types[name] != new[name]:
            before, here = (_arrow_type(some, name) for some in (types, new))
            common = common_type(before, here) or mixed
            if common is None:
                raise ValueError(
                    f"column {name!r} has type {here} in {path!r}, but {before} in files before it"
                )
            merged[name] = _feature(common)
    return merged


def _with_plain_texts(features: Features, text: TextColumns) -> Features:
    """Return the types that columns have once :meth:`TextColumns.read` has read them."""
    features = features.copy()
    for name in set(text.names) & features.keys():
        stored = _arrow_type(features, name)
        if text.plain_type(stored) != stored:
            features[name] = _feature(text.plain_type(stored))
    return features


def _arrow_type(features: Features, name: str) -> pa.DataType:
    return features.arrow_schema.field(name).type


def _feature(kind: pa.DataType) -> Any:
    from datasets import Features

    return Features.from_arrow_schema(pa.schema([("", kind)]))[""]
