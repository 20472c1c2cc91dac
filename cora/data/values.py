"""Cells as ids, numbers, labels and titles: the value that is written, or an error with its place."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cora.data.problems import problem
from cora.data.rows import Rows, kind

_WHOLE = "^(0|-?[1-9][0-9]{0,18})$"  # "007" is a name: an id must read the same when written back
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
    if len(kinds) > 1:
        raise problem(all_rows[0].files[0], f"{column} is {kind(found[0])}, but not in {all_rows[-1].files[0].name}")
    if kinds == {"text"} and all(rows.is_text for rows in all_rows):
        try:
            if all(pc.all(pc.match_substring_regex(one, _WHOLE)).as_py() for one in found):
                found = [one.cast(pa.int64()) for one in found]
        except pa.ArrowInvalid:  # 19 digits that are beyond int64: text, as longer ones are
            pass
    return [pd.Series(one.to_numpy(), dtype=np.int64 if kind(one) == "integer" else object) for one in found]


def _checked_ids(column: str, rows: Rows) -> pa.ChunkedArray:
    found = rows.column(column)
    missing = pc.is_null(found)
    if kind(found) == "text":
        missing = pc.or_(missing, pc.fill_null(pc.equal(found, ""), False))
    count = pc.sum(missing).as_py()
    if count:
        raise problem(rows.place(_first(missing)), f"{column} is missing in {count} of {len(rows)} rows")
    if kind(found) == "text":
        odd = pc.or_(pc.not_equal(pc.utf8_trim_whitespace(found), found), pc.match_substring(found, "\0"))
        if pc.any(odd).as_py():
            raise rows.wrong(_first(odd), column, "must not begin or end in a blank or hold a zero byte")
    elif kind(found) != "integer":
        raise rows.wrong(0, column, f"must be integer or text, not {_pandas_name(found.type)}")
    elif found.type != pa.int64():
        raise rows.wrong(
            _first(pc.greater(found, pa.scalar(2**63 - 1, pa.uint64()))), column, "must be within int64 (or text)"
        )
    return found


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
    texts = found.cast(pa.large_string()).combine_chunks().dictionary_encode()
    distinct = [_number(text) for text in texts.dictionary.to_pylist()]
    codes = texts.indices.to_numpy()
    bad = np.isin(codes, [code for code, value in enumerate(distinct) if value is None])
    if bad.any():
        row = int(bad.argmax())
        is_whole = texts[row].as_py().strip().lstrip("+-").isdecimal()
        raise rows.wrong(row, column, "must be a number that float64 holds exactly" if is_whole else expected)
    return np.array(distinct, dtype=np.float64)[codes]


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


def titles(rows: Rows) -> list[str | None]:
    """The column `title`, exactly as written; integers as their digits, None where there is no title.

    Raises ValueError, naming file, row and value, for other types.
    """
    found = rows.column("title")
    if kind(found) not in ("text", "integer", "null"):
        raise rows.wrong(0, "title", f"must be text, not {_pandas_name(found.type)}")
    return list(found.cast(pa.large_string()).to_pylist())


def _first(mask: pa.ChunkedArray) -> int:
    return int(pc.index(mask, True).as_py())


def _pandas_name(found: pa.DataType) -> str:
    return {"double": "float64"}.get(str(found), str(found)[:40])
