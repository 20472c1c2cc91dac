"""The second factor of the generators that make A alone: one learned P for every linear, shared by all samples."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cora.generators.generator import Linears
from cora.llm.deltas import Delta


class SharedP(nn.Module):
    """{linear name: lora_a [B, K, r]} -> {linear name: Delta(lora_a, P [r, N], scaling)}, P zero at the start, fp32."""

    def __init__(self, linears: Linears, r: int, scaling: float) -> None:
        super().__init__()
        self.scaling = scaling
        self.matrices = nn.ParameterDict(
            {
                _key(name): nn.Parameter(torch.zeros(r, linear.out_features, device=linear.weight.device))
                for name, linear in linears.items()
            }
        )

    def forward(self, lora_as: Mapping[str, Tensor]) -> dict[str, Delta]:
        return {name: Delta(lora_a, self.matrices[_key(name)], self.scaling) for name, lora_a in lora_as.items()}


def _key(name: str) -> str:
    """A module's name as the name of a parameter, which may hold no dot."""
    return name.replace(".", "/")
