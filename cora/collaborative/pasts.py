"""What users rated, as rows of tables: the form that every encoder of users reads."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cora.collaborative.embeddings import CollaborativeEmbeddings, Ids
from cora.data.histories import Ragged

# Of n users what each rated, and 1 or 0 for each of it; the item that each is asked about, or none.
PastItems: TypeAlias = Ragged | Sequence[Ids]
PastLabels: TypeAlias = Ragged | Sequence[Sequence[int]]
Asked: TypeAlias = Sequence[int] | Sequence[str] | None


class Pasts(NamedTuple):
    """Pasts of n users, oldest first, one behind the other: items, their rows, and labels, int64 [all]; that of user i
    is at offsets[i] to offsets[i + 1], int64 [n + 1]."""

    items: Tensor
    labels: Tensor
    offsets: Tensor

    @property
    def lengths(self) -> Tensor:
        """int64 [n]."""
        return self.offsets.diff()

    def newest(self, users: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """Items and labels [b, t] of these users' newest `most` rows, padded on the left, and which of them are there,
        bool [b, t]; t is the longest of the pasts."""
        stops = self.offsets[users + 1]
        lengths = (stops - self.offsets[users]).clamp(max=most)
        back = torch.arange(int(lengths.max()) if len(users) else 0, 0, -1)
        there = back <= lengths[:, None]
        # What is not there is any element at hand; where all pasts are empty t is 0, and nothing is read.
        places = torch.where(there, stops[:, None] - back, 0)
        return self.items[places], self.labels[places], there


def pasts_of(embeddings: CollaborativeEmbeddings, items: PastItems, labels: PastLabels) -> Pasts:
    """The pasts of users by the rows of the embeddings' items. Raises ValueError for lists of different lengths."""
    lengths = [len(one) for one in items]
    if lengths != [len(one) for one in labels]:
        raise ValueError("labels: expected one for each of the items of every user")
    offsets = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
    flat = torch.from_numpy(_together(labels).astype(np.int64))
    return Pasts(_rows_of_items(embeddings, items), flat, offsets)


def _rows_of_items(embeddings: CollaborativeEmbeddings, items: Ragged | Sequence[Ids]) -> Tensor:
    """The rows of all items, one user's behind the other's: each distinct item is looked up once."""
    places, distinct = pd.factorize(_together(items))
    return embeddings.lookup_items(distinct.tolist())[torch.from_numpy(places)]


def _together(lists: Ragged | Sequence[Any]) -> np.ndarray:
    """All values in one array."""
    if isinstance(lists, Ragged):
        return lists.values
    values = [value for one in lists for value in (one.tolist() if isinstance(one, Tensor) else one)]
    return np.array(values, dtype=object if values and isinstance(values[0], str) else np.int64)
