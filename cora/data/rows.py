"""Rows of one or several files as the files hold them, each row with its place for errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cora.data.problems import problem, shown, shown_path


@dataclass(frozen=True)
class Rows:
    """table: the columns in use, by our names: text for text files, else the types of the file, which are those of one
    kind in all files (see `kind`). names: our name → the file's own.
    files, sizes: where the rows are from, and how many are from each. lines: the line of each row in a text file,
    int64 [rows of the file]; None where rows are counted from 1. is_text: whether a number was written as text.
    """

    table: pa.Table
    names: Mapping[str, str]
    files: tuple[Path, ...]
    sizes: tuple[int, ...]
    lines: tuple[np.ndarray | None, ...]
    is_text: bool

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __contains__(self, column: str) -> bool:
        return column in self.names

    def column(self, name: str) -> pa.ChunkedArray:
        return self.table[name]

    def place(self, row: int) -> str:
        """Where a row is: `file, line 7` of text, the first being 1, or `file, row 7`, the header not counted."""
        for file, size, lines in zip(self.files, self.sizes, self.lines, strict=True):
            if row < size:
                return f"{shown_path(file)}, " + (f"row {row + 1}" if lines is None else f"line {lines[row]}")
            row -= size
        raise IndexError(row)

    def wrong(self, row: int, column: str, expected: str) -> ValueError:
        """The error for one cell: its place, its column by our name, what was expected and what is there."""
        cell = self.column(column)[row]
        try:
            value = cell.as_py()
        except (KeyError, OverflowError, ValueError):  # a time zone or a year that Python does not have
            value = cell.value
        return problem(self.place(row), f"{column} {expected}, got {shown(value)}")


class Source(NamedTuple):
    """What a format reads. events: user_id, item_id, timestamp, rating or label or both, and title where there are no
    `items`. parts: the part of a split that each file of the events is, or "" for all. items: item_id and title,
    and release_year where they have one."""

    events: Rows
    parts: tuple[str, ...]
    items: Rows | None = None


def kind(column: pa.ChunkedArray) -> str:
    """text, integer, float, decimal, bool, time, null, or the name of a type that no column of ours can have."""
    return next((name for name, is_one in _KINDS.items() if is_one(column.type)), str(column.type))


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same values in the one type that we use for their kind, without dictionaries, runs and extension types.

    text: large_string; integer: int64, but uint64 where a value is beyond; float: float64; time: as it is in UTC, a
    date being its first moment; decimals that are whole: integer.
    """
    while True:
        found = column.type
        if isinstance(found, pa.BaseExtensionType):
            column = pa.chunked_array([chunk.storage for chunk in column.chunks], found.storage_type)
        elif pa.types.is_dictionary(found):
            column = column.cast(found.value_type)
        elif pa.types.is_run_end_encoded(found):
            column = pc.run_end_decode(column)
        else:
            break
    if kind(column) == "text":
        return column.cast(pa.large_string())
    if kind(column) == "float":
        return column.cast(pa.float64())
    if kind(column) == "integer" or (kind(column) == "decimal" and found.scale <= 0):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:  # beyond int64
            return column
    if pa.types.is_date(found):
        return column.cast(pa.timestamp("s" if pa.types.is_date32(found) else "ms"))
    if kind(column) == "time":
        return column.cast(pa.int64()).cast(pa.timestamp(found.unit))
    return column


def together(all_rows: Sequence[Rows]) -> Rows:
    """The rows of several files as one. Raises ValueError where their columns are not the same or not of one kind."""
    first = all_rows[0]
    columns: dict[str, pa.ChunkedArray] = {}
    for rows in all_rows[1:]:
        if rows.names != first.names:
            odd = sorted(set(rows.names.items()) ^ set(first.names.items()))
            raise problem(
                rows.files[0],
                f"expected the columns of {first.files[0].name}, {sorted(first.names.values())}, but it differs in "
                f"{sorted({name for _, name in odd})}",
            )
    for name in first.names:
        found = _one_type(name, [(rows.column(name), rows.files[0]) for rows in all_rows])
        columns[name] = pa.chunked_array([chunk for one in found for chunk in one.chunks], found[0].type)
    return Rows(
        pa.table(columns),
        first.names,
        tuple(file for rows in all_rows for file in rows.files),
        tuple(size for rows in all_rows for size in rows.sizes),
        tuple(lines for rows in all_rows for lines in rows.lines),
        all(rows.is_text for rows in all_rows),
    )


def _one_type(name: str, columns: list[tuple[pa.ChunkedArray, Path]]) -> list[pa.ChunkedArray]:
    """The columns of that name in one type; those without any value take the type of the others."""
    typed = [one for one in columns if kind(one[0]) != "null"] or columns[:1]
    target, known = typed[0][0].type, typed[0][1]
    if all(kind(one) == "time" for one, _ in typed):
        target = pa.timestamp(max((one.type.unit for one, _ in typed), key=("s", "ms", "us", "ns").index))
    cast = []
    for one, file in columns:
        both_times = kind(one) == "time" and pa.types.is_timestamp(target)
        if not (one.type == target or both_times or kind(one) == "null"):
            raise problem(file, f"{name} is {kind(one)}, but {known.name} beside it has {target} there")
        try:
            cast.append(one.cast(target))
        except pa.ArrowInvalid as error:
            raise problem(file, f"{name} cannot stand beside that of {known.name}: {error}") from None
    return cast


_KINDS = {
    "text": lambda found: str(found) in ("string", "large_string", "string_view"),
    "integer": pa.types.is_integer,
    "float": pa.types.is_floating,
    "decimal": pa.types.is_decimal,
    "bool": pa.types.is_boolean,
    "time": lambda found: pa.types.is_timestamp(found) or pa.types.is_date(found),
    "null": pa.types.is_null,
}
