"""Tables of rows: their common types, and their lengths."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa


def common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Return a type that holds the values of two types, or None if there is none."""
    if first == second:
        return first
    schemas = [pa.schema([("", kind)]) for kind in (first, second)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def conform(table: pa.Table, schema: pa.Schema, rows: str, hint: str = "") -> pa.Table:
    """Return a table with the columns of a schema; missing ones are null.

    Raise ValueError, which calls the table `rows`, if it has more columns, or values that do not
    fit.
    """
    if table.schema.equals(schema):
        return table
    if more := [name for name in table.column_names if name not in schema.names]:
        raise ValueError(f"{rows} have columns {more}, but earlier rows have {schema.names}")
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        column = table.column(field.name)
        try:
            columns.append(column.cast(field.type))
        except pa.ArrowException as error:
            raise ValueError(
                f"column {field.name!r} has type {column.type} in {rows}, but {field.type} in "
                f"earlier rows{hint}"
            ) from error
    return pa.table(columns, schema=schema)


def regroup(tables: Iterator[pa.Table], size: int) -> Iterator[list[pa.Table]]:
    """Group tables, or parts of them, so that each group but the last one has `size` rows."""
    group: list[pa.Table] = []
    room = size
    for table in tables:
        while len(table) >= room:
            yield [*group, table.slice(0, room)]
            table, group, room = table.slice(room), [], size
        if len(table):
            group.append(table)
            room -= len(table)
    if group:
        yield group
