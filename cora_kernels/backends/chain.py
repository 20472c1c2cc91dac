"""The *beta=1 chain*: the op on torch's own GEMMs, for every device that torch runs on.

y = bias + S·B is written first and the base GEMM then adds x·Wᵀ to it in place (beta = 1): one pass over y less than
eager; dx likewise. torch has no GEMM of two dtypes, so S, dS, A and B are rounded to the dtype of x here: they are
small, and x is never cast to suit them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cora_kernels.backends import segment_products
from cora_kernels.backends.segment_products import times
from cora_kernels.operands import Operands
from cora_kernels.segments import Segments


def availability() -> str | None:
    return None


def not_supported_reasons(x: Tensor, operands: Operands) -> list[str]:
    return []


def shrink(x: Tensor, a: Tensor, scaling: float | Tensor, segments: Segments) -> Tensor:
    """S = s · x·A in fp32, for d scaling: a sum that cancels, where S rounded to bf16 would break the error rule."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return _scaled(times(x.to(dtype), a.to(dtype), segments), scaling, segments)


def forward(x: Tensor, operands: Operands, s: Sequence[Tensor] | None = None) -> tuple[list[Tensor], list[Tensor]]:
    weights, lora_as, lora_bs, biases, scaling, segments = operands
    if s is None:
        ss = [_scaled(times(x, a.to(x.dtype), segments), scaling, segments) for a in lora_as]
    else:
        ss = [given.to(x.dtype) for given in s]
    ys = []
    for j, (weight, b, bias) in enumerate(zip(weights, lora_bs, biases, strict=True)):
        y = times(ss[operands.a_of(j)], b.to(x.dtype), segments, bias)
        ys.append(y.addmm_(x, weight.t()))
    return ys, ss


def backward_input(
    gs: Sequence[Tensor], operands: Operands, need_dx: bool, ds: Sequence[Tensor] | None = None
) -> tuple[Tensor | None, list[Tensor]]:
    weights, lora_as, lora_bs, _, scaling, segments = operands
    dtype = gs[0].dtype
    if ds is None:
        terms = [times(g, b.to(dtype).transpose(-1, -2), segments) for g, b in zip(gs, lora_bs, strict=True)]
        sums = terms if len(lora_as) == len(terms) else [_summed(terms)]
        dss = [_scaled(d, scaling, segments) for d in sums]
    else:
        dss = [given.to(dtype) for given in ds]
    if not need_dx:
        return None, dss
    dx = _summed([times(d, a.to(dtype).transpose(-1, -2), segments) for d, a in zip(dss, lora_as, strict=True)])
    for g, weight in zip(gs, weights, strict=True):
        dx.addmm_(g, weight)
    return dx, dss


def outer(u: Tensor, v: Tensor, segments: Segments, per_sample: bool, dtype: torch.dtype) -> Tensor:
    if u.dtype != v.dtype:  # one of them is S or dS in fp32
        common = v.dtype if u.dtype == torch.float32 else u.dtype
        u, v = u.to(common), v.to(common)
    return segment_products.outer(u, v, segments, per_sample).to(dtype)


def _scaled(rows: Tensor, scaling: float | Tensor, segments: Segments) -> Tensor:
    return rows.mul_(segments.per_row(scaling) if isinstance(scaling, Tensor) else scaling)


def _summed(terms: Sequence[Tensor]) -> Tensor:
    """Into the first of them, which keeps no second copy of [M, K] alive."""
    for term in terms[1:]:
        terms[0].add_(term)
    return terms[0]
