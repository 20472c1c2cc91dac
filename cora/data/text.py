"""Text files of rows with separated fields, with or without quotes, plain or gzipped."""

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from cora.data.blocks import Odd, blocks
from cora.data.problems import listed, problem, shown_path
from cora.data.rows import Lines, Rows, coded, coded_chunk

_CHUNK = 100_000  # rows that stand as Python objects at a time

Choose = Callable[[Path, Sequence[str]], Mapping[str, str]]  # file, its columns → our name: column, of those in use


def read_separated(
    file: Path,
    choose: Choose,
    separator: str,
    quoted: bool,
    header: Sequence[str] | None = None,
    encoding: str = "utf-8",
) -> Rows:
    """The chosen columns as text, every cell exactly as it stands: a film called "NA" is not a missing value.

    quoted: fields may stand in double quotes, as RFC 4180 says, and then hold separators, line ends and doubled quotes;
    else nothing but separators and line ends has a meaning. Lines end as the first one does (in \\n, \\r\\n or,
    of a file with a header, \\r). header: the columns of a file that does not name them. Empty lines are passed over.

    Raises ValueError, naming file and line, for a row with another number of fields than the header, an open quote, a
    line that ends in another way, and bytes that are not of the encoding; for an empty file and columns of one name.
    """
    with reading(file):
        # Without a header a lone \r in the first row may be a part of a value, and files from old Macs have headers.
        end = _line_end(file, encoding, ("\r\n", "\n", "\r") if header is None else ("\r\n", "\n"))
        fields = (_quoted_rows if quoted else _bare_rows)(file, separator, encoding, end)
        has_header = header is None
        if header is None:
            _, header = next(fields, (0, None))
            if header is None:
                raise problem(file, "the file is empty")
        names = choose(file, header)
        wanted = [list(header).index(name) for name in names.values()]
        if encoding == "utf-8":
            try:
                collected = Collected(names)
                for block in blocks(file, end, separator, quoted, has_header, len(header), wanted):
                    collected.add(block.lines, block.columns)
                return collected.rows(file)
            except Odd:
                pass  # read again, row by row, which tells what is wrong and where
        chosen = itemgetter(*wanted)
        collected = Collected(names)
        rows = _of_width(file, fields, len(header))
        while part := list(islice(rows, _CHUNK)):
            columns = zip(*(chosen(row) for _, row in part), strict=True)
            collected.add([line for line, _ in part], [pa.array(cells, pa.large_string()) for cells in columns])
        return collected.rows(file)


def _of_width(file: Path, rows: Iterator[tuple[int, list[str]]], width: int) -> Iterator[tuple[int, list[str]]]:
    for line, row in rows:
        if len(row) != width:
            raise problem(
                f"{shown_path(file)}, line {line}",
                f"expected {width} fields, as in the header, got {len(row)}"
                f"{' (a separator at the end of the row)' if row[-1] == '' else ''}: {listed(row)}",
            )
        yield line, row


def is_utf8(file: Path) -> bool:
    try:
        with open_text(file, "utf-8", None) as text:
            return all(True for _ in text)
    except UnicodeDecodeError:
        return False


class Collected:
    """Blocks of text on their way into columns: of numbers where all of it is whole numbers, else of codes."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._lines = Lines()
        self._chunks: list[list[pa.Array]] = [[] for _ in names]

    def add(self, lines: Sequence[int] | np.ndarray, columns: Sequence[pa.Array]) -> None:
        """Of some rows their lines and, by our names, their cells, large_string [rows] each."""
        self._lines.add(lines)
        for name, chunks, cells in zip(self._names, self._chunks, columns, strict=True):
            is_whole = not chunks or pa.types.is_integer(chunks[-1].type)
            whole = _as_whole(cells) if is_whole else None
            if whole is not None:
                chunks.append(whole)
            else:
                # Times hardly repeat: codes would be more than what they stand for.
                chunks.append(cells if name == "timestamp" else cells.dictionary_encode())

    def rows(self, file: Path) -> Rows:
        lines = self._lines.joined()
        columns = {name: _one_kind(chunks) for name, chunks in zip(self._names, self._chunks, strict=True)}
        return Rows(pa.table(columns), self._names, (file,), (len(lines),), (lines,), is_text=True)


def _as_whole(cells: pa.Array) -> pa.Array | None:
    """int64 of which each reads as the text does: "007" is a name."""
    try:
        whole = cells.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    return whole if whole.cast(pa.large_string()).equals(cells) else None


def _one_kind(chunks: list[pa.Array]) -> pa.ChunkedArray:
    if not chunks:
        return pa.chunked_array([], pa.large_string())
    if pa.types.is_integer(chunks[-1].type):
        return pa.chunked_array(chunks)
    texts = [chunk.cast(pa.large_string()) if pa.types.is_integer(chunk.type) else chunk for chunk in chunks]
    if pa.types.is_dictionary(texts[-1].type):
        return coded(pa.chunked_array([coded_chunk(one) for one in texts]))
    return pa.chunked_array(texts)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Errors of decoding and of unpacking as errors about the file."""
    try:
        try:
            yield
        except UnicodeDecodeError:
            line, byte = _undecodable(file)
            raise problem(
                f"{shown_path(file)}, line {line}", f"expected UTF-8 text, got the byte {byte:#04x}"
            ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise problem(file, f"cannot be unpacked by gzip ({error})") from None


def open_text(file: Path, encoding: str, newline: str | None) -> IO[str]:
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding  # a byte order mark is no part of the first name
    if file.name.lower().endswith(".gz"):
        return gzip.open(file, "rt", encoding=encoding, newline=newline)
    return file.open(encoding=encoding, newline=newline)


def _undecodable(file: Path) -> tuple[int, int]:
    """The line and the value of the first byte that is not UTF-8."""
    with gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return number, line[error.start]
    raise ValueError(f"{file}: all of it is UTF-8")


def _line_end(file: Path, encoding: str, ends: Sequence[str]) -> str:
    """What the first line ends in."""
    with open_text(file, encoding, "" if "\r" in ends else "\n") as text:
        first = text.readline()
    return next((end for end in ends if first.endswith(end)), "\n")


def _bare_rows(file: Path, separator: str, encoding: str, end: str) -> Iterator[tuple[int, list[str]]]:
    with open_text(file, encoding, end) as text:
        for number, line in enumerate(text, 1):
            if line := line.removesuffix(end):
                yield number, line.split(separator)


def _quoted_rows(file: Path, separator: str, encoding: str, end: str) -> Iterator[tuple[int, list[str]]]:
    with open_text(file, encoding, end) as text:
        ended = ""

        def lines() -> Iterator[str]:
            nonlocal ended
            for line in text:
                ended = line
                yield line

        reader = csv.reader(lines(), delimiter=separator, strict=True)
        while True:
            start = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise problem(
                    f"{shown_path(file)}, line {start}", f"cannot be read as fields, some in quotes ({error})"
                ) from None
            if row is None:
                return
            if row and ended.removesuffix(end).endswith(("\r", "\n")):
                # The reader would take it for a part of the line's end, and it may be one of the last field.
                raise problem(
                    f"{shown_path(file)}, line {reader.line_num}",
                    f"expected it to end in {end!r}, as line 1, got {ended[-3:]!r}",
                )
            if row:
                yield start, row
