"""Rows of interactions as the numbers that the model reads."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from cora.data import Splits, pasts

_YEAR = re.compile(r"\((\d{4})\)\s*$")
_FIRST_DECADE = 1890
DECADES = 16  # that of no year, and those from 1890 on
_MOST_GENRES = 100  # the commonest; all that MovieLens has


class Rows(NamedTuple):
    """N rows: user, item int64 [N], 0 for unknown ones; past int64 [N, H], what the user rated at an earlier time, the
    newest H of it on the right, and rated float [N, H], 1 where it was liked, -1 where not, 0 where nothing is."""

    user: Tensor
    item: Tensor
    past: Tensor
    rated: Tensor

    def of(self, rows: Tensor) -> "Rows":
        return Rows(*(one[rows] for one in self))


@dataclass(frozen=True)
class Catalogue:
    """Users and items by row, of which 0 stands for an unknown one.

    user_ids, item_ids: of the rows from 1 on. trained: bool [I + 1], which items have a training row, and so a vector
    of their own; decade int64 [I + 1]; genres float [I + 1, G], shares that sum to 1 or are all 0; texts fp32
    [I + 1, w], of their text, w 0 where there are none.
    """

    user_ids: list[Any]
    item_ids: list[Any]
    trained: Tensor
    decade: Tensor
    genres: Tensor
    texts: Tensor

    @classmethod
    def of(
        cls,
        train: pd.DataFrame,
        titles: Mapping[Any, str],
        genres: Mapping[Any, Sequence[str]],
        texts: tuple[Sequence[Any], Tensor] | None,
    ) -> "Catalogue":
        """The users of train, and every item that has a title. texts: item ids and vectors; of those that are not
        among them the vector is 0."""
        items = list(titles)
        trained = np.append(False, pd.Series(items, dtype=object).isin(train["item_id"].unique()))
        counts = pd.Series([genre for item in items for genre in genres.get(item, ())], dtype=object).value_counts()
        names = sorted(counts.index[:_MOST_GENRES])
        shares = torch.zeros(len(items) + 1, len(names))
        column = {name: place for place, name in enumerate(names)}
        for row, item in enumerate(items, 1):
            shares[row, [column[genre] for genre in genres.get(item, ()) if genre in column]] = 1.0
        vectors = torch.zeros(len(items) + 1, 0)
        if texts is not None:
            place = pd.Index(texts[0]).get_indexer(pd.Index(items))
            vectors = torch.zeros(len(items) + 1, texts[1].shape[1])
            vectors[1:][torch.from_numpy(place >= 0)] = texts[1][torch.from_numpy(place[place >= 0])]
        decades = torch.tensor([0, *(_decade(titles[item]) for item in items)])
        shares = functional.normalize(shares, p=1, dim=1)
        user_ids = sorted(train["user_id"].unique().tolist())
        return cls(user_ids, items, torch.from_numpy(trained), decades, shares, vectors)

    def rows(self, frame: pd.DataFrame, splits: Splits, most: int) -> Rows:
        """The rows of a frame (user_id, item_id, timestamp), each with what its user rated before in any part."""
        known = splits.of_users(frame["user_id"])
        items, labels = pasts(frame, known, most)
        lengths = np.diff(items.offsets)
        row = np.repeat(np.arange(len(frame)), lengths)
        column = np.arange(len(row)) - np.repeat(items.offsets[:-1], lengths) + np.repeat(most - lengths, lengths)
        past = torch.zeros(len(frame), most, dtype=torch.int64)
        rated = torch.zeros(len(frame), most)
        past[row, column] = self.item_rows(items.values)
        rated[row, column] = torch.from_numpy(2.0 * labels.values - 1).float()
        users = torch.from_numpy(pd.Index(self.user_ids).get_indexer(frame["user_id"]) + 1)
        return Rows(users, self.item_rows(frame["item_id"]), past, rated)

    def item_rows(self, ids: pd.Series | np.ndarray) -> Tensor:
        """int64 [n], 0 for unknown ones."""
        return torch.from_numpy(pd.Index(self.item_ids).get_indexer(ids) + 1)

    def directions(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """What retrieval compares, [N, w] each: the direction of the mean vector of the liked part of each row's past,
        0 for none, and the vector of its item."""
        liked = (rows.rated > 0).float()
        mean = functional.embedding_bag(rows.past, self.texts, mode="sum", per_sample_weights=liked)
        return functional.normalize(mean, dim=1).numpy(), self.texts[rows.item].numpy()


def _decade(title: str) -> int:
    found = _YEAR.search(title)
    place = (int(found[1]) - _FIRST_DECADE) // 10 + 1 if found else 0
    return min(max(place, 0), DECADES - 1)
