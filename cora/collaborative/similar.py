"""Which items of a past speak to the item asked about: those whose vectors point its way."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cora.collaborative.embeddings import CollaborativeEmbeddings
from cora.collaborative.fitting import row_of


def most_similar(
    histories: Sequence[Sequence[Any]], asked: Sequence[Any], embeddings: CollaborativeEmbeddings, most: int
) -> list[list[Any]]:
    """Of each of n histories the `most` items most similar to asked[n], in the order that they have there.

    Similarity is the cosine of the items' vectors, each column less its mean and divided by its deviation over the
    items: a bias has no more weight than a factor, a constant column none. Where similarities are equal the later item
    is taken, so that one without a vector, whose similarity is 0 to all, has the newest items of the history.

    Raises ValueError for another number of histories than of items asked about, and for most < 0.
    """
    if most < 0:
        raise ValueError(f"most: expected at least 0, got {most}")
    rows = row_of(embeddings.item_ids, np.asarray(asked)).numpy()
    if len(rows) != len(histories):
        raise ValueError(f"histories: expected {len(rows)}, one for each item asked about, got {len(histories)}")
    directions = _directions(embeddings)
    whole = row_of(embeddings.item_ids, np.asarray([item for history in histories for item in history])).numpy()
    ends = np.cumsum([len(history) for history in histories])
    found = []
    for history, row, end in zip(histories, rows, ends, strict=True):
        similarity = directions[whole[end - len(history) : end]] @ directions[row]
        # By similarity, and by place from the end among equals.
        best = np.lexsort((-np.arange(len(history)), -similarity))[:most]
        found.append([history[place] for place in np.sort(best)])
    return found


def _directions(embeddings: CollaborativeEmbeddings) -> np.ndarray:
    """Unit vectors [I + 1, d] of the items; zero for the mean item, in the row after the last."""
    items = embeddings.items.double().numpy()
    deviations = items.std(0)
    scale = np.abs(items).max(0)
    varies = deviations > 1e-6 * np.where(scale > 0, scale, 1.0)
    standard = np.where(varies, (items - items.mean(0)) / np.where(varies, deviations, 1.0), 0.0)
    norms = np.linalg.norm(standard, axis=1, keepdims=True)
    return np.vstack(
        [np.divide(standard, norms, where=norms > 0, out=np.zeros_like(standard)), np.zeros(items.shape[1])]
    )
