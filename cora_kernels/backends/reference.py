"""The definition of the op in readable torch, and the oracle of every other backend.

    S = s · x·A              dS = s · g·Bᵀ
    y = x·Wᵀ + S·B + bias    dx = g·W + dS·Aᵀ      dA = xᵀ·dS      dB = Sᵀ·g

x [M, K], g and y [M, N], W [N, K]; A [B, K, r] or [K, r]; B [B, r, N] or [r, N]; S and dS [M, r]. Sample i owns the
rows of segment i. Everything is computed and summed in fp32 (fp64 for fp64 inputs) and rounded once, at the end.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cora_kernels.segments import Segments, segment_mm, segment_outer


def availability() -> str | None:
    return None


def not_supported_reasons(
    x: Tensor, weights: Sequence[Tensor], lora_as: Sequence[Tensor], lora_bs: Sequence[Tensor], segments: Segments
) -> list[str]:
    return []


def shrink(x: Tensor, a: Tensor, scaling: float | Tensor, segments: Segments) -> Tensor:
    """S = s · x·A, [M, r]."""
    accumulator = _accumulator(x)
    if isinstance(scaling, Tensor):
        scaling = segments.per_row(scaling.to(accumulator))
    return scaling * _times(x.to(accumulator), a.to(accumulator), segments)


def forward(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_as: Sequence[Tensor],
    lora_bs: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    scaling: float | Tensor,
    segments: Segments,
    s: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """y_j = x·W_jᵀ + S_j·B_j + bias_j and every S. One A serves the whole group if lora_as holds one."""
    accumulator = _accumulator(x)
    ss = [shrink(x, a, scaling, segments) for a in lora_as] if s is None else list(s)
    ys = []
    for j, (weight, b, bias) in enumerate(zip(weights, lora_bs, biases, strict=True)):
        y = x.to(accumulator) @ weight.to(accumulator).t() + _times(ss[j % len(ss)], b.to(accumulator), segments)
        ys.append((y if bias is None else y + bias).to(x.dtype))
    return ys, ss


def backward_input(
    gs: Sequence[Tensor],
    weights: Sequence[Tensor],
    lora_as: Sequence[Tensor],
    lora_bs: Sequence[Tensor],
    scaling: float | Tensor,
    segments: Segments,
    need_dx: bool,
    ds: Sequence[Tensor] | None = None,
) -> tuple[Tensor | None, list[Tensor]]:
    """dS_a = s · Σ g_j·B_jᵀ over the j that use A_a, and dx = Σ g_j·W_j + Σ dS_a·A_aᵀ."""
    accumulator = _accumulator(gs[0])
    if ds is None:
        each = [shrink(g, b.transpose(-1, -2), scaling, segments) for g, b in zip(gs, lora_bs, strict=True)]
        dss = each if len(lora_as) == len(each) else [sum(each[1:], each[0])]
    else:
        dss = list(ds)
    if not need_dx:
        return None, dss
    dx = gs[0].new_zeros(segments.rows, weights[0].shape[1], dtype=accumulator)
    for g, weight in zip(gs, weights, strict=True):
        dx = dx + g.to(accumulator) @ weight.to(accumulator)
    for d, a in zip(dss, lora_as, strict=True):
        dx = dx + _times(d, a.to(accumulator).transpose(-1, -2), segments)
    return dx.to(gs[0].dtype), dss


def outer(u: Tensor, v: Tensor, segments: Segments, per_sample: bool, dtype: torch.dtype) -> Tensor:
    """uᵀ·v over the rows of each sample, [B, p, q], or over all rows, [p, q]."""
    accumulator = _accumulator(u)
    u, v = u.to(accumulator), v.to(accumulator)
    if not per_sample:
        return (u.t() @ v).to(dtype)
    if segments.cu_seqlens is None:
        return (segments.by_sample(u).transpose(1, 2) @ segments.by_sample(v)).to(dtype)
    return segment_outer(u, v, segments.cu_seqlens).to(dtype)


def _times(rows: Tensor, factor: Tensor, segments: Segments) -> Tensor:
    """rows [M, p] · factor, [p, q] or each sample's own of [B, p, q] -> [M, q]."""
    if factor.dim() == 2:
        return rows @ factor
    if segments.cu_seqlens is None:
        return (segments.by_sample(rows) @ factor).view(segments.rows, factor.shape[2])
    return segment_mm(rows, factor, segments.cu_seqlens)


def _accumulator(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32
