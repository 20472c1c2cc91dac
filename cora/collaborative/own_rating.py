"""Vectors of items without what a row says of them: training rows are judged by others' ratings alone."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cora.collaborative.embeddings import CollaborativeEmbeddings
from cora.data.histories import raters

_MOST_STEPS = 100  # Newton's steps take about ten
_CLOSE = 1e-6
_MOST_RATERS = (
    4096  # more than any item of MovieLens-1M has; the bias of a more popular one does not hang on one of them
)
_ROWS_AT_ONCE = 1 << 16  # pairs whose vectors are gathered at once


def items_without_own_rating(embeddings: CollaborativeEmbeddings, rows: pd.DataFrame, train: pd.DataFrame) -> Tensor:
    """e_i [rows, d] of each row's item as it would be without what the row's user said of it, in the tables' dtype.

    e_i + (c - c'), in the column of the items' bias alone: c the mode of log N(c; μ, σ²) + Σ_t log σ(±(s_t + c)) over
    the item's ratings t in `train` by others, c' that over all its ratings, s_t = <e_u, e_i> less the bias, μ and σ² of
    the biases' table. A vector has seen the label of every row that it was trained on: what is trained on top of it
    learns to trust it too much.

    rows: user_id, item_id; train: what the embeddings were trained on, those and label and timestamp. Its rows of
    users or items that the embeddings do not have are left out: they have seen none of them. Embeddings without a
    bias of the items, beside a column that is 1 in all users, are given as they are.
    """
    found = embeddings.item_table[embeddings.lookup_items(rows["item_id"].tolist())]
    biases = (
        ((embeddings.users == 1).all(0) & (embeddings.items.amax(0) > embeddings.items.amin(0))).nonzero().flatten()
    )
    if not len(biases):
        return found
    bias = int(biases[-1])
    seen = train["user_id"].isin(embeddings.user_ids) & train["item_id"].isin(embeddings.item_ids)
    everyone = rows.drop_duplicates("item_id").assign(user_id=None)
    both = pd.concat([frame[["user_id", "item_id"]].astype({"user_id": object}) for frame in (everyone, rows)])
    modes = _biases(embeddings, both, train[seen.to_numpy()], bias)
    place = pd.Index(everyone["item_id"]).get_indexer(rows["item_id"])
    found[:, bias] += torch.from_numpy(modes[len(everyone) :] - modes[place]).to(found.dtype)
    return found


def _biases(embeddings: CollaborativeEmbeddings, rows: pd.DataFrame, train: pd.DataFrame, bias: int) -> np.ndarray:
    """The mode of the bias of each row's item, given what others than the row's user said of it, by Newton's steps."""
    users, labels = raters(rows, train, _MOST_RATERS)
    row = np.repeat(np.arange(len(rows)), np.diff(users.offsets))
    rest = _logits_without(embeddings, users.values, rows["item_id"].to_numpy(), row, bias)
    table = embeddings.items[:, bias].double()
    mean, variance = float(table.mean()), float(table.var(correction=0))
    found = np.full(len(rows), mean)
    for _ in range(_MOST_STEPS):
        liked = 0.5 + 0.5 * np.tanh(0.5 * (rest + found[row]))
        slope = np.bincount(row, labels.values - liked, minlength=len(rows)) - (found - mean) / variance
        curvature = np.bincount(row, liked * (1 - liked), minlength=len(rows)) + 1 / variance
        step = np.clip(slope / curvature, -1, 1)  # far from the mode the curve is flat, and a whole step too long
        found += step
        if np.abs(step).max(initial=0) < _CLOSE:
            break
    return found


def _logits_without(
    embeddings: CollaborativeEmbeddings, user_ids: np.ndarray, item_ids: np.ndarray, item: np.ndarray, bias: int
) -> np.ndarray:
    """<e_u, e_i> less the bias of the item, of n pairs: users, and the place of each one's item among the items."""
    user, known = pd.factorize(user_ids)
    e_u = embeddings.user_table[embeddings.lookup_users(known.tolist())].double()
    e_i = embeddings.item_table[embeddings.lookup_items(item_ids.tolist())].double()
    e_i[:, bias] = 0
    found = np.empty(len(user))
    for start in range(0, len(user), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        found[some] = (e_u[torch.from_numpy(user[some])] * e_i[torch.from_numpy(item[some])]).sum(1).numpy()
    return found
