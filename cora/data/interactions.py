"""Reads interactions: named data sets, RecBole atomic files, parquet and CSV, in one form."""

import csv
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cora.data.sources import NAMED_DATA

_PARTS = ("train", "valid", "test")
_TABLE_SUFFIXES = (".parquet", ".csv")
_LAST_SECOND = 100_000_000_000  # the year 5138: larger timestamps are not in seconds


@dataclass(frozen=True)
class Interactions:
    """What users did, in time order, and what the items are called.

    frame: user_id, item_id (int64 or str, as in the source), label (int64, 0 or 1), timestamp (int64, seconds since
        1970), `rating` (float64) if the source has one, `split` ("train", "valid", "test") if it is already split.
    titles: item_id → title, for every item of the frame (and maybe more).
    """

    frame: pd.DataFrame
    titles: dict[Any, str]
    name: str


def load_interactions(source: str | os.PathLike[str], positive_rating: float = 4.0) -> Interactions:
    """Interactions from a named data set, a RecBole folder or `.inter` file, a parquet or CSV file, or a folder with
    `train`, `valid` and optionally `test` parquet or CSV files.

    label = the source's own `label` (0 or 1) where it has one, else 1 if rating ≥ positive_rating.
    Tables need user_id, item_id, timestamp, title and rating or label; RecBole's `.item` file gives the titles.
    timestamp: seconds since 1970, or a date. Ids in text files (RecBole, CSV) become int64 if all are whole numbers.
    A repeated (user, item, timestamp) is one event: the last row counts, and the number dropped is warned of.

    Raises FileNotFoundError if there is nothing at `source`; ValueError, naming file and column, for a missing column,
    no rows, a missing or duplicate id, an item without title, and values that are no number, label or time.
    """
    name = os.fspath(source)
    path = NAMED_DATA[name]() if name in NAMED_DATA else Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"source: expected a file, a folder or one of the named data sets ({', '.join(NAMED_DATA)}), got {name!r}"
        )
    rows, titles = _read(path)
    rows = _without_repeats(rows, path)
    untitled = [item for item in rows["item_id"].unique().tolist() if not titles.get(item)]
    if untitled:
        raise ValueError(f"{path}: {len(untitled)} items have no title, for example {untitled[:3]}")
    frame = _labelled(rows, positive_rating, path).sort_values("timestamp", kind="stable", ignore_index=True)
    return Interactions(frame, titles, name if name in NAMED_DATA else path.name if path.is_dir() else path.stem)


def _read(path: Path) -> tuple[pd.DataFrame, dict[Any, str]]:
    if path.is_dir():
        parts = _part_files(path)
        if parts:
            return _read_tables(parts, path)
        inter = sorted(path.glob("*.inter"))
        if len(inter) != 1:
            raise ValueError(
                f"{path}: expected one .inter file, or train and valid as .parquet or .csv; "
                f"found {sorted(file.name for file in path.iterdir())[:10]}"
            )
        return _read_recbole(inter[0])
    if path.suffix == ".inter":
        return _read_recbole(path)
    if path.suffix in _TABLE_SUFFIXES:
        return _read_tables({"": path}, path)
    raise ValueError(f"{path}: expected a .inter, .parquet or .csv file, got {path.suffix!r}")


def _part_files(folder: Path) -> dict[str, Path]:
    """The files of an already split folder by part; empty if the folder holds none."""
    found: dict[str, Path] = {}
    for part in _PARTS:
        files = [folder / (part + suffix) for suffix in _TABLE_SUFFIXES if (folder / (part + suffix)).exists()]
        if len(files) > 1:
            raise ValueError(f"{folder}: {part} is there twice: {[file.name for file in files]}")
        if files:
            found[part] = files[0]
    if found and not {"train", "valid"} <= found.keys():
        raise ValueError(f"{folder}: a split folder needs train and valid, found {[f.name for f in found.values()]}")
    return found


