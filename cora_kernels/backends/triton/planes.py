"""The ordered sum of fp32 planes: how split loops stay deterministic."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cora_kernels.backends.triton import launch


@triton.jit(do_not_specialize=["n_planes", "rows"])
def sum_planes_kernel(planes_ptr, out_ptr, n_planes, rows, width, UNIT_WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """out = planes[0] + planes[1] + …, in this order, for one block of elements. A plane has rows · width of them."""
    size = tl.cast(rows, tl.int64) * (width * UNIT_WIDTH)
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < size
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for _ in range(n_planes):
        total += tl.load(planes_ptr + o, mask=m, other=0.0)
        planes_ptr += size
    tl.store(out_ptr + o, total.to(out_ptr.dtype.element_ty), mask=m)


def sum_planes(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """planes [P, ...] fp32, contiguous -> their sum [...] in dtype."""
    if planes.shape[0] == 1 and dtype == torch.float32:
        return planes[0]
    out = torch.empty(planes.shape[1:], dtype=dtype, device=planes.device)
    if out.numel() == 0:
        return out
    BLOCK = 1024
    with launch.device_guard(planes):
        sum_planes_kernel[(triton.cdiv(out.numel(), BLOCK),)](
            planes_ptr=planes,
            out_ptr=out,
            n_planes=planes.shape[0],
            rows=out.numel() // out.shape[-1],
            **launch.in_units(width=out.shape[-1]),
            BLOCK=BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return out
