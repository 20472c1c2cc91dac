"""Rows of prompts to one padded batch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptCollator:
    """Items of a `PromptDataset`, or lists of them, → one batch of them all, padded to its longest prompt.

    input_ids, attention_mask: int64 [B, T]; user_ids, item_ids: int64 [B], or lists of str; labels: float32 [B];
    user_vectors, item_vectors [B, d] and prefix_lengths int64 [B] where the items have them.
    A tokenizer without a pad token pads with its end-of-text token: padding is told by the mask alone.
    Raises ValueError for another padding_side than "left" or "right", and for a tokenizer with neither token.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", padding_side: str = "left") -> None:
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side: expected 'left' or 'right', got {padding_side!r}")
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        if pad is None:
            raise ValueError("tokenizer: it has neither a pad token nor an end-of-text token to pad with")
        self.pad_token_id = pad
        self.padding_side = padding_side

    def __call__(self, items: Sequence[dict[str, Any] | list[dict[str, Any]]]) -> dict[str, Any]:
        rows = [row for item in items for row in (item if isinstance(item, list) else [item])]
        longest = max(len(row["input_ids"]) for row in rows)
        input_ids = torch.full((len(rows), longest), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            place = slice(0, length) if self.padding_side == "right" else slice(longest - length, longest)
            input_ids[i, place] = torch.tensor(row["input_ids"])
            attention_mask[i, place] = 1
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "user_ids": _ids([row["user_id"] for row in rows]),
            "item_ids": _ids([row["item_id"] for row in rows]),
            "labels": torch.tensor([row["label"] for row in rows], dtype=torch.float32),
        }
        for name in ("user_vector", "item_vector"):
            if name in rows[0]:
                batch[f"{name}s"] = torch.stack([row[name] for row in rows])
        if "prefix_length" in rows[0]:
            batch["prefix_lengths"] = torch.tensor([row["prefix_length"] for row in rows])
        return batch


def _ids(ids: list) -> "torch.Tensor | list[str]":
    return ids if isinstance(ids[0], str) else torch.tensor(ids)
