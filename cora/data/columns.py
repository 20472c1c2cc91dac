"""What readers share: text tables as they are, and the columns of interactions checked and typed."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd

_LAST_SECOND = 100_000_000_000  # the year 5138: larger timestamps are not in seconds


def text_table(path: Path, sep: str = ",", quoting: int = csv.QUOTE_MINIMAL) -> pd.DataFrame:
    """Every cell as the text it is: a film called "NA" is not a missing value."""
    try:
        return pd.read_csv(path, sep=sep, dtype=str, keep_default_na=False, quoting=quoting, encoding="utf-8")
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path}: the file is empty") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, {error}") from None


def columns(rows: pd.DataFrame, path: Path, *more: str) -> pd.DataFrame:
    """The columns that are used, checked to be there; at least one row."""
    missing = [column for column in ("user_id", "item_id", "timestamp", *more) if column not in rows]
    if "label" not in rows and "rating" not in rows:
        missing.append("rating or label")
    if missing:
        raise ValueError(f"{path}: missing column {', '.join(missing)}; found {list(rows)}")
    if rows.empty:
        raise ValueError(f"{path}: no rows")
    used = [column for column in ("user_id", "item_id", "timestamp", "rating", "label", *more) if column in rows]
    rows = rows[used].copy()
    for column in ("rating", "label"):
        if column in rows:
            rows[column] = _numbers(rows[column], path)
    rows["timestamp"] = _seconds(rows["timestamp"], path)
    return rows


def ids(column: pd.Series, path: Path, parse: bool) -> pd.Series:
    """int64 for integers, also for text of whole numbers alone where text is to be parsed; else str."""
    if pd.api.types.is_integer_dtype(column.dtype) and not column.hasnans:
        return column.astype(np.int64)
    text = column.astype(str).str.strip()
    missing = int((column.isna() | (text == "")).sum())
    if missing:
        raise ValueError(f"{path}: {column.name} is missing in {missing} of {len(column)} rows")
    if pd.api.types.is_float_dtype(column.dtype):
        raise ValueError(f"{path}: {column.name} must be integer or text, got {column.dtype}")
    # "007" is a name: an id must read the same when written back.
    whole = parse and text.str.fullmatch(r"0|-?[1-9]\d{0,17}").all()
    return text.astype(np.int64 if whole else object)


def _numbers(column: pd.Series, path: Path) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    bad = ~np.isfinite(numbers)
    if bad.any():
        raise ValueError(
            f"{path}: {column.name} must be a number, {int(bad.sum())} are not, for example {column[bad].iloc[0]!r}"
        )
    return numbers


def _seconds(column: pd.Series, path: Path) -> pd.Series:
    """Seconds since 1970 as int64, from numbers of seconds or from dates (without a zone: UTC)."""
    if _is_numeric(column):
        seconds = np.floor(_numbers(column, path)).astype(np.int64)
        last = seconds.abs().max()
        if last >= _LAST_SECOND:
            raise ValueError(f"{path}: timestamp must be in seconds since 1970, got {last} (milliseconds?)")
        return seconds
    times = pd.to_datetime(column, utc=True, errors="coerce")
    if times.isna().any():
        raise ValueError(
            f"{path}: timestamp must be seconds since 1970 or a date, got {column[times.isna()].iloc[0]!r}"
        )
    return times.dt.as_unit("s").astype(np.int64)


def _is_numeric(column: pd.Series) -> bool:
    """Numbers, or text whose first cell is a number."""
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return False
    return bool(pd.to_numeric(column.iloc[:1], errors="coerce").notna().all())
