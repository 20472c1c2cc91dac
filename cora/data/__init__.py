"""Interactions, splits and histories."""

from cora.data.histories import Ragged, add_histories, liked_before, pasts, with_histories
from cora.data.interactions import Interactions, load_interactions
from cora.data.sources import NAMED_DATA, movielens_100k
from cora.data.splits import Splits, split

__all__ = [
    "NAMED_DATA",
    "Interactions",
    "Ragged",
    "Splits",
    "add_histories",
    "liked_before",
    "load_interactions",
    "movielens_100k",
    "pasts",
    "split",
    "with_histories",
]
