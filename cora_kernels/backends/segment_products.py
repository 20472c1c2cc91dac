"""Products of rows with each sample's own factor, by torch: what the backends in plain torch are made of.

For a packed batch they walk its segments, one torch.mm each. A GPU would wait for their boundaries there: where torch's
grouped product serves, it reads them on the GPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cora_kernels.segments import Segments, spans


def times(rows: Tensor, factor: Tensor, segments: Segments, bias: Tensor | None = None) -> Tensor:
    """rows [M, p] · factor, [p, q] or each sample's own of [B, p, q], + bias [q] -> [M, q], new memory."""
    if factor.dim() == 2:
        return torch.mm(rows, factor) if bias is None else torch.addmm(bias, rows, factor)
    if segments.cu_seqlens is None:
        batched = segments.by_sample(rows)
        product = torch.bmm(batched, factor) if bias is None else torch.baddbmm(bias, batched, factor)
        return product.view(segments.rows, factor.shape[2])
    product = torch.ops.cora_kernels.segment_mm(rows, factor, segments.cu_seqlens)
    return product if bias is None else product.add_(bias)


def outer(u: Tensor, v: Tensor, segments: Segments, per_sample: bool) -> Tensor:
    """uᵀ·v over the rows of each sample, [B, p, q], or over all rows, [p, q]."""
    if not per_sample:
        return torch.mm(u.t(), v)
    if segments.cu_seqlens is None:
        return torch.bmm(segments.by_sample(u).transpose(1, 2), segments.by_sample(v))
    return torch.ops.cora_kernels.segment_outer(u, v, segments.cu_seqlens)


_GROUPED_DEVICE = "cuda"


def _is_grouped(*operands: Tensor) -> bool:
    """Whether torch.nn.functional.grouped_mm (torch >= 2.10) takes these: bf16, each with 16-byte aligned rows."""
    return hasattr(F, "grouped_mm") and all(
        t.device.type == _GROUPED_DEVICE
        and t.dtype == torch.bfloat16
        and t.data_ptr() % 16 == 0
        and (t.stride(-1) == 1 or t.stride(-2) == 1)
        and all(stride == 1 or stride % 8 == 0 for stride in t.stride())
        for t in operands
    )


def _segment_mm(rows: Tensor, factors: Tensor, cu_seqlens: Tensor) -> Tensor:
    if _is_grouped(rows, factors) and factors.shape[2] % 8 == 0:
        return F.grouped_mm(rows, factors, offs=cu_seqlens[1:])
    out = rows.new_empty(rows.shape[0], factors.shape[2])
    for i, span in enumerate(spans(cu_seqlens, rows.shape[0])):
        torch.mm(rows[span], factors[i], out=out[span])
    return out


def _segment_outer(u: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    if _is_grouped(u, v):
        products = F.grouped_mm(u.t(), v, offs=cu_seqlens[1:])
        # Of a sample without rows nothing is promised.
        return torch.where((cu_seqlens.diff() > 0)[:, None, None], products, 0.0)
    out = u.new_empty(cu_seqlens.shape[0] - 1, u.shape[1], v.shape[1])
    for i, span in enumerate(spans(cu_seqlens, u.shape[0])):
        torch.mm(u[span].t(), v[span], out=out[i])
    return out


# torch.compile cannot trace a walk over boundaries that are data: these are operators, which it calls as they are.
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
