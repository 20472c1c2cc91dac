"""The backend "concat": y = [x | S]·[W | Bᵀ]ᵀ + bias, one product of torch's GEMM, where the batch shares one B.

No second pass over y, at the price of a copy of x, once for all projections of a group: so it wins where they are wide
together. No kernel of its own in the main loop: it runs on every device. `wide_weights` makes the room that Bᵀ is
written into; without it, W is copied in every call. S and all of the backward are computed by the backend that serves
the device.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from cora_kernels.backends import extension
from cora_kernels.backends.wide_weights import beside, padded
from cora_kernels.operands import Operands
from cora_kernels.segments import Segments


def availability() -> str | None:
    return None


def not_supported_reasons(x: Tensor, operands: Operands) -> list[str]:
    return [
        f"lora_b must be shared by the batch, [r, N], got {list(b.shape)}" for b in operands.lora_bs if b.dim() == 3
    ]


class Concat:
    """The functions of a backend: this forward, and of the rest those of another one."""

    def __init__(self, rest: ModuleType) -> None:
        self.shrink, self.backward_input, self.outer = rest.shrink, rest.backward_input, rest.outer
        self.shrink_outer = getattr(rest, "shrink_outer", None)
        self.shrink_beside = getattr(rest, "shrink_beside", self._shrink_beside)

    def forward(
        self, x: Tensor, operands: Operands, s: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        lora_as, scaling, segments = operands.lora_as, operands.scaling, operands.segments
        if torch.compiler.is_compiling():
            ss = [self.shrink(x, a, scaling, segments) for a in lora_as] if s is None else list(s)
            return extension.forward(torch.ops.cora_kernels.concat_forward, x, operands, ss)[0], ss
        if s is not None:
            return _of_given_s(x, operands, s)
        wide_x = _with_room(x, operands)
        ss = [self.shrink_beside(x, lora_as[0], scaling, segments, wide_x)]
        ss += [self.shrink(x, a, scaling, segments) for a in lora_as[1:]]
        return _products(wide_x, operands, ss), ss

    def _shrink_beside(self, x: Tensor, a: Tensor, scaling: float | Tensor, segments: Segments, wide: Tensor) -> Tensor:
        s = self.shrink(x, a, scaling, segments)
        wide[:, : x.shape[1]].copy_(x)
        _put(s, wide[:, x.shape[1] :])
        return s


def _with_room(x: Tensor, operands: Operands) -> Tensor:
    """[M, K + p], nothing in it yet."""
    return x.new_empty(x.shape[0], x.shape[1] + max(padded(b.shape[0]) for b in operands.lora_bs))


def _put(s: Tensor, room: Tensor) -> None:
    """S [M, r], and zeros behind it, into [M, p]."""
    room[:, : s.shape[1]].copy_(s)
    room[:, s.shape[1] :].zero_()


def _products(wide_x: Tensor, operands: Operands, ss: Sequence[Tensor]) -> list[Tensor]:
    """Each y, from a wide x that holds x and the first S."""
    ys = []
    for j, (weight, b, bias) in enumerate(zip(operands.weights, operands.lora_bs, operands.biases, strict=True)):
        if 0 < j < len(ss):
            _put(ss[j], wide_x[:, weight.shape[1] :])
        with beside(weight, b) as wide:
            ys.append(F.linear(wide_x[:, : wide.shape[1]], wide, bias))
    return ys


def _of_given_s(x: Tensor, operands: Operands, ss: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    wide_x = _with_room(x, operands)
    wide_x[:, : x.shape[1]].copy_(x)
    _put(ss[0], wide_x[:, x.shape[1] :])
    return _products(wide_x, operands, ss), list(ss)


# An op, as P is written into memory that torch.compile sees only the weight of.
extension.define_ops("concat", {"forward": _of_given_s})
