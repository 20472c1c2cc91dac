"""Interactions, splits and histories."""

from cora.data.interactions import Interactions, load_interactions
from cora.data.sources import NAMED_DATA, movielens_100k
from cora.data.splits import Splits, add_histories, split

__all__ = [
    "NAMED_DATA",
    "Interactions",
    "Splits",
    "add_histories",
    "load_interactions",
    "movielens_100k",
    "split",
]
