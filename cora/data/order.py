"""Rows in time order, each event once."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cora.data.problems import shown_path


def in_time_order(frame: Mapping[str, pd.Series], path: Path) -> np.ndarray | None:
    """The rows of a source in time order, those of one moment as they stand, int64 [kept]; None where that is how they
    are. frame: user_id, item_id, timestamp, and nanoseconds where the times have such.

    Of rows that repeat user, item and timestamp the last one alone is kept, and the number dropped is warned of.
    """
    seconds = frame["timestamp"].to_numpy()
    repeats = _repeats(frame)
    if len(repeats):
        warnings.warn(
            f"{shown_path(path)}: {len(repeats)} rows repeat the user, item and timestamp of a later row and are "
            "dropped",
            stacklevel=3,
        )
    if "nanoseconds" in frame:
        order = np.lexsort([frame["nanoseconds"].to_numpy(), seconds])
    elif (seconds[1:] < seconds[:-1]).any():
        order = np.argsort(seconds, kind="stable")
    elif len(repeats):
        order = np.arange(len(seconds))
    else:
        return None
    if len(repeats):
        kept = np.ones(len(seconds), dtype=bool)
        kept[repeats] = False
        order = order[kept[order]]
    return order


def _repeats(frame: Mapping[str, pd.Series]) -> np.ndarray:
    """The rows that have a later one of the same user, item and timestamp.

    A hash tells the few that may have one: a frame of all rows with their groups would be larger than the data.
    """
    mixed = np.zeros(len(frame["timestamp"]), dtype=np.uint64)
    for column in ("user_id", "item_id", "timestamp"):
        values = frame[column]
        whole = values.to_numpy() if values.dtype == np.int64 else pd.factorize(values)[0]
        mixed += whole.view(np.uint64)
        mixed *= np.uint64(0x9E3779B97F4A7C15)  # the odd number next to 2^64 over the golden ratio
        mixed ^= mixed >> np.uint64(29)
    ordered = np.sort(mixed)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(twice):
        return np.empty(0, dtype=np.int64)
    rows = np.flatnonzero(np.isin(mixed, twice))
    events = pd.DataFrame({column: frame[column].iloc[rows] for column in ("user_id", "item_id", "timestamp")})
    return rows[events.duplicated(keep="last").to_numpy()]
