"""A small generator, for small data."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cora.config import CoRAConfig
from cora.generators.heads import LoRAHeads


class MLPGenerator(nn.Module):
    """A = l2norm(Linear(dropout(gelu(Linear(layernorm([e_u; e_i; e_u * e_i]))))))

    e_u, e_i [B, d] -> {width: lora_a [B, width, r]}. The product is what matrix factorisation scores a pair by.
    """

    def __init__(self, config: CoRAConfig, dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.LayerNorm(3 * dim),
            nn.Linear(3 * dim, config.hidden_size),
            nn.GELU(),
            nn.Dropout(config.generator_dropout),
        )
        self.heads = LoRAHeads(config.hidden_size, widths, config.r)

    def forward(self, e_u: Tensor, e_i: Tensor) -> dict[int, Tensor]:
        heads: dict[int, Tensor] = self.heads(self.hidden(torch.cat([e_u, e_i, e_u * e_i], dim=-1)))
        return heads
