"""Which examples a row is told of: the most similar of those that are strictly older, as many of each label."""

from typing import NamedTuple

import numpy as np

_ROWS = 2048  # of the matrix of similarities at once
_DECIMALS = 9  # sums of the same products in another order are equal to this many, and then the older example is first


class Examples(NamedTuple):
    """E examples in time order: times int64 [E]; labels int64 [E], 0 or 1; history, target float [E, w], the direction
    of what the user took before and that of the item."""

    times: np.ndarray
    labels: np.ndarray
    history: np.ndarray
    target: np.ndarray


class Retrieved(NamedTuple):
    """places int64 [n, k], which examples, -1 for none; similarities float32 [n, k], 0 for none. The most similar one
    is last, what is not there first."""

    places: np.ndarray
    similarities: np.ndarray


def retrieve(times: np.ndarray, history: np.ndarray, target: np.ndarray, examples: Examples, k: int) -> Retrieved:
    """The k/2 most similar examples of each label to each of n rows, of those with a time before the row's own.

    similarity = ½·<history of row and example> + ½·<target of row and example>. times int64 [n]; history, target
    [n, w] as in `Examples`. An example of the row's own moment, the row itself among them, is none: what it says may
    have been said knowing the row's label. Of equally similar ones the older comes first; fewer than k/2 of a label are
    those alone, however many there are of the other.

    Raises ValueError for an odd or negative k and examples that are not in time order.
    """
    if k < 0 or k % 2:
        raise ValueError(f"k: expected an even number from 0, half of it of each label, got {k}")
    if (np.diff(examples.times) < 0).any():
        raise ValueError("examples: expected in time order")
    places = np.full((len(times), k), -1, dtype=np.int64)
    similarities = np.full((len(times), k), -np.inf)
    older = np.searchsorted(examples.times, times, side="left")
    sides = [np.flatnonzero(examples.labels == label) for label in (0, 1)]
    kinds = [(columns, _doubles(examples.history[columns]), _doubles(examples.target[columns])) for columns in sides]
    for start in range(0, len(times), _ROWS):
        rows = slice(start, start + _ROWS)
        for side, (columns, of_history, of_target) in enumerate(kinds):
            most = int(np.searchsorted(columns, older[rows].max(initial=0)))
            alike = 0.5 * (_doubles(history[rows]) @ of_history[:most].T)
            alike += 0.5 * (_doubles(target[rows]) @ of_target[:most].T)
            alike = np.round(alike, _DECIMALS)
            alike[columns[None, :most] >= older[rows, None]] = -np.inf
            here = slice(side * (k // 2), (side + 1) * (k // 2))
            places[rows, here], similarities[rows, here] = _best(alike, columns, k // 2)
    order = np.lexsort([-places, similarities], axis=1)
    places, similarities = (np.take_along_axis(one, order, 1) for one in (places, similarities))
    return Retrieved(places, np.where(places < 0, 0, similarities).astype(np.float32))


def _best(alike: np.ndarray, columns: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The `most` columns of the highest values in each row, the first of equal ones first; -1 for -inf."""
    places = np.full((len(alike), most), -1, dtype=np.int64)
    values = np.full((len(alike), most), -np.inf)
    rows = np.arange(len(alike))
    for rank in range(min(most, alike.shape[1])):
        best = alike.argmax(1)
        values[:, rank] = alike[rows, best]
        places[:, rank] = np.where(np.isneginf(values[:, rank]), -1, columns[best])
        alike[rows, best] = -np.inf
    return places, values


def _doubles(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors, dtype=np.float64)
