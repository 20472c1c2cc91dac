"""The LM head at one position and for a few vocabulary rows."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class AnswerHead(nn.Module):
    """Stands for the output layer `head` of a causal LM: logits of the tokens `ids` at one position per sample.

    hidden [B, T, h], or [1, M, h] where the samples are packed, and rows [B] of hidden as [B · T, h] -> [B, 1, n], in
    fp32: bf16 logits of 16 are 1/8 apart, which would tie scores. Whatever the model does to its logits afterwards
    (scaling, soft capping) it then does to these. While `rows` is None it is `head` itself, so that generation sees the
    whole vocabulary.
    """

    ids: Tensor

    def __init__(self, head: nn.Linear, ids: Sequence[int]) -> None:
        super().__init__()
        self.head = head
        self.rows: Tensor | None = None
        self.register_buffer("ids", torch.tensor(ids, device=head.weight.device), persistent=False)

    @property
    def weight(self) -> Tensor:
        return self.head.weight

    @property
    def bias(self) -> Tensor | None:
        return cast("Tensor | None", self.head.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.rows is None:
            return cast(Tensor, self.head(hidden))
        last = hidden.flatten(0, 1)[self.rows]
        bias = None if self.bias is None else self.bias[self.ids].float()
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(last.float(), self.weight[self.ids].float(), bias)[:, None]
