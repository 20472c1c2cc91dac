"""Interactions in one form: users, items, labels and times, checked, and the titles of the items."""

import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cora.data.formats import read
from cora.data.problems import listed, problem, shown, shown_path
from cora.data.rows import Rows, Source
from cora.data.sources import NAMED_DATA
from cora.data.times import times
from cora.data.values import ids, labels, numbers, titles


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
    """Interactions from a named data set, a file or a folder.

    Tables with user_id, item_id, timestamp, title and rating or label: parquet, CSV, TSV (quotes as in RFC 4180), JSON
    lines, the last three also gzipped; as one file, as numbered parts in a folder, or as a folder with train, valid
    and maybe test, as `part_files` says. RecBole's atomic files, a folder or the `.inter` file, with the titles in the
    `.item` file. MovieLens' own folders. Text is UTF-8.

    label = the source's own `label` (0 or 1) where it has one, else 1 if rating ≥ positive_rating.
    timestamp: ISO 8601, or numbers since 1970 whose unit their size tells (see `times`); kept as seconds, rounded down,
    rows of one second in their order. Ids in text files become int64 if all are whole numbers (see `ids`).
    Titles are kept as they are; the column they are from is reported where it is not called title (`title_column`).
    A repeated (user, item, timestamp) is one event: the last row counts, and the number dropped is warned of.

    Raises FileNotFoundError if there is nothing at `source` or no file of titles; ValueError, naming the file and, of
    a cell, its line (of parquet its row, from 1) and its value, for what cannot be read, a missing column, no rows, a
    missing, repeated or odd id, an item without title or with two, and values that are no number, label or time. No
    value is turned into another one.
    """
    name = os.fspath(source)
    path = NAMED_DATA[name]() if name in NAMED_DATA else Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"source: expected a file, a folder or one of the named data sets ({', '.join(NAMED_DATA)}), "
            f"got {shown_path(Path(name))!r}"
        )
    found = read(path)
    for rows in (found.events, found.items):
        if rows is not None and not len(rows):
            raise problem(path if len(rows.files) > 1 else rows.files[0], "no rows")
    frame, names = _typed(found, positive_rating)
    frame = _without_repeats(frame, path)
    order = ["user_id", "item_id", "label", "timestamp", "rating", "split"]
    frame = frame.sort_values(["timestamp", "nanoseconds"], kind="stable", ignore_index=True)
    return Interactions(
        frame[[column for column in order if column in frame]], names, name if name in NAMED_DATA else _name(path)
    )


def _typed(source: Source, positive_rating: float) -> tuple[pd.DataFrame, dict[Any, str]]:
    """The columns of the events with their types, and the nanoseconds beyond their times; item_id → title."""
    events, items = source.events, source.items
    frame = pd.DataFrame({"user_id": ids("user_id", [events])[0]})
    named = ids("item_id", [events] if items is None else [events, items])
    frame["item_id"] = named[0]
    frame["timestamp"], frame["nanoseconds"] = times(events)
    if "rating" in events:
        frame["rating"] = numbers("rating", events)
    frame["label"] = labels(events) if "label" in events else (frame["rating"] >= positive_rating).astype(np.int64)
    if source.parts != ("",) * len(source.parts):
        frame["split"] = np.repeat(np.array(source.parts, dtype=object), events.sizes)
    holder = events if items is None else items
    if holder.names["title"] != "title":
        print(
            f"cora: {shown_path(holder.files[0])}: titles are those in the column {holder.names['title']}",
            file=sys.stderr,
        )
    known = _titles_of_rows(events, named[0]) if items is None else _titles_of_items(items, named[1])
    untitled = ~frame["item_id"].isin([item for item, title in known.items() if _is_text(title)])
    if untitled.any():
        lacking = frame.loc[untitled, "item_id"].unique().tolist()
        raise problem(
            events.place(int(untitled.to_numpy().argmax())),
            f"{len(lacking)} items have no title, for example {listed(lacking[:3])}",
        )
    return frame, {item: title for item, title in known.items() if title}


def _titles_of_rows(events: Rows, items: pd.Series) -> dict[Any, str | None]:
    named = pd.DataFrame({"item": items, "title": pd.Series(titles(events), dtype=object)})
    distinct = named.drop_duplicates()
    again = distinct["item"].duplicated()
    if again.any():
        row = int(distinct.index[again][0])
        item, title = named.loc[row]
        before = int((named["item"] == item).to_numpy().argmax())
        raise problem(
            events.place(row),
            f"an item_id must have one title, got {shown(title)} for {shown(item)}, which has "
            f"{shown(named['title'][before])} in {events.place(before).rpartition(', ')[2]}",
        )
    return dict(zip(distinct["item"].tolist(), distinct["title"].tolist(), strict=True))


def _titles_of_items(items: Rows, item_ids: pd.Series) -> dict[Any, str | None]:
    again = item_ids.duplicated().to_numpy()
    if again.any():
        row = int(again.argmax())
        raise problem(items.place(row), f"item_id must be unique, got {shown(item_ids[row])} again")
    names = titles(items)
    if "release_year" in items:
        years = [(year or "").strip() for year in items.column("release_year").to_pylist()]
        names = [
            f"{name.strip()} ({year})" if name and len(year) == 4 and year.isascii() and year.isdecimal() else name
            for name, year in zip(names, years, strict=True)
        ]
    return dict(zip(item_ids.tolist(), names, strict=True))


def _is_text(title: str | None) -> bool:
    """Whether there is anything in it to be seen."""
    return any(letter != " " and letter.isprintable() for letter in title or "")


def _without_repeats(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    kept = rows.drop_duplicates(["user_id", "item_id", "timestamp"], keep="last")
    dropped = len(rows) - len(kept)
    if dropped:
        warnings.warn(
            f"{shown_path(path)}: {dropped} rows repeat the user, item and timestamp of a later row and are dropped",
            stacklevel=3,
        )
    return kept


def _name(path: Path) -> str:
    """Of a folder its name, of a file that without its suffixes."""
    name = path.name.removesuffix(".gz")
    return path.name if path.is_dir() else Path(name).stem
