"""Columns of texts, whatever type a reader has made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefixembed._embed.texts import check_text, check_words


@dataclass(frozen=True)
class TextColumns:
    """The columns of a corpus that are embedded: of texts, or of lists of words.

    What is stored as text is read as it is. A row that is no text is an error with its position.
    """

    names: list[str]
    in_words: bool

    @property
    def type(self) -> pa.DataType:
        """Type of a column that is not stored as a plain one."""
        return pa.list_(pa.string()) if self.in_words else pa.string()

    def plain_type(self, stored: pa.DataType) -> pa.DataType:
        """Return the type that a column of type `stored` is read with."""
        text = stored.value_type if self.in_words and _is_list(stored) else stored
        is_plain = pa.types.is_string(text) or pa.types.is_large_string(text)
        return stored if is_plain and self.in_words == _is_list(stored) else self.type

    def check_names(self, names: list[str], where: str) -> None:
        """Raise ValueError if a column of texts is not among the columns `names` of `where`."""
        for name in self.names:
            if name not in names:
                raise ValueError(f"column must be one of {names} in {where}, got {name!r}")

    def read(self, table: pa.Table, where: str, start: int) -> pa.Table:
        """Return a table whose columns of texts have plain types, or raise ValueError.

        Error messages call the table `where`, and its first row `start`. Of columns with a plain
        type, rows are not looked at: :meth:`check` does that.
        """
        self.check_names(table.column_names, where)
        for name in self.names:
            column = table.column(name)
            if column.type != self.plain_type(column.type):
                values = _decoded(column.to_pylist(), column.type)
                texts = self.to_array(values, name, where, start)
                table = table.set_column(table.column_names.index(name), name, texts)
        return table

    def check(self, table: pa.Table, where: str, start: int) -> None:
        """Raise ValueError if a row that :meth:`read` has returned is not text."""
        for name in self.names:
            column = table.column(name)
            for row in _undecodable(column):
                raise ValueError(f"{where}[{name!r}][{start + row}] is not valid UTF-8")
            words = pc.list_flatten(column) if self.in_words else column
            if column.null_count or words.null_count:
                self.to_array(column.to_pylist(), name, where, start)

    def to_array(self, values: list[Any], name: str, where: str, start: int) -> pa.Array:
        """Return texts or lists of words as an array; raise ValueError if they are not."""
        called = f"{where}[{name!r}]"
        if self.in_words:
            check_words(values, called, start)
        else:
            for position, value in enumerate(values, start):
                check_text(value, f"{called}[{position}]")
        return to_array(values, self.type, called, start)


def to_array(values: list[Any], type_: pa.DataType, name: str, start: int) -> pa.Array:
    """Return strings or lists of strings as an array; raise ValueError if they are not Unicode."""
    try:
        return pa.array(values, type_)
    except UnicodeEncodeError:
        for position, value in enumerate(values, start):
            try:
                pa.array([value], type_)
            except UnicodeEncodeError as error:
                raise ValueError(f"{name}[{position}] is not valid Unicode: {error}") from None
        raise


def _decoded(values: list[Any], stored: pa.DataType) -> list[Any]:
    """Return values of a column that may hold JSON, such as the one of mixed types in datasets."""
    if _is_list(stored):
        return [None if row is None else _decoded(row, stored.value_type) for row in values]
    if isinstance(stored, pa.BaseExtensionType) and stored.extension_name == "arrow.json":
        return [None if value is None else json.loads(value) for value in values]
    return values


def _undecodable(column: pa.ChunkedArray) -> Iterator[int]:
    """Yield the rows whose strings are not UTF-8, which Arrow does not check when it reads."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        for row, value in enumerate(column):
            try:
                value.as_py()
            except UnicodeDecodeError:
                yield row


def _is_list(stored: pa.DataType) -> bool:
    return (
        pa.types.is_list(stored)
        or pa.types.is_large_list(stored)
        or pa.types.is_fixed_size_list(stored)
    )
