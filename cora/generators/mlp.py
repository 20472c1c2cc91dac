"""A small generator, for small data."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cora.checks import check_int, check_share
from cora.generators.generator import Generator, Linears
from cora.generators.heads import LoRAHeads
from cora.llm.deltas import Delta


@dataclass
class MLPOptions:
    """hidden_size        width of the hidden layer
    generator_dropout  of the hidden layer, in training
    """

    hidden_size: int = 256
    generator_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_int("hidden_size", self.hidden_size, at_least=1)
        check_share("generator_dropout", self.generator_dropout)


class MLPGenerator(Generator):
    """A = l2norm(Linear(dropout(gelu(Linear(layernorm([e_u; e_i])) + affinity · w)))), P shared.

    At the start half of what the hidden layer receives is the affinity, the best single guess there is at what the user
    likes. Of the products e_u * e_i it is all that is read: each alone fits the ratings that shaped e_i (6,400 ratings
    of MovieLens-100k, an MLP on the vectors without a language model: with them AUC .731 on the validation rows,
    without .734, by the affinity alone .739).
    """

    Options = MLPOptions

    def __init__(self, options: MLPOptions, dim: int, linears: Linears, r: int, scaling: float) -> None:
        super().__init__(options, dim, linears, r, scaling)
        self.vectors = nn.Sequential(nn.LayerNorm(2 * dim), nn.Linear(2 * dim, options.hidden_size))
        self.affinity = nn.Linear(1, options.hidden_size, bias=False)
        self.activation = nn.Sequential(nn.GELU(), nn.Dropout(options.generator_dropout))
        self.heads = LoRAHeads(options.hidden_size, linears, r, scaling)

    def forward(self, e_u: Tensor, e_i: Tensor, affinity: Tensor) -> dict[str, Delta]:
        hidden = self.vectors(torch.cat([e_u, e_i], dim=-1)) + self.affinity(affinity[:, None])
        deltas: dict[str, Delta] = self.heads(self.activation(hidden))
        return deltas
