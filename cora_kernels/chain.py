"""The *beta=1 chain*: the op on torch's own GEMMs, with one write of y fewer than eager. For any device torch runs on.

y = bias + S·B is written first and the base GEMM then adds x·Wᵀ to it in place (beta = 1); dx likewise. torch has no GEMM
of mixed dtypes, so S, dS, A and B take the dtype of x here: the factors are cast, being small, and x never is.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from cora_kernels.segments import Segments, borders_of


def availability() -> str | None:
    return None


def not_supported_reasons(
    x: Tensor, weights: Sequence[Tensor], lora_as: Sequence[Tensor], lora_bs: Sequence[Tensor], segments: Segments
) -> list[str]:
    return []


def shrink(x: Tensor, a: Tensor, scaling: float | Tensor, segments: Segments) -> Tensor:
    s = _times(x, a.to(x.dtype), segments)
    if isinstance(scaling, Tensor):
        return s.mul_(segments.per_row(scaling))
    return s.mul_(scaling)


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
    ss = [shrink(x, a, scaling, segments) for a in lora_as] if s is None else list(s)
    ys = []
    for j, (weight, b, bias) in enumerate(zip(weights, lora_bs, biases, strict=True)):
        y = _times(ss[j % len(ss)], b.to(x.dtype), segments, bias)
        ys.append(y.addmm_(x, weight.t()))
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
    if ds is None:
        dss = [shrink(g, b.transpose(-1, -2), scaling, segments) for g, b in zip(gs, lora_bs, strict=True)]
        if len(lora_as) < len(dss):
            for d in dss[1:]:
                dss[0].add_(d)
            dss = dss[:1]
    else:
        dss = list(ds)
    if not need_dx:
        return None, dss
    dx: Tensor | None = None
    for d, a in zip(dss, lora_as, strict=True):
        term = _times(d, a.to(d.dtype).transpose(-1, -2), segments)
        dx = term if dx is None else dx.add_(term)
    for g, weight in zip(gs, weights, strict=True):
        dx = dx.addmm_(g, weight)
    return dx, dss


def outer(u: Tensor, v: Tensor, segments: Segments, per_sample: bool, dtype: torch.dtype) -> Tensor:
    if not per_sample:
        return torch.mm(u.t(), v).to(dtype)
    if segments.cu_seqlens is None:
        shape = segments.batch, segments.length
        return torch.bmm(u.view(*shape, u.shape[1]).transpose(1, 2), v.view(*shape, v.shape[1])).to(dtype)
    return torch.ops.cora_kernels.segment_outer(u, v, segments.cu_seqlens).to(dtype)


def _times(rows: Tensor, factor: Tensor, segments: Segments, bias: Tensor | None = None) -> Tensor:
    """rows [M, p] · factor, [p, q] or each sample's own of [B, p, q], + bias [q] -> [M, q], new memory."""
    if factor.dim() == 2:
        return torch.mm(rows, factor) if bias is None else torch.addmm(bias, rows, factor)
    if segments.cu_seqlens is None:
        batched = rows.view(segments.batch, segments.length, rows.shape[1])
        product = torch.bmm(batched, factor) if bias is None else torch.baddbmm(bias, batched, factor)
        return product.view(segments.rows, factor.shape[2])
    product = torch.ops.cora_kernels.segment_mm(rows, factor, segments.cu_seqlens)
    return product if bias is None else product.add_(bias)


def _segment_mm(rows: Tensor, factors: Tensor, cu_seqlens: Tensor) -> Tensor:
    out = rows.new_empty(rows.shape[0], factors.shape[2])
    for i, (start, stop) in enumerate(pairwise(borders_of(cu_seqlens, rows.shape[0]))):
        torch.mm(rows[start:stop], factors[i], out=out[start:stop])
    return out


def _segment_outer(u: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    out = u.new_empty(cu_seqlens.shape[0] - 1, u.shape[1], v.shape[1])
    for i, (start, stop) in enumerate(pairwise(borders_of(cu_seqlens, u.shape[0]))):
        torch.mm(u[start:stop].t(), v[start:stop], out=out[i])
    return out


# Operators, because torch.compile cannot trace a walk over borders that are data: it calls these as they are.
_LIBRARY = torch.library.Library("cora_kernels", "FRAGMENT")
_LIBRARY.define("segment_mm(Tensor rows, Tensor factors, Tensor cu_seqlens) -> Tensor")
_LIBRARY.define("segment_outer(Tensor u, Tensor v, Tensor cu_seqlens) -> Tensor")
_LIBRARY.impl("segment_mm", _segment_mm, "CompositeExplicitAutograd")
_LIBRARY.impl("segment_outer", _segment_outer, "CompositeExplicitAutograd")


@torch.library.register_fake("cora_kernels::segment_mm")
def _(rows: Tensor, factors: Tensor, cu_seqlens: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], factors.shape[2])


@torch.library.register_fake("cora_kernels::segment_outer")
def _(u: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    return u.new_empty(cu_seqlens.shape[0] - 1, u.shape[1], v.shape[1])
