"""Splits as they were published: which rows, which labels, and where the parts begin."""

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Recipe:
    """Train from `begin`, valid from `valid_from`, test from `test_from` up to, not including, `end`: days in UTC. Rows
    outside are dropped, and are nobody's past.

    test_from None: of the rows from valid_from on the first half are valid and the others test.
    label = 1 if rating ≥ positive_rating. more_than: only users and items with more rows than that from `begin` to
    `end`, both counted once, before any is left out.
    """

    source: str
    begin: str
    valid_from: str
    test_from: str | None
    end: str
    positive_rating: float
    more_than: int = 0

    def labelled(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows with the recipe's labels, where there are ratings, and in any case as the source labels them."""
        if "rating" not in frame:
            return frame
        return frame.assign(label=(frame["rating"] >= self.positive_rating).astype(np.int64))

    def parts(self, frame: pd.DataFrame) -> np.ndarray:
        """0, 1 or 2 for train, valid and test, another number for none: int64 [rows] of a frame in time order."""
        days = [self.begin, self.valid_from, self.test_from, self.end]
        starts = [int(pd.Timestamp(day, tz="UTC").timestamp()) for day in days if day is not None]
        part = np.searchsorted(starts, frame["timestamp"].to_numpy(), side="right") - 1
        part[part == len(starts) - 1] = 3
        if self.more_than:
            inside = frame[(part >= 0) & (part < 3)]
            for name in ("user_id", "item_id"):
                counts = inside[name].value_counts()
                part[~frame[name].isin(counts.index[counts > self.more_than])] = 3
        if self.test_from is None:
            late = np.flatnonzero(part == 1)
            part[late[len(late) // 2 :]] = 2
        return part


# name -> recipe. Sources of both: Zhang et al., CoLLM, arXiv 2310.19488, and the notebooks of its repository.
RECIPES = {
    "collm-ml-1m": Recipe("MovieLens-1M", "2001-06-01", "2002-04-01", "2002-09-01", "2003-02-01", 4.0),
    "collm-amazon-book": Recipe("Amazon 2018, Books", "2017-01-01", "2017-12-01", None, "2018-01-01", 5.0, 20),
}