def _read_recbole(inter: Path) -> tuple[pd.DataFrame, dict[Any, str]]:
    item = inter.with_suffix(".item")
    if not item.exists():
        raise FileNotFoundError(f"{inter}: the titles are missing, expected them in {item}")
    rows = _columns(_atomic(inter), inter)
    items = _atomic(item)
    title = next((c for c in items if c in ("title", "name") or c.endswith(("_title", "_name"))), None)
    if "item_id" not in items or title is None:
        raise ValueError(
            f"{item}: expected the columns item_id and title (or movie_title, name ...), found {list(items)}"
        )
    names = items[title].str.strip()
    if "release_year" in items:
        year = items["release_year"].str.strip()
        names = names.where(~year.str.fullmatch(r"\d{4}"), names + " (" + year + ")")
    # Text ids turn into numbers in both files or in neither.
    ids = _ids(pd.concat([items["item_id"], rows["item_id"]], ignore_index=True), item, parse=True)
    item_ids, rows["item_id"] = ids[: len(items)], ids[len(items) :].to_numpy()
    repeated = item_ids[item_ids.duplicated()].tolist()
    if repeated:
        raise ValueError(f"{item}: item_id must be unique, {len(repeated)} repeated, for example {repeated[:3]}")
    rows["user_id"] = _ids(rows["user_id"], inter, parse=True)
    return rows, dict(zip(item_ids.tolist(), names.tolist(), strict=True))


def _atomic(path: Path) -> pd.DataFrame:
    """A RecBole atomic file as text columns, the `:type` of each header name checked and removed."""
    rows = _text_table(path, sep="\t", quoting=csv.QUOTE_NONE)
    untyped = [c for c in rows if c.rpartition(":")[2] not in ("token", "token_seq", "float", "float_seq")]
    if untyped:
        raise ValueError(
            f"{path}: a header of `name:type` expected (token, token_seq, float, float_seq), found {untyped}"
        )
    return rows.rename(columns=lambda c: c.rpartition(":")[0])


def _read_tables(parts: dict[str, Path], path: Path) -> tuple[pd.DataFrame, dict[Any, str]]:
    """One or several parquet or CSV files with titles in them; more than one file gives a `split` column."""
    tables = []
    for part, file in parts.items():
        table = _columns(_text_table(file) if file.suffix == ".csv" else pd.read_parquet(file), file, "title")
        tables.append(table.assign(split=part) if part else table)
    rows = pd.concat(tables, ignore_index=True)
    for column in ("user_id", "item_id"):
        rows[column] = _ids(rows[column], path, parse=all(file.suffix == ".csv" for file in parts.values()))
    named = rows[["item_id", "title"]].drop_duplicates()
    conflicting = named.loc[named["item_id"].duplicated(), "item_id"].tolist()
    if conflicting:
        raise ValueError(
            f"{path}: an item_id must have one title, {len(conflicting)} have several, for example {conflicting[:3]}"
        )
    named = named[named["title"].notna()]
    return rows.drop(columns="title"), dict(
        zip(named["item_id"].tolist(), named["title"].astype(str).tolist(), strict=True)
    )


def _text_table(path: Path, sep: str = ",", quoting: int = csv.QUOTE_MINIMAL) -> pd.DataFrame:
    """Every cell as the text it is: a film called "NA" is not a missing value."""
    try:
        return pd.read_csv(path, sep=sep, dtype=str, keep_default_na=False, quoting=quoting, encoding="utf-8")
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path}: the file is empty") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, {error}") from None


def _columns(rows: pd.DataFrame, path: Path, *more: str) -> pd.DataFrame:
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


def _ids(column: pd.Series, path: Path, parse: bool) -> pd.Series:
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


def _labelled(rows: pd.DataFrame, positive_rating: float, path: Path) -> pd.DataFrame:
    """The frame's columns in their order, `label` from the source or from the rating."""
    if "label" in rows:
        others = sorted(set(rows["label"].tolist()) - {0.0, 1.0})
        if others:
            raise ValueError(f"{path}: label must be 0 or 1, found {others[:5]}")
    else:
        rows["label"] = rows["rating"] >= positive_rating
    rows["label"] = rows["label"].astype(np.int64)
    order = ["user_id", "item_id", "label", "timestamp", "rating", "split"]
    return rows[[column for column in order if column in rows]]


def _without_repeats(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    kept = rows.drop_duplicates(["user_id", "item_id", "timestamp"], keep="last")
    if len(kept) < len(rows):
        warnings.warn(
            f"{path}: {len(rows) - len(kept)} rows repeat the user, item and timestamp of a later row and are dropped",
            stacklevel=3,
        )
    return kept
