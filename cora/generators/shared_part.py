"""A part of every delta that no user or item decides: a plain LoRA beside what is generated."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cora.generators.generator import Linears
from cora.generators.shared_p import SharedP
from cora.llm.deltas import Delta


class SharedPart(nn.Module):
    """{linear name: Delta} of rank r -> of rank r0 + r: lora_a [A0 | A] and lora_b [P0 ; P], of one scaling.

    A0 [K, r0] is learned, one for all linears of the input width K, as a generated A is, and starts uniform in ±1/√K;
    P0 [r0, N] of every linear starts at zero. What all samples have in common, the text above all, need not pass
    through the generator then.
    """

    def __init__(self, linears: Linears, r: int, scaling: float) -> None:
        super().__init__()
        widths = sorted({linear.in_features for linear in linears.values()})
        device = next(iter(linears.values())).weight.device
        self.widths = {name: linear.in_features for name, linear in linears.items()}
        self.lora_as = nn.ParameterDict(
            {str(width): torch.empty(width, r, device=device).uniform_(-1, 1) / math.sqrt(width) for width in widths}
        )
        self.p = SharedP(linears, r, scaling)

    def forward(self, deltas: Mapping[str, Delta]) -> dict[str, Delta]:
        own = self.p({name: self.lora_as[str(self.widths[name])] for name in deltas})
        joined: dict[tuple[int, int], Tensor] = {}  # one tensor for all linears that share one, as x·A is computed once
        found = {}
        for name, delta in deltas.items():
            key = id(delta.lora_a), self.widths[name]
            if key not in joined:
                joined[key] = _joined(own[name].lora_a, delta.lora_a, -1)
            found[name] = delta._replace(lora_a=joined[key], lora_b=_joined(own[name].lora_b, delta.lora_b, -2))
        return found


def _joined(shared: Tensor, other: Tensor, dim: int) -> Tensor:
    """A shared matrix and one of all samples, or of each, side by side."""
    if other.dim() == 3:
        shared = shared.expand(len(other), -1, -1)
    return torch.cat([shared.to(other), other], dim)
