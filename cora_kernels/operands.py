"""Operands: what x meets in one call of the op."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from cora_kernels.segments import Segments


def is_per_sample(scaling: float | Tensor) -> bool:
    """Whether each sample has a scaling of its own; torch.compile makes a number a tensor without dimensions."""
    return isinstance(scaling, Tensor) and scaling.dim() > 0


class Operands(NamedTuple):
    """y_j = x·W_jᵀ + s·(x·A_j)·B_j + bias_j: n weights [N_j, K], one A for all of them or n, n of B and of bias.

    Each A is [B, K, r] or [K, r], each B [B, r, N_j] or [r, N_j]; scaling is a number or [B]. The segments say which
    rows of x belong to which sample.
    """

    weights: Sequence[Tensor]
    lora_as: Sequence[Tensor]
    lora_bs: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    scaling: float | Tensor
    segments: Segments

    def a_of(self, j: int) -> int:
        """The number of the A that serves weight j."""
        return j % len(self.lora_as)

    def of_each_a(self, terms: Sequence[Tensor]) -> list[Tensor]:
        """Terms of dS, one a weight -> one for every A: their sum where one A serves all weights."""
        return list(terms) if len(self.lora_as) == len(terms) else [sum(terms[1:], terms[0])]
