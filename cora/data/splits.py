"""Splits in time."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from cora.data.interactions import Interactions
from cora.data.recipes import RECIPES

_EVENT = ["user_id", "item_id", "label", "timestamp"]


@dataclass(frozen=True)
class Splits:
    """Frames in time order, with the columns of `Interactions.frame`; test is None where the source has none."""

    train: pd.DataFrame
    valid: pd.DataFrame
    test: pd.DataFrame | None

    def parts(self) -> dict[str, pd.DataFrame]:
        """The parts there are by name: train, valid and, where the source has one, test."""
        parts = {"train": self.train, "valid": self.valid}
        return parts if self.test is None else parts | {"test": self.test}

    def of_users(self, users: pd.Series) -> pd.DataFrame:
        """What these users did, in all parts: user_id, item_id, label, timestamp, and cold_item where the parts have
        that; of each user in time order."""
        wanted = users.unique()
        columns = [*_EVENT, "cold_item"] if "cold_item" in self.train else _EVENT
        return pd.concat([part.loc[part["user_id"].isin(wanted), columns] for part in self.parts().values()])


def split(
    interactions: Interactions,
    by: str = "ratio",
    *,
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1),
    valid_from: str | None = None,
    test_from: str | None = None,
    last: int = 1,
) -> Splits:
    """Train, valid and test, later parts later in time. A source that is already split keeps its split.

    by="ratio": shares of all rows in global time order. A boundary that falls among rows of one timestamp moves to the
        first of them, so that no moment is torn: every row of a later part is strictly later.
    by="dates": valid = valid_from ≤ time < test_from, test = test_from ≤ time (dates such as "2002-04-01", UTC).
    by="leave-last": of every user with more than 2·last rows the last `last` rows are test and the `last` before them
        valid; rows of one user and timestamp count in the order of the source. All rows of other users are train.
    by the name of a `Recipe`: as published, with its labels.

    Raises ValueError for an unknown `by`, ratios that are not positive or do not sum to 1, missing or unordered dates,
    last < 1, a part that comes out empty, and any `by` but "ratio" on a source that is already split.
    """
    frame = interactions.frame
    if "split" in frame:
        if by != "ratio":
            raise ValueError(f"by: {interactions.name} is already split into train and valid files, got by={by!r}")
        part = frame["split"].map({"train": 0, "valid": 1, "test": 2}).to_numpy()
        frame = frame.drop(columns="split")
        has_test = bool((part == 2).any())
    elif by in RECIPES:
        frame = RECIPES[by].labelled(frame)
        part = RECIPES[by].parts(frame)
        has_test = True
    else:
        part = _parts(frame, by, ratios, valid_from, test_from, last)
        has_test = True
    train, valid, test = (rows.reset_index(drop=True) for rows in _divided(frame, part))
    sizes = {"train": len(train), "valid": len(valid)} | ({"test": len(test)} if has_test else {})
    empty = [name for name, size in sizes.items() if size == 0]
    if empty:
        raise ValueError(f"splitting {interactions.name} by {by!r} leaves {', '.join(empty)} empty: rows are {sizes}")
    return Splits(train, valid, test if has_test else None)


def earliest(rows: pd.DataFrame, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The earliest `share` of rows in time order, and the others, every one of them strictly later: a boundary that
    falls among rows of one timestamp moves to the first of them.

    Raises ValueError where one of the two is empty.
    """
    times = rows["timestamp"].to_numpy()
    border = int(np.searchsorted(times, times[min(round(share * len(times)), len(times) - 1)])) if len(times) else 0
    if border == 0:
        raise ValueError(
            f"share: {share} of {len(rows)} rows cannot be divided in time, both parts need rows and no moment is torn"
        )
    return rows.iloc[:border], rows.iloc[border:]


def _divided(frame: pd.DataFrame, part: np.ndarray) -> list[pd.DataFrame]:
    """The rows of the parts 0, 1 and 2: slices, which take no memory, where they lie one behind the other."""
    if (part[1:] >= part[:-1]).all():
        borders = np.searchsorted(part, [0, 1, 2, 3])
        return [frame.iloc[start:stop] for start, stop in pairwise(borders)]
    return [frame[part == i] for i in range(3)]


def _parts(
    frame: pd.DataFrame,
    by: str,
    ratios: tuple[float, float, float],
    valid_from: str | None,
    test_from: str | None,
    last: int,
) -> np.ndarray:
    """0, 1 or 2 for every row of a frame in time order."""
    times = frame["timestamp"].to_numpy()
    if by == "ratio":
        if len(ratios) != 3 or min(ratios) <= 0 or abs(sum(ratios) - 1) > 1e-6:
            raise ValueError(f"ratios: expected three positive shares that sum to 1, got {ratios}")
        cuts = np.minimum(np.round(np.cumsum(ratios[:2]) * len(times)).astype(np.int64), len(times) - 1)
        return np.searchsorted(times[cuts], times, side="right")
    if by == "dates":
        starts = [_second("valid_from", valid_from), _second("test_from", test_from)]
        if starts[0] >= starts[1]:
            raise ValueError(f"valid_from must be before test_from, got {valid_from} and {test_from}")
        return np.searchsorted(starts, times, side="right")
    if by == "leave-last":
        if last < 1:
            raise ValueError(f"last: expected at least 1, got {last}")
        users = frame.groupby("user_id", sort=False)["user_id"]
        from_end = users.cumcount(ascending=False).to_numpy()
        part = 2 - np.minimum(from_end // last, 2)
        return np.where(users.transform("size").to_numpy() > 2 * last, part, 0)
    published = ", ".join(RECIPES)
    raise ValueError(f"by: expected 'ratio', 'dates' or 'leave-last', got {by!r}; or a published split, {published}")


def _second(name: str, date: str | None) -> int:
    if date is None:
        raise ValueError(f"{name}: by='dates' needs it, a date such as 2002-04-01")
    try:
        time = pd.Timestamp(date)
    except ValueError as error:
        raise ValueError(f"{name}: expected a date such as 2002-04-01, got {date!r}") from error
    return int((time.tz_localize("UTC") if time.tz is None else time).timestamp())
