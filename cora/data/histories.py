"""What a user did before a row: the one look into the past, of prompts, folded-in vectors and recommendations."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cora.data.splits import Splits


@dataclass(frozen=True)
class Ragged:
    """Lists of any length in one array: list i, an array, is values[offsets[i] : offsets[i + 1]]. offsets: int64."""

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start = range(len(self))[index]
        return self.values[self.offsets[start] : self.offsets[start + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def tolist(self) -> list[list[Any]]:
        """The same as Python's lists of Python's values."""
        return [one.tolist() for one in self]


def add_histories(splits: Splits, max_history: int = 10) -> Splits:
    """The same splits with a column `history`: list of the item_ids that the row's user liked before, oldest first.

    Holds the user's newest `max_history` rows with label 1 and a timestamp strictly before the row's own, from all
    parts (what is past at test time includes train and valid), never the row's own item.
    Raises ValueError for max_history < 0.
    """
    done = {name: with_histories(frame, splits, max_history) for name, frame in splits.parts().items()}
    return Splits(done["train"], done["valid"], done.get("test"))


def with_histories(rows: pd.DataFrame, splits: Splits, max_history: int) -> pd.DataFrame:
    """Some rows of the splits with the column `history` of `add_histories`."""
    if max_history < 0:
        raise ValueError(f"max_history: expected at least 0, got {max_history}")
    histories = liked_before(rows, splits.of_users(rows["user_id"]), max_history)
    return rows.assign(history=pd.Series(histories, index=rows.index, dtype=object))


def liked_before(rows: pd.DataFrame, known: pd.DataFrame, max_history: int) -> list[list]:
    """The newest `max_history` items, oldest first, that the user of each of `rows` has with label 1 in `known` at an
    earlier time.

    rows: user_id, item_id, timestamp; known: those and label. What is of the row's own item is left out.
    """
    known = _of_users(rows, known)
    return _before(rows, known[known["label"].to_numpy() == 1], ["item_id"], max_history)[0].tolist()


def pasts(rows: pd.DataFrame, known: pd.DataFrame, newest: int | None = None) -> tuple[Ragged, Ragged]:
    """Items and labels that the user of each of `rows` has in `known` at an earlier time, the `newest` of them or all,
    oldest first.

    rows: user_id, item_id, timestamp; known: those and label. What is of the row's own item is left out.
    """
    items, labels = _before(rows, _of_users(rows, known), ["item_id", "label"], newest)
    return items, labels


def raters(rows: pd.DataFrame, known: pd.DataFrame, newest: int | None = None) -> tuple[Ragged, Ragged]:
    """Users who have a row with the item of each of `rows` in `known`, at any time, and their labels, the `newest` of
    them or all, the row's own user left out.

    rows: user_id, item_id; known: those, timestamp and label.
    """
    swap = {"user_id": "item_id", "item_id": "user_id"}
    rows = rows.rename(columns=swap).assign(timestamp=np.iinfo(np.int64).max)
    return pasts(rows, known.rename(columns=swap), newest)


def _of_users(rows: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    return known[known["user_id"].isin(rows["user_id"].unique()).to_numpy()]


def _before(rows: pd.DataFrame, known: pd.DataFrame, columns: list[str], newest: int | None = None) -> list[Ragged]:
    """Each of the columns of `known` in the past of each row, the `newest` of it or all, oldest first."""
    users, names = pd.factorize(known["user_id"])
    # The rank of a time stands for it, so that (user, time) is one sortable number whatever the times are.
    moments = np.sort(known["timestamp"].to_numpy())  # np.unique takes ten times as long on millions of them
    moments = moments[np.append(True, moments[1:] != moments[:-1])[: len(moments)]]
    step = len(moments) + 1
    keys = users.astype(np.int64) * step + np.searchsorted(moments, known["timestamp"].to_numpy())
    order = np.argsort(keys, kind="stable")
    known, keys = known.iloc[order], keys[order]
    first = pd.Index(names).get_indexer(rows["user_id"]).astype(np.int64) * step
    # A user without rows in `known` is -1 among the names: both ends of their slice are 0.
    starts = np.searchsorted(keys, first)
    stops = np.searchsorted(keys, first + np.searchsorted(moments, rows["timestamp"].to_numpy()))

    items, names = pd.factorize(known["item_id"])
    own = pd.Index(names).get_indexer(rows["item_id"])
    again = _count(keys // step * (len(names) + 1) + items, first // step * (len(names) + 1) + own, stops)
    # As many more as are of the row's own item, which are then left out.
    begins = starts if newest is None else np.maximum(starts, stops - newest - again)
    lengths = stops - begins
    row = np.repeat(np.arange(len(rows)), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(begins, lengths)
    if again.any():
        others = items[place] != own[row]
        row, place = row[others], place[others]
    if newest is not None:
        ends = np.cumsum(np.bincount(row, minlength=len(rows)))
        near = ends[row] - np.arange(len(row)) <= newest
        row, place = row[near], place[near]
    offsets = np.append(0, np.cumsum(np.bincount(row, minlength=len(rows))))
    return [Ragged(known[column].to_numpy()[place], offsets) for column in columns]


def _count(pairs: np.ndarray, asked: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """How often each pair asked for is among the first `stops` of the pairs."""
    distinct, ranks = np.unique(pairs, return_inverse=True)
    places = np.sort(ranks * (len(pairs) + 1) + np.arange(len(pairs)))
    rank = np.searchsorted(distinct, asked)
    is_there = np.append(distinct, -1)[rank] == asked
    starts = rank * (len(pairs) + 1)
    return np.where(is_there, np.searchsorted(places, starts + stops) - np.searchsorted(places, starts), 0)
