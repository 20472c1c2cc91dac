"""Prompts: rows of interactions as text, as tokens and as batches."""

from cora.prompts.collate import PromptCollator
from cora.prompts.dataset import PromptDataset
from cora.prompts.encoding import PromptEncoder
from cora.prompts.template import DEFAULT_TEXT, PromptTemplate

__all__ = ["DEFAULT_TEXT", "PromptCollator", "PromptDataset", "PromptEncoder", "PromptTemplate"]
