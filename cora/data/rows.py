"""Rows of one or several files as the files hold them, each row with its place for errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cora.data.problems import problem, shown, shown_path


@dataclass(frozen=True)
class Rows:
    """table: the columns in use, by our names, of one kind in all files (see `kind`) and of one type for each kind
    (see `plain`). names: our name → the file's own. files, sizes: where the rows are from, and how many are from each.
    lines: the line of each row in a text file, [rows of the file]; None where rows are counted from 1.
    is_text: whether all is written as text; a column is then int64 where that says what is written, digit for digit.
    """

    table: pa.Table
    names: Mapping[str, str]
    files: tuple[Path, ...]
    sizes: tuple[int, ...]
    lines: tuple[Sequence[int] | np.ndarray | None, ...]
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
        return problem(self.place(row), f"{column} {expected}, got {shown(self.cell(row, column))}")

    def cell(self, row: int, column: str) -> Any:
        """What is there, as it is written."""
        cell = self.column(column)[row]
        try:
            value = cell.as_py()
        except (KeyError, OverflowError, ValueError):  # a time zone or a year that Python does not have
            value = cell.value
        return str(value) if self.is_text and isinstance(value, int) else value


class Lines:
    """The lines of rows that come in pieces: their first and last alone where there are no others between."""

    def __init__(self) -> None:
        self._pieces: list[Sequence[int] | np.ndarray] = []

    def add(self, lines: Sequence[int] | np.ndarray) -> None:
        """The lines of the next rows, at least one, in ascending order."""
        first, last = int(lines[0]), int(lines[-1])
        if last - first < len(lines):
            lines = range(first, last + 1)
            if self._pieces and isinstance(before := self._pieces[-1], range) and before.stop == first:
                lines = range(self._pieces.pop()[0], last + 1)
        self._pieces.append(lines)

    def joined(self) -> Sequence[int] | np.ndarray:
        """The line of each row."""
        return self._pieces[0] if len(self._pieces) == 1 else np.concatenate([np.empty(0, np.int64), *self._pieces])


class Source(NamedTuple):
    """What a format reads. events: user_id, item_id, timestamp, rating or label or both, and title where there are no
    `items`. parts: the part of a split that each file of the events is, or "" for all. items: item_id and title,
    and release_year and genres where they have those."""

    events: Rows
    parts: tuple[str, ...]
    items: Rows | None = None


def kind(column: pa.ChunkedArray | pa.Field) -> str:
    """text, integer, float, decimal, bool, time, null, or the name of a type that no column of ours can have."""
    return next((name for name, is_one in _KINDS.items() if is_one(column.type)), str(column.type))


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same values in the one type that we use for their kind, without runs and extension types.

    text: large_string, in a dictionary (see `coded`) if it came in one; integer: int64, but uint64 where a value is
    beyond; float: float64; time: as it is in UTC, a date being its first moment; decimals that are whole: integer.
    """
    while True:
        found = column.type
        if isinstance(found, pa.BaseExtensionType):
            column = pa.chunked_array([chunk.storage for chunk in column.chunks], found.storage_type)
        elif pa.types.is_dictionary(found) and kind(column) == "text":
            return coded(column)
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


def coded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of text as one chunk of codes into a dictionary of its distinct values: 4 bytes a row, however long."""
    chunks = [coded_chunk(chunk) for chunk in column.chunks]
    whole = pa.chunked_array(chunks, _CODED).unify_dictionaries().combine_chunks()
    return pa.chunked_array([whole], _CODED)


def coded_chunk(chunk: pa.Array) -> pa.DictionaryArray:
    """The same of a piece of such a column."""
    if pa.types.is_dictionary(chunk.type):
        values = chunk.dictionary.cast(pa.large_string())
        if not values.null_count and len(values.unique()) == len(values):
            return pa.DictionaryArray.from_arrays(chunk.indices.cast(pa.int32()), values)
        chunk = chunk.cast(chunk.type.value_type)
    return chunk.cast(pa.large_string()).dictionary_encode()


def distinct(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """The distinct values of a column of text, and the place of each row's among them, int32 [rows], -1 for none."""
    (found,) = coded(column).chunks
    return found.dictionary, found.indices.fill_null(-1).to_numpy()


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
        found = _one_type(name, [(rows.column(name), rows.files[0]) for rows in all_rows], first.is_text)
        columns[name] = pa.chunked_array([chunk for one in found for chunk in one.chunks], found[0].type)
    return Rows(
        pa.table(columns),
        first.names,
        tuple(file for rows in all_rows for file in rows.files),
        tuple(size for rows in all_rows for size in rows.sizes),
        tuple(lines for rows in all_rows for lines in rows.lines),
        all(rows.is_text for rows in all_rows),
    )


def _one_type(name: str, columns: list[tuple[pa.ChunkedArray, Path]], is_text: bool) -> list[pa.ChunkedArray]:
    """The columns of that name in one type; those without any value take the type of the others."""
    typed = [one for one in columns if kind(one[0]) != "null"] or columns[:1]
    target, known = typed[0][0].type, typed[0][1]
    kinds = {kind(one) for one, _ in typed}
    if kinds == {"time"}:
        target = pa.timestamp(max((one.type.unit for one, _ in typed), key=("s", "ms", "us", "ns").index))
    if kinds == {"text"} or (is_text and kinds == {"text", "integer"}):
        return [coded(one.cast(pa.large_string()) if kind(one) == "integer" else one) for one, _ in columns]
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


_TEXT = ("string", "large_string", "string_view")
_CODED = pa.dictionary(pa.int32(), pa.large_string())
_KINDS = {
    "text": lambda found: str(found.value_type if pa.types.is_dictionary(found) else found) in _TEXT,
    "integer": pa.types.is_integer,
    "float": pa.types.is_floating,
    "decimal": pa.types.is_decimal,
    "bool": pa.types.is_boolean,
    "time": lambda found: pa.types.is_timestamp(found) or pa.types.is_date(found),
    "null": pa.types.is_null,
}
