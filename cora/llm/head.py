"""The LM head at one position and for a few vocabulary rows."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cora.llm.calls import Calls


class AnswerHead(nn.Module):
    """Stands for the output layer `head` of a causal LM: logits of the tokens `ids` at one position per sample.

    hidden [B, T, h], or [1, M, h] where the samples are packed -> [B, 1, n], of the rows of hidden that the call names
    as its answers, in fp32: bf16 logits of 16 are 1/8 apart, which would tie scores. Whatever the model does to its
    logits afterwards (scaling, soft capping) it then does to these. A call with a readout has n logits of that, without
    a bias, in place of those of `ids`. In a call that names no answers it is `head` itself, so that generation sees the
    whole vocabulary. Weight and bias are here by the names that they had in `head`.
    """

    ids: Tensor

    def __init__(self, head: nn.Linear, ids: Sequence[int], calls: Calls) -> None:
        super().__init__()
        self.weight = cast(nn.Parameter, head.weight)
        self.bias = cast("nn.Parameter | None", head.bias)
        self.calls = calls
        self.training = head.training
        self._head = (head,)  # in a tuple: it is no part of the model meanwhile
        self.register_buffer("ids", torch.tensor(ids, device=head.weight.device), persistent=False)

    @property
    def head(self) -> nn.Linear:
        """The output layer that this one stands for, with the weight and the bias that are here now."""
        head = self._head[0]
        head._parameters["weight"], head._parameters["bias"] = self.weight, self.bias
        return head

    def forward(self, hidden: Tensor) -> Tensor:
        call = self.calls.current()
        if call is None or call.answers is None:
            return functional.linear(hidden, self.weight, self.bias)
        last = hidden.flatten(0, 1)[call.answers]
        with torch.autocast(hidden.device.type, enabled=False):
            if call.readout is not None:
                return (last.float() * call.readout.float()).sum(-1)[:, None, None]
            bias = None if self.bias is None else self.bias[self.ids].float()
            return functional.linear(last.float(), self.weight[self.ids].float(), bias)[:, None]
