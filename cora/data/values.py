"""Cells as ids, numbers, labels and titles: the value that is written, or an error with its place."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cora.data.problems import problem
from cora.data.rows import Rows, distinct, kind

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def ids(column: str, all_rows: Sequence[Rows]) -> list[pd.Series]:
    """The ids in a column of one kind in several files: int64, or str.

    Integers are int64; text is str, but int64 where it is from text files, all of it whole numbers within int64 and
    written as those are: in all the files or in none, so that an id is the same in each. No id becomes another one.

    Raises ValueError, naming file, row and value, for a missing id, one beyond int64, one that holds a zero byte or
    begins or ends in a blank, and for ids of another type.
    """
    found = [_checked_ids(column, rows) for rows in all_rows]
    kinds = {kind(one) for one in found}
    if len(kinds) > 1 and all(rows.is_text for rows in all_rows):
        found, kinds = [one.cast(pa.large_string()) for one in found], {"text"}
    if len(kinds) > 1:
        raise problem(all_rows[0].files[0], f"{column} is {kind(found[0])}, but not in {all_rows[-1].files[0].name}")
    if kinds == {"integer"}:
        return [pd.Series(one.to_numpy()) for one in found]
    return [pd.Series(as_objects(*distinct(one)), dtype=object) for one in found]


def as_objects(values: pa.Array, codes: np.ndarray) -> np.ndarray:
    """The values of the rows as Python has them, None for none: one object for each distinct value."""
    return np.array([*values.to_pylist(), None], dtype=object)[codes]


def _checked_ids(column: str, rows: Rows) -> pa.ChunkedArray:
    found = rows.column(column)
    missing = found.is_null().to_numpy()
    if kind(found) == "text":
        values, codes = distinct(found)
        missing = missing | _chosen(pc.equal(values, ""), codes)
    if missing.any():
        raise problem(
            rows.place(int(missing.argmax())), f"{column} is missing in {int(missing.sum())} of {len(rows)} rows"
        )
    if kind(found) == "text":
        odd = _chosen(
            pc.or_(pc.not_equal(pc.utf8_trim_whitespace(values), values), pc.match_substring(values, "\0")), codes
        )
        if odd.any():
            raise rows.wrong(int(odd.argmax()), column, "must not begin or end in a blank or hold a zero byte")
    elif kind(found) != "integer":
        raise rows.wrong(0, column, f"must be integer or text, not {_pandas_name(found.type)}")
    elif found.type != pa.int64():
        raise rows.wrong(
            _first(pc.greater(found, pa.scalar(2**63 - 1, pa.uint64()))), column, "must be within int64 (or text)"
        )
    return found


def _chosen(of_values: pa.Array, codes: np.ndarray) -> np.ndarray:
    """bool [rows]: what is said of each row's value; of a row without one, false."""
    return np.append(of_values.to_numpy(zero_copy_only=False), False)[codes]


def numbers(column: str, rows: Rows, expected: str = "must be a finite number") -> np.ndarray:
    """A column as float64 [rows], from numbers or from text of decimal numbers.

    Raises ValueError, naming file, row and value, for a missing one, one that is not finite, a whole number that no
    float64 is, and for other types.
    """
    found = rows.column(column)
    if found.null_count:
        raise rows.wrong(_first(pc.is_null(found)), column, expected)
    if kind(found) == "float":
        values = found.to_numpy()
        bad = ~np.isfinite(values)
        if bad.any():
            raise rows.wrong(int(bad.argmax()), column, expected)
        return values
    if kind(found) not in ("text", "integer", "decimal"):
        raise rows.wrong(0, column, f"{expected}, not {_pandas_name(found.type)}")
    if found.type == pa.int64():
        whole = found.to_numpy()
        values = whole.astype(np.float64)
        large = np.flatnonzero((whole > 2**53) | (whole < -(2**53)))
        bad = large[[int(values[row]) != int(whole[row]) for row in large]] if len(large) else large
        if len(bad):
            raise rows.wrong(int(bad[0]), column, "must be a number that float64 holds exactly")
        return values
    texts, codes = distinct(found if kind(found) == "text" else found.cast(pa.large_string()))
    of_texts = [_number(text) for text in texts.to_pylist()]
    bad = np.isin(codes, [code for code, value in enumerate(of_texts) if value is None])
    if bad.any():
        row = int(bad.argmax())
        is_whole = texts[codes[row]].as_py().strip().lstrip("+-").isdecimal()
        raise rows.wrong(row, column, "must be a number that float64 holds exactly" if is_whole else expected)
    return np.array(of_texts, dtype=np.float64)[codes]


def _number(text: str) -> float | None:
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    digits = text.lstrip("+-")
    if not np.isfinite(value) or (digits.isdecimal() and len(digits) > 15 and int(value) != int(text)):
        return None
    return value


def labels(rows: Rows) -> np.ndarray:
    """The column `label` as int64 [rows]: 0 and 1, in whatever type, or false and true where that is its type.

    Raises ValueError, naming file, row and value, for all else.
    """
    found = rows.column("label")
    if kind(found) == "bool" and not found.null_count:
        return found.cast(pa.int64()).to_numpy()
    values = numbers("label", rows, "must be 0 or 1")
    bad = (values != 0) & (values != 1)
    if bad.any():
        raise rows.wrong(int(bad.argmax()), "label", "must be 0 or 1")
    return values.astype(np.int64)


def titles(rows: Rows) -> tuple[list[str | None], np.ndarray]:
    """The distinct values in the column `title`, exactly as written, integers as their digits, with None for no title;
    and the place of each row's among them, int32 [rows].

    Raises ValueError, naming file, row and value, for other types.
    """
    found = rows.column("title")
    if kind(found) not in ("text", "integer", "null"):
        raise rows.wrong(0, "title", f"must be text, not {_pandas_name(found.type)}")
    values, codes = distinct(found if kind(found) == "text" else found.cast(pa.large_string()))
    return [*values.to_pylist(), None], np.where(codes < 0, len(values), codes)


def is_visible(title: str | None) -> bool:
    """Whether there is anything in it to be seen."""
    return any(letter != " " and letter.isprintable() for letter in title or "")


def _first(mask: pa.ChunkedArray) -> int:
    return int(pc.index(mask, True).as_py())


def _pandas_name(found: pa.DataType) -> str:
    return {"double": "float64"}.get(str(found), str(found)[:40])
