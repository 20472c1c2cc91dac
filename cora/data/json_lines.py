"""Files with one JSON object a line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cora.data.problems import clipped, listed, problem, shown, shown_path
from cora.data.rows import Rows, coded, plain
from cora.data.text import Choose, open_text, reading

_TYPES = {str: pa.large_string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), None: pa.null()}


def read_json_lines(file: Path, choose: Choose) -> Rows:
    """The chosen columns of a file with one JSON object a line; what an object does not have is missing.

    Raises ValueError, naming file and line, for what is no JSON object, for a name twice in it, and for values of one
    column that are not all text, all numbers or all true and false.
    """
    with reading(file):
        found = list(objects(file))
        if not found:
            raise problem(file, "the file is empty")
        names = choose(file, list(dict.fromkeys(name for _, one in found for name in one)))
        lines = np.array([line for line, _ in found])
        table = {}
        for ours, name in names.items():
            values = [one.get(name) for _, one in found]
            table[ours] = _column(file, ours, values, lines)
        return Rows(pa.table(table), names, (file,), (len(found),), (lines,), False)


def objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file one by one, each with its line, from 1; what is none raises as in `read_json_lines`."""
    with open_text(file, "utf-8", "\n") as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            place = f"{shown_path(file)}, line {number}"
            try:
                found = json.loads(line, object_pairs_hook=_without_repeats)
            except (ValueError, RecursionError) as error:
                raise problem(place, f"expected one JSON object a line ({clipped(str(error), 100)})") from None
            if not isinstance(found, dict):
                raise problem(place, f"expected one JSON object a line, got {shown(found)}")
            yield number, found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a name stands in it twice: {listed(name for name, _ in pairs)}")
    return found


def _column(file: Path, name: str, values: list[Any], lines: np.ndarray) -> pa.ChunkedArray:
    """The values in the one type that they have. An integer beside floats is a float."""

    def wrong(row: int, expected: str) -> ValueError:
        return problem(f"{shown_path(file)}, line {lines[row]}", f"{name} must be {expected}, got {shown(values[row])}")

    known = [row for row, value in enumerate(values) if value is not None]
    first = type(values[known[0]]) if known else None
    if first in (int, float) and any(type(values[row]) is float for row in known):
        first = float
    for row in known:
        value = values[row]
        if not isinstance(value, str | bool | int | float):
            raise wrong(row, "text or a number")
        if type(value) is not first and not (first is float and type(value) is int):
            raise wrong(row, f"of one type in all lines, as in line {lines[known[0]]}")
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise wrong(row, "within int64")
        if type(value) is int and first is float and abs(value) > 2**53:
            raise wrong(row, "at most 2^53 where others have fractions")
        if type(value) is str and not is_unicode(value):
            raise wrong(row, "Unicode text")
    column = plain(pa.chunked_array([pa.array(values, _TYPES[first])]))
    return column if name == "timestamp" or first is not str else coded(column)


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
