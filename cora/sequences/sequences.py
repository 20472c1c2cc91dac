"""Sequences: what every user did, in order, and which of it is asked about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cora.data import Splits

_PARTS = {"train": 0, "valid": 1, "test": 2}


@dataclass(frozen=True)
class Sequences:
    """The events of users, one user after another, each user's in order: train, then valid, then test.

    user_ids: the id of each user; item_ids: that of each item; both sorted. user, item: int64 [events], rows of these.
    part: int8 [events], 0 train, 1 valid, 2 test. label: int64 [events], 1 for a like. starts: int64 [users + 1], the
    events of user u are starts[u]:starts[u + 1]. Every row of the data is an event, liked or not; rows of one user and
    one moment stand in the order of the source, for whoever ranks.
    """

    user_ids: list[Any]
    item_ids: list[Any]
    user: np.ndarray
    item: np.ndarray
    part: np.ndarray
    label: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, splits: Splits, item_ids: Sequence[Any] | None = None) -> "Sequences":
        """Those of all parts of a split. item_ids: the catalogue, all items of the parts at least; None for these.

        Raises ValueError for an item of the parts that the catalogue does not have.
        """
        parts = splits.parts()
        frame = pd.concat([part[["user_id", "item_id", "label"]] for part in parts.values()], ignore_index=True)
        number = np.repeat([_PARTS[name] for name in parts], [len(part) for part in parts.values()]).astype(np.int8)
        user, user_ids = pd.factorize(frame["user_id"], sort=True)
        known = pd.Index(sorted(frame["item_id"].unique().tolist()) if item_ids is None else list(item_ids))
        item = known.get_indexer(frame["item_id"])
        if (item < 0).any():
            raise ValueError(f"item_ids: {frame['item_id'][int((item < 0).argmax())]!r} is not among the items")
        order = np.argsort(user, kind="stable")
        starts = np.append(0, np.cumsum(np.bincount(user, minlength=len(user_ids))))
        return cls(
            user_ids.tolist(),
            known.tolist(),
            user[order].astype(np.int64),
            item[order],
            number[order],
            frame["label"].to_numpy()[order],
            starts,
        )

    def targets(self, part: str) -> np.ndarray:
        """int64 [n]: the events of a part that have one of the same user before them."""
        events = np.flatnonzero(self.part == _PARTS[part])
        return events[events > self.starts[self.user[events]]]

    def history(self, event: int, newest: int | None = None) -> np.ndarray:
        """int64 [n]: the items of the user's events before this one, the `newest` of them or all, oldest first."""
        start = int(self.starts[self.user[event]])
        return self.item[start if newest is None else max(start, event - newest) : event]

    def seen(self, events: np.ndarray) -> np.ndarray:
        """bool [n, items]: which items the user of each event has an earlier event with."""
        found = np.zeros((len(events), len(self.item_ids)), dtype=bool)
        for row, event in enumerate(events):
            found[row, self.history(int(event))] = True
        return found

    def training(self) -> list[np.ndarray]:
        """The items of each user's events in train, oldest first; of users who have none an empty array."""
        return [
            self.item[start:stop][self.part[start:stop] == 0]
            for start, stop in zip(self.starts[:-1], self.starts[1:], strict=True)
        ]
