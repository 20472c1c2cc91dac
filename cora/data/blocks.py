"""Plain text files by Arrow's reader, block by block: what it can read exactly as `text.py` says, and nothing else."""

import codecs
import csv
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv

_BLOCK = 1 << 24  # bytes
_STAND_IN = "\x1f"  # stands for a separator of two characters, which Arrow does not know


class Block(NamedTuple):
    """columns: those wanted, as large_string [rows]; lines: where each row begins, int64 [rows], from 1."""

    columns: list[pa.Array]
    lines: np.ndarray


class Odd(Exception):
    """The file holds what Arrow's reader reads otherwise, or not at all, or what is wrong."""


def blocks(
    file: Path, end: str, separator: str, quoted: bool, has_header: bool, width: int, wanted: Sequence[int]
) -> Iterator[Block]:
    """The rows of a UTF-8 file in blocks: of each row of `width` fields the `wanted` ones.

    Raises Odd, at whatever block it is met, for all that is not plain: rows of another width, quotes that do not stand
    around whole fields, other line ends than `end`, zero bytes, and all that is wrong.
    """
    if end == "\r":
        raise Odd
    before = 0  # lines of earlier blocks
    for raw in _pieces(file, end, quoted):
        _check(raw, end)
        raw = raw.replace(b"\r\n", b"\n")
        array = np.frombuffer(raw, np.uint8)
        breaks = np.flatnonzero(array == ord("\n"))
        ends = _row_ends(array, breaks, separator) if quoted and b'"' in raw else breaks
        starts = np.append(0, ends[:-1] + 1)
        if int((ends - starts).max()) > csv.field_size_limit() or (end == "\r\n" and len(ends) < len(breaks)):
            raise Odd
        rows = np.flatnonzero(ends > starts)  # what is left out are empty lines
        if has_header and len(rows):
            raw, rows, has_header = raw[ends[rows[0]] + 1 :], rows[1:], False
        if raw.startswith(codecs.BOM_UTF8):
            raise Odd  # Arrow leaves the mark out wherever what it reads begins
        if len(rows):
            columns = _columns(raw, separator, quoted, width, wanted)
            if len(columns[0]) != len(rows):
                raise Odd
            yield Block(columns, before + 1 + np.searchsorted(breaks, starts[rows]))
        before += len(breaks)


def _pieces(file: Path, end: str, quoted: bool) -> Iterator[bytes]:
    """The file in pieces of whole rows, with a line end behind the last."""
    with gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb") as data:
        rest = data.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
        while more := data.read(_BLOCK):
            rest += more
            cut = rest.rfind(b"\n") + 1
            if cut and not (quoted and rest.count(b'"', 0, cut) % 2):
                yield rest[:cut]
                rest = rest[cut:]
            elif len(rest) > 4 * _BLOCK:
                raise Odd
        if rest:
            yield rest + end.encode()


def _check(raw: bytes, end: str) -> None:
    returns, both = raw.count(b"\r"), raw.count(b"\r\n")
    if b"\0" in raw or returns != both or (end == "\r\n" and raw.count(b"\n") != both) or (end == "\n" and both):
        raise Odd
    try:
        raw.decode()
    except UnicodeDecodeError:
        raise Odd from None


def _row_ends(array: np.ndarray, breaks: np.ndarray, separator: str) -> np.ndarray:
    """The line ends outside quotes, where all quotes stand around a whole field or are doubled within such."""
    quotes = np.flatnonzero(array == ord('"'))
    if len(quotes) % 2:
        raise Odd
    opening, closing = quotes[::2], quotes[1::2]
    borders = np.array([ord(separator), ord("\n")])
    inner = np.append(closing[:-1] + 1 == opening[1:], False)  # a closing and an opening one: one doubled, in a field
    starts_field = (opening == 0) | np.isin(array[opening - 1], borders) | np.append(False, inner[:-1])
    if not (starts_field & (inner | np.isin(array[closing + 1], borders))).all():
        raise Odd
    return breaks[np.searchsorted(quotes, breaks) % 2 == 0]


def _columns(raw: bytes, separator: str, quoted: bool, width: int, wanted: Sequence[int]) -> list[pa.Array]:
    if len(separator) > 1:
        if _STAND_IN.encode() in raw:
            raise Odd
        raw, separator = raw.replace(separator.encode(), _STAND_IN.encode()), _STAND_IN
    names = [str(place) for place in range(width)]
    chosen = [names[place] for place in wanted]
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(raw),
            read_options=arrow_csv.ReadOptions(column_names=names, block_size=len(raw) + 1),
            parse_options=arrow_csv.ParseOptions(
                delimiter=separator, quote_char='"' if quoted else False, newlines_in_values=quoted
            ),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=chosen, column_types=dict.fromkeys(chosen, pa.large_string()), check_utf8=False
            ),
        )
    except pa.ArrowInvalid:
        raise Odd from None
    return [table[name].combine_chunks() for name in chosen]
