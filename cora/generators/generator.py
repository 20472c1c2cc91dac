"""What every generator is: its options, what it reads, what it gives."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from cora.llm.deltas import Delta, LinearShape

Linears = Mapping[str, LinearShape]


class Generator(nn.Module):
    """(e_u, e_i, affinity) -> {linear name: Delta}, for every linear that the language model is adapted in.

    A generator is built as Generator(options, dim, linears, r, scaling): an instance of its own `Options`, the width d
    of the vectors, the adapted linears by name, the rank and the scaling of the deltas. Its forward takes what `Pairs`
    gives, e_u [B, d], e_i [B, d] and affinity [B], fp32. In the deltas lora_a is [B, K, r] or, shared by all samples,
    [K, r], lora_b [B, r, N] or [r, N]. At the start every delta is zero, and a gradient reaches it all the same: one of
    the two factors is zero, not both.
    """

    Options: ClassVar[type[Any]]

    def __init__(self, options: Any, dim: int, linears: Linears, r: int, scaling: float) -> None:
        super().__init__()
        self.options = options
        self.r = r
        self.scaling = scaling

    def forward(self, e_u: Tensor, e_i: Tensor, affinity: Tensor) -> dict[str, Delta]:
        raise NotImplementedError

    def weights(self, e_u: Tensor, e_i: Tensor, affinity: Tensor) -> dict[str, Tensor]:
        """{linear name: α [B, n]}: how much of each of n learned LoRAs every sample gets, of a generator that mixes
        some; none of the others."""
        return {}

    def spread(self, e_u: Tensor, e_i: Tensor, affinity: Tensor) -> dict[str, float]:
        """What tells, by name, whether what is generated has become one and the same for all pairs; nothing of a
        generator that does not say."""
        return {}
