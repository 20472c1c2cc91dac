"""Reads interactions: named data sets, RecBole atomic files, parquet and CSV, in one form."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cora.data.formats import read
from cora.data.sources import NAMED_DATA


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
    rows, titles = read(path)
    rows = _without_repeats(rows, path)
    untitled = [item for item in rows["item_id"].unique().tolist() if not titles.get(item)]
    if untitled:
        raise ValueError(f"{path}: {len(untitled)} items have no title, for example {untitled[:3]}")
    frame = _labelled(rows, positive_rating, path).sort_values("timestamp", kind="stable", ignore_index=True)
    return Interactions(frame, titles, name if name in NAMED_DATA else path.name if path.is_dir() else path.stem)


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
