"""Interactions, splits, histories and prompts."""

from cora.data.collate import PromptCollator
from cora.data.formats import NAMED_DATA, Interactions, load_interactions
from cora.data.prompts import PromptDataset, PromptTemplate
from cora.data.sources import movielens_100k, smollm2_135m
from cora.data.splits import Splits, add_histories, split

__all__ = [
    "NAMED_DATA",
    "Interactions",
    "PromptCollator",
    "PromptDataset",
    "PromptTemplate",
    "Splits",
    "add_histories",
    "load_interactions",
    "movielens_100k",
    "smollm2_135m",
    "split",
]
