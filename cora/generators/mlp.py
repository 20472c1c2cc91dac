"""A small generator, for small data."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from cora.config import CoRAConfig
from cora.generators.heads import LoRAHeads


class MLPGenerator(nn.Module):
    """A = l2norm(Linear(dropout(gelu(Linear(layernorm([e_u; e_i; e_u * e_i])) + affinity · w))))

    e_u, e_i [B, d], affinity [B] -> {width: lora_a [B, width, r]}. At the start A follows the affinity, the best single
    guess at what the user likes: the vectors' share is a tenth of a usual Linear's and grows as it proves of use.
    """

    def __init__(self, config: CoRAConfig, dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.vectors = nn.Sequential(nn.LayerNorm(3 * dim), nn.Linear(3 * dim, config.hidden_size))
        with torch.no_grad():
            cast(nn.Linear, self.vectors[1]).weight.mul_(0.1)
        self.affinity = nn.Linear(1, config.hidden_size, bias=False)
        self.activation = nn.Sequential(nn.GELU(), nn.Dropout(config.generator_dropout))
        self.heads = LoRAHeads(config.hidden_size, widths, config.r)

    def forward(self, e_u: Tensor, e_i: Tensor, affinity: Tensor) -> dict[int, Tensor]:
        hidden = self.vectors(torch.cat([e_u, e_i, e_u * e_i], dim=-1)) + self.affinity(affinity[:, None])
        heads: dict[int, Tensor] = self.heads(self.activation(hidden))
        return heads
