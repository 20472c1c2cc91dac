"""Interactions in one form: users, items, labels and times, checked, and the titles of the items."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cora.data.formats import read
from cora.data.order import in_time_order
from cora.data.parts import check_training_parts, part_of_file
from cora.data.problems import listed, problem, shown, shown_path
from cora.data.rows import Rows, Source, kind
from cora.data.sources import NAMED_DATA
from cora.data.times import times
from cora.data.values import ids, is_visible, labels, numbers, titles

_NO_GENRES = {"(no genres listed)", "unknown", ""}  # how MovieLens writes that there are none


@dataclass(frozen=True)
class Interactions:
    """What users did, in time order, and what the items are called.

    frame: user_id, item_id (int64 or str, as in the source), label (int64, 0 or 1), timestamp (int64, seconds since
        1970), `rating` (float64) if the source has one, `split` ("train", "valid", "test") if it is already split.
    titles: item_id → title, for every item of the frame (and maybe more).
    genres: item_id → its genres in the order of the source, for items that have any there.
    """

    frame: pd.DataFrame
    titles: dict[Any, str]
    name: str
    genres: dict[Any, tuple[str, ...]] = field(default_factory=dict)


def load_interactions(
    source: str | os.PathLike[str], positive_rating: float = 4.0, parts_alone: bool = False
) -> Interactions:
    """Interactions from a named data set, a file or a folder.

    Tables with user_id, item_id, timestamp, title and rating or label: parquet, CSV, TSV (quotes as in RFC 4180), JSON
    lines, the last three also gzipped; as one file, as numbered parts in a folder, or as a folder with train, valid
    and maybe test, as `part_files` says. RecBole's atomic files, a folder or the `.inter` file, with the titles in the
    `.item` file. MovieLens' own folders. Amazon's reviews of 2018, NAME.json.gz with meta_NAME.json.gz beside it. Text
    is UTF-8.

    label = the source's own `label` (0 or 1) where it has one, else 1 if rating ≥ positive_rating.
    timestamp: ISO 8601, or numbers since 1970 whose unit their size tells (see `times`); kept as seconds, rounded down,
    rows of one second in their order. Ids in text files become int64 if all are whole numbers (see `ids`).
    Titles are kept as they are; the column they are from is reported where it is not called title (`title_column`).
    parts_alone: whether a folder may hold some parts of a split alone, such as a test part, and a file named as a part
    (test.parquet) is that part.
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
    if parts_alone and path.is_file() and (part := part_of_file(path)):
        found = found._replace(parts=(part,))
    if not parts_alone:
        check_training_parts(path, found.parts, found.events.files)
    for rows in (found.events, found.items):
        if rows is not None and not len(rows):
            raise problem(path if len(rows.files) > 1 else rows.files[0], "no rows")
    frame, names, genres = _typed(found, positive_rating)
    kept = in_time_order(frame, path)
    order = ["user_id", "item_id", "label", "timestamp", "rating", "split"]
    columns = {column: frame.pop(column) for column in order if column in frame}
    frame.clear()
    if kept is not None:
        for column in columns:  # one at a time: of large data there is no room for all of them twice
            columns[column] = columns[column].iloc[kept].reset_index(drop=True)
    called = name if name in NAMED_DATA else _name(path)
    return Interactions(pd.DataFrame(columns, copy=False), names, called, genres)


def _typed(
    source: Source, positive_rating: float
) -> tuple[dict[str, pd.Series], dict[Any, str], dict[Any, tuple[str, ...]]]:
    """The columns of the events with their types, and the nanoseconds beyond their times; item_id → title, → genres."""
    events, items = source.events, source.items
    frame = {"user_id": ids("user_id", [events])[0]}
    named = ids("item_id", [events] if items is None else [events, items])
    frame["item_id"] = named[0]
    seconds, nanoseconds = times(events)
    frame["timestamp"] = pd.Series(seconds)
    if nanoseconds.any():
        frame["nanoseconds"] = pd.Series(nanoseconds)
    if "rating" in events:
        frame["rating"] = pd.Series(numbers("rating", events))
    frame["label"] = (
        pd.Series(labels(events)) if "label" in events else (frame["rating"] >= positive_rating).astype(np.int64)
    )
    if source.parts != ("",) * len(source.parts):
        frame["split"] = pd.Series(np.repeat(np.array(source.parts, dtype=object), events.sizes), dtype=object)
    holder = events if items is None else items
    if holder.names["title"] != "title":
        print(
            f"cora: {shown_path(holder.files[0])}: titles are those in the column {holder.names['title']}",
            file=sys.stderr,
        )
    known = _titles_of_rows(events, named[0]) if items is None else _titles_of_items(items, named[1])
    lacking = [item for item in named[0].unique().tolist() if not is_visible(known.get(item))]
    if lacking:
        raise problem(
            events.place(int(named[0].isin(lacking).to_numpy().argmax())),
            f"{len(lacking)} items have no title, for example {listed(lacking[:3])}",
        )
    genres = {} if items is None or "genres" not in items else _genres(items, named[1])
    return frame, {item: title for item, title in known.items() if title}, genres


def _genres(items: Rows, item_ids: pd.Series) -> dict[Any, tuple[str, ...]]:
    """item_id → genres, which files separate by | (MovieLens) or by blanks (RecBole)."""
    cells = items.column("genres")
    if kind(cells) != "text":
        return {}
    written = [cell or "" for cell in cells.cast(pa.large_string()).to_pylist()]
    split = [cell.split("|") if "|" in cell or cell in _NO_GENRES else cell.split() for cell in written]
    return {
        item: tuple(dict.fromkeys(genres))
        for item, genres in zip(item_ids.tolist(), split, strict=True)
        if genres and not set(genres) & _NO_GENRES
    }


def _titles_of_rows(events: Rows, items: pd.Series) -> dict[Any, str | None]:
    names, title = titles(events)
    item, known = pd.factorize(items)
    first = np.empty(len(known), dtype=np.int64)
    first[item[::-1]] = np.arange(len(item))[::-1]  # of all rows of an item the first is written last, and stays
    other = title != title[first][item]
    if other.any():
        row = int(other.argmax())
        before = int(first[item[row]])
        raise problem(
            events.place(row),
            f"an item_id must have one title, got {shown(names[title[row]])} for {shown(items[row])}, which has "
            f"{shown(names[title[before]])} in {events.place(before).rpartition(', ')[2]}",
        )
    return dict(zip(known.tolist(), [names[one] for one in title[first].tolist()], strict=True))


def _titles_of_items(items: Rows, item_ids: pd.Series) -> dict[Any, str | None]:
    again = item_ids.duplicated().to_numpy()
    if again.any():
        row = int(again.argmax())
        raise problem(items.place(row), f"item_id must be unique, got {shown(item_ids[row])} again")
    found, title = titles(items)
    names = [found[one] for one in title.tolist()]
    if "release_year" in items:
        years = [(year or "").strip() for year in items.column("release_year").cast(pa.large_string()).to_pylist()]
        names = [
            f"{name.strip()} ({year})" if name and len(year) == 4 and year.isascii() and year.isdecimal() else name
            for name, year in zip(names, years, strict=True)
        ]
    return dict(zip(item_ids.tolist(), names, strict=True))


def _name(path: Path) -> str:
    """Of a folder its name, of a file that without its suffixes."""
    name = path.name.removesuffix(".gz")
    return path.name if path.is_dir() else Path(name).stem
