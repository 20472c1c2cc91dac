"""Interactions, splits and histories."""

from cora.data.cold_items import with_cold_items
from cora.data.histories import Ragged, add_histories, liked_before, pasts, with_histories
from cora.data.interactions import Interactions, load_interactions
from cora.data.recipes import RECIPES
from cora.data.sources import NAMED_DATA, movielens_1m, movielens_100k
from cora.data.splits import Splits, earliest, split

__all__ = [
    "NAMED_DATA",
    "RECIPES",
    "Interactions",
    "Ragged",
    "Splits",
    "add_histories",
    "earliest",
    "liked_before",
    "load_interactions",
    "movielens_100k",
    "movielens_1m",
    "pasts",
    "split",
    "with_cold_items",
    "with_histories",
]
