"""Which items of a past speak to the item asked about: those whose vectors point its way."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from cora.collaborative.fitting import row_of

_DIGITS = 9  # of a similarity


class Directions(NamedTuple):
    """Where the vectors of n items point, so that the inner product of two is their similarity, from -1 to 1.

    item_ids: n of them. units: float64 [n + 1, d], of length one, or zero for a vector that is the mean of all; zero in
    the row after the last, of items that have no vector.
    """

    item_ids: list[Any]
    units: np.ndarray

    @classmethod
    def of(cls, item_ids: Sequence[Any], vectors: Tensor) -> "Directions":
        """Of vectors [n, d] each column less its mean and divided by its deviation over the items: a bias has no more
        weight than a factor then, and a constant column none."""
        table = vectors.double().numpy()
        deviations = table.std(0)
        scale = np.abs(table).max(0)
        varies = deviations > 1e-6 * np.where(scale > 0, scale, 1.0)
        standard = np.where(varies, (table - table.mean(0)) / np.where(varies, deviations, 1.0), 0.0)
        norms = np.linalg.norm(standard, axis=1, keepdims=True)
        units = np.divide(standard, norms, where=norms > 0, out=np.zeros_like(standard))
        return cls(list(item_ids), np.vstack([units, np.zeros(table.shape[1])]))

    def beside(self, other: "Directions") -> "Directions":
        """Of the items of both, so that a similarity is the mean of theirs; that of an item which only one of them
        has is half of that one's."""
        item_ids = list(dict.fromkeys([*self.item_ids, *other.item_ids]))
        halves = [one.units[[*row_of(one.item_ids, np.asarray(item_ids)).tolist(), -1]] for one in (self, other)]
        return Directions(item_ids, np.sqrt(0.5) * np.hstack(halves))


def most_similar(
    histories: Sequence[Sequence[Any]], asked: Sequence[Any], directions: Directions, most: int
) -> list[list[int]]:
    """Of each of n histories the places of the `most` items most similar to asked[n], the most similar first.

    Where similarities are equal the later item is taken, so that an item asked about without a vector, whose similarity
    is 0 to all, has the newest items of the history.

    Raises ValueError for another number of histories than of items asked about, and for most < 0.
    """
    if most < 0:
        raise ValueError(f"most: expected at least 0, got {most}")
    rows = row_of(directions.item_ids, np.asarray(asked)).numpy()
    if len(rows) != len(histories):
        raise ValueError(f"histories: expected {len(rows)}, one for each item asked about, got {len(histories)}")
    whole = row_of(directions.item_ids, np.asarray([item for history in histories for item in history])).numpy()
    ends = np.cumsum([len(history) for history in histories])
    found = []
    for history, row, end in zip(histories, rows, ends, strict=True):
        similarity = directions.units[whole[end - len(history) : end]] @ directions.units[row]
        # By similarity, then by place from the end: for one item twice the last bits of a product may differ.
        found.append(np.lexsort((-np.arange(len(history)), -similarity.round(_DIGITS)))[:most].tolist())
    return found
