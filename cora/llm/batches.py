"""What a call of the model is given: its checks, and what follows from the attention mask."""

from typing import NamedTuple

import torch
from torch import Tensor


def check_prompts(input_ids: Tensor, attention_mask: Tensor) -> None:
    """Raises ValueError naming the argument that does not fit the other: prompts [B, T] padded on either side."""
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids: expected [B, T], got {list(input_ids.shape)}")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask: expected the shape of input_ids {list(input_ids.shape)}, got {list(attention_mask.shape)}"
        )
    if not bool(attention_mask.any(1).all()):
        row = int((~attention_mask.any(1)).nonzero()[0])
        raise ValueError(f"attention_mask: row {row} is all zero, a prompt without tokens")
    if not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
        raise ValueError("attention_mask: expected 0 and 1 only")


def check_labels(labels: Tensor, batch: int) -> None:
    """Raises ValueError unless the labels are 0 or 1, one for each of `batch` prompts."""
    if labels.shape != (batch,):
        raise ValueError(f"labels: expected [{batch}], one per row of input_ids, got {list(labels.shape)}")
    if not bool(((labels == 0) | (labels == 1)).all()):
        other = labels[(labels != 0) & (labels != 1)][0].item()
        raise ValueError(f"labels: expected 0 and 1 only, got {other}")


class Prompts(NamedTuple):
    """Tokens as the base model gets them, and where the answers are read.

    Packed: input_ids and position_ids [1, M], cu_seqlens int32 [B + 1]. Else input_ids [B, T], padded on the right.
    last: the last token of each prompt [B], as a row of the hidden states [B · T, h] or [M, h].
    """

    input_ids: Tensor
    last: Tensor
    position_ids: Tensor | None = None
    cu_seqlens: Tensor | None = None

    @classmethod
    def packed(cls, input_ids: Tensor, attention_mask: Tensor) -> "Prompts":
        used = attention_mask.bool()
        lengths = used.sum(1)
        ends = lengths.cumsum(0)
        positions = torch.arange(int(ends[-1]), device=ends.device) - (ends - lengths).repeat_interleave(lengths)
        cu_seqlens = torch.cat([ends.new_zeros(1), ends]).int()
        return cls(input_ids[used][None], ends - 1, positions[None], cu_seqlens)

    @classmethod
    def padded(cls, input_ids: Tensor, attention_mask: Tensor) -> "Prompts":
        """The tokens that are no padding first, in their order: no causal position sees the padding then, so attention
        needs no mask, and positions count from 0."""
        order = attention_mask.argsort(dim=1, descending=True, stable=True)
        batch, width = input_ids.shape
        starts = torch.arange(batch, device=order.device) * width
        return cls(input_ids.gather(1, order), starts + attention_mask.long().sum(1) - 1)
