"""What a user did before a row: the one walk through the past, of prompts, folded-in vectors and recommendations."""

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from cora.data.splits import Splits


def add_histories(splits: Splits, max_history: int = 10) -> Splits:
    """The same splits with a column `history`: list of the item_ids that the row's user liked before, oldest first.

    Holds the user's newest `max_history` rows with label 1 and a timestamp strictly before the row's own, from all
    parts (what is past at test time includes train and valid), never the row's own item.
    Raises ValueError for max_history < 0.
    """
    if max_history < 0:
        raise ValueError(f"max_history: expected at least 0, got {max_history}")
    parts = splits.parts()
    rows = pd.concat(parts.values(), ignore_index=True)
    histories = liked_before(rows, rows, max_history)
    done, start = {}, 0
    for name, frame in parts.items():
        column = pd.Series(histories[start : start + len(frame)], index=frame.index, dtype=object)
        done[name] = frame.assign(history=column)
        start += len(frame)
    return Splits(done["train"], done["valid"], done.get("test"))


def liked_before(rows: pd.DataFrame, known: pd.DataFrame, max_history: int) -> list[list]:
    """The newest `max_history` items, oldest first, that the user of each of `rows` has with label 1 in `known` at an
    earlier time.

    rows: user_id, item_id, timestamp; known: those and label. What is of the row's own item is left out.
    """
    liked = known[known["label"].to_numpy() == 1]
    return _Walk(rows, liked).of("item_id", max_history)


def pasts(rows: pd.DataFrame, known: pd.DataFrame) -> tuple[list[list], list[list[int]]]:
    """Items and labels that the user of each of `rows` has in `known` at an earlier time, oldest first.

    rows: user_id, item_id, timestamp; known: those and label. What is of the row's own item is left out.
    """
    walk = _Walk(rows, known)
    return walk.of("item_id"), walk.of("label")


class _Walk:
    """The past of each of `rows` as a slice of `known`, sorted by user and, for each, by time."""

    def __init__(self, rows: pd.DataFrame, known: pd.DataFrame) -> None:
        users, names = pd.factorize(known["user_id"])
        # The rank of a time stands for it, so that (user, time) is one sortable number whatever the times are.
        moments = np.unique(known["timestamp"].to_numpy())
        step = len(moments) + 1
        keys = users.astype(np.int64) * step + np.searchsorted(moments, known["timestamp"].to_numpy())
        order = np.argsort(keys, kind="stable")
        first = pd.Index(names).get_indexer(rows["user_id"]).astype(np.int64) * step
        nows = first + np.searchsorted(moments, rows["timestamp"].to_numpy())
        # A user without rows in `known` is -1 among the names: both ends of their slice are 0.
        self._starts = np.searchsorted(keys[order], first)
        self._stops = np.searchsorted(keys[order], nows)
        self._known = known.iloc[order]
        self._items, items = pd.factorize(self._known["item_id"])
        self._own = pd.Index(items).get_indexer(rows["item_id"])
        pairs = keys[order] // step * (len(items) + 1) + self._items
        asked = first // step * (len(items) + 1) + self._own
        pairs, earliest = np.unique(pairs, return_index=True)
        # Only a row whose own item is in its past has to look through it.
        at = np.minimum(np.searchsorted(pairs, asked), max(0, len(pairs) - 1))
        self._again = np.zeros(len(rows), dtype=bool)
        if len(pairs):
            self._again = (pairs[at] == asked) & (earliest[at] < self._stops)

    def of(self, column: str, newest: int | None = None) -> list[list]:
        """The values of a column of `known` in the past of each row, the `newest` of them or all, oldest first."""
        values, items = self._known[column].tolist(), self._items.tolist()
        slices = zip(self._starts.tolist(), self._stops.tolist(), self._own.tolist(), self._again.tolist(), strict=True)
        found = []
        for start, stop, own, again in tqdm(slices, "histories", len(self._own), delay=2):
            if again:
                past = [values[i] for i in range(start, stop) if items[i] != own]
                found.append(past if newest is None else past[max(0, len(past) - newest) :])
            else:
                found.append(values[start if newest is None else max(start, stop - newest) : stop])
        return found
