"""The ordered sum of fp32 planes: how split loops stay deterministic."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cora_kernels.backends.triton import launch


@triton.jit(do_not_specialize=["n_planes", "rows"])
def sum_planes_kernel(
    planes_ptr,
    out_ptr,
    beside_ptr,
    n_planes,
    rows,
    width,
    columns,
    stride_beside,
    UNIT_WIDTH: tl.constexpr,
    UNIT_COLUMNS: tl.constexpr,
    UNIT_BESIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = planes[0] + planes[1] + …, in this order, for one block of elements; each plane [rows, width].

    Written to the rows of `beside`, too, if it is there, with zeros up to its `columns`.
    """
    width *= UNIT_WIDTH
    size = tl.cast(rows, tl.int64) * width
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < size
    if beside_ptr is not None:
        columns *= UNIT_COLUMNS
        row, column = o // columns, o % columns
        m_beside = row < rows
        o = row * width + column
        m = m_beside & (column < width)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for _ in range(n_planes):
        total += tl.load(planes_ptr + o, mask=m, other=0.0)
        planes_ptr += size
    tl.store(out_ptr + o, total.to(out_ptr.dtype.element_ty), mask=m)
    if beside_ptr is not None:
        p_beside = beside_ptr + row * (stride_beside * UNIT_BESIDE) + column
        tl.store(p_beside, total.to(beside_ptr.dtype.element_ty), mask=m_beside)


def sum_planes(planes: Tensor, dtype: torch.dtype, beside: Tensor | None = None) -> Tensor:
    """planes [P, ...] fp32, contiguous -> their sum [...] in dtype.

    beside: of planes [P, M, r], a matrix [M, p] that gets the sum, too, and zeros in the columns behind it.
    """
    if beside is None and planes.shape[0] == 1 and dtype == torch.float32:
        return planes[0]
    out = torch.empty(planes.shape[1:], dtype=dtype, device=planes.device)
    if out.numel() == 0:
        return out
    width = out.shape[-1]
    columns = width if beside is None else beside.shape[1]
    BLOCK = 1024
    with launch.device_guard(planes):
        sum_planes_kernel[(triton.cdiv(out.numel() // width * columns, BLOCK),)](
            planes_ptr=planes,
            out_ptr=out,
            beside_ptr=beside,
            n_planes=planes.shape[0],
            rows=out.numel() // width,
            **launch.in_units(width=width, columns=columns, stride_beside=0 if beside is None else beside.stride(0)),
            BLOCK=BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return out
