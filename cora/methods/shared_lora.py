"""One LoRA for all samples: its factors, and the deltas that they are."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cora.llm.deltas import Delta, LinearShape


class SharedLoRA:
    """A [K, r] and B [r, N] of every linear, learned and shared by all samples; a part of a model that is a Module.

    A starts uniform in ±1/√K, B at zero, so that the model starts as the base model (Hu et al., LoRA, ICLR 2022).
    """

    lora_as: nn.ParameterList
    lora_bs: nn.ParameterList

    def make_lora(self, layers: Mapping[str, LinearShape], r: int, device: torch.device) -> None:
        # A list: the name of a module holds dots, that of a parameter may hold none.
        self.lora_as = nn.ParameterList(_uniform(one.in_features, r, device) for one in layers.values())
        self.lora_bs = nn.ParameterList(torch.zeros(r, one.out_features, device=device) for one in layers.values())

    def lora_deltas(self, layers: Mapping[str, LinearShape], scaling: float) -> dict[str, Delta]:
        factors = zip(layers, self.lora_as, self.lora_bs, strict=True)
        return {name: Delta(lora_a, lora_b, scaling) for name, lora_a, lora_b in factors}


def _uniform(width: int, r: int, device: torch.device) -> Tensor:
    return torch.empty(width, r, device=device).uniform_(-1, 1) / math.sqrt(width)
