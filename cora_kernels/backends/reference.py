"""The definition of the op in readable torch, and the oracle of every other backend.

    S = s · x·A              dS = s · g·Bᵀ
    y = x·Wᵀ + S·B + bias    dx = g·W + dS·Aᵀ      dA = xᵀ·dS      dB = Sᵀ·g

x [M, K], g and y [M, N], W [N, K]; A [B, K, r] or [K, r]; B [B, r, N] or [r, N]; S and dS [M, r]. Sample i owns the
rows of segment i. Everything is computed and summed in fp32 (fp64 for fp64 inputs) and rounded once, at the end.
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
    """S = s · x·A, [M, r]."""
    accumulator = _accumulator(x)
    if isinstance(scaling, Tensor):
        scaling = segments.per_row(scaling.to(accumulator))
    return scaling * times(x.to(accumulator), a.to(accumulator), segments)


def forward(x: Tensor, operands: Operands, s: Sequence[Tensor] | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """y_j = x·W_jᵀ + S_j·B_j + bias_j and every S, computed unless it is given."""
    weights, lora_as, lora_bs, biases, scaling, segments = operands
    accumulator = _accumulator(x)
    ss = [shrink(x, a, scaling, segments) for a in lora_as] if s is None else list(s)
    ys = []
    for j, (weight, b, bias) in enumerate(zip(weights, lora_bs, biases, strict=True)):
        delta = times(ss[operands.a_of(j)], b.to(accumulator), segments)
        y = x.to(accumulator) @ weight.to(accumulator).t() + delta
        ys.append((y if bias is None else y + bias).to(x.dtype))
    return ys, ss


def backward_input(
    gs: Sequence[Tensor], operands: Operands, need_dx: bool, ds: Sequence[Tensor] | None = None
) -> tuple[Tensor | None, list[Tensor]]:
    """dS_a = s · Σ g_j·B_jᵀ over the j that use A_a, unless it is given, and dx = Σ g_j·W_j + Σ dS_a·A_aᵀ."""
    weights, lora_as, lora_bs, _, scaling, segments = operands
    accumulator = _accumulator(gs[0])
    if ds is None:
        each = [shrink(g, b.transpose(-1, -2), scaling, segments) for g, b in zip(gs, lora_bs, strict=True)]
        ds = operands.of_each_a(each)
    if not need_dx:
        return None, list(ds)
    dx = gs[0].new_zeros(segments.rows, weights[0].shape[1], dtype=accumulator)
    for g, weight in zip(gs, weights, strict=True):
        dx = dx + g.to(accumulator) @ weight.to(accumulator)
    for d, a in zip(ds, lora_as, strict=True):
        dx = dx + times(d, a.to(accumulator).transpose(-1, -2), segments)
    return dx.to(gs[0].dtype), list(ds)


def outer(u: Tensor, v: Tensor, segments: Segments, per_sample: bool, dtype: torch.dtype) -> Tensor:
    """uᵀ·v over the rows of each sample, [B, p, q], or over all rows, [p, q]."""
    accumulator = _accumulator(u)
    return segment_products.outer(u.to(accumulator), v.to(accumulator), segments, per_sample).to(dtype)


def _accumulator(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32
