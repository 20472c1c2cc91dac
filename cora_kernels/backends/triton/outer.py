"""out_i = Σ uᵀ·v over the rows of sample i, or over all rows: dA = outer(x, dS), dB = outer(S, g). No atomics."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cora_kernels.backends.triton import launch
from cora_kernels.backends.triton.indexing import share_of_rows
from cora_kernels.backends.triton.planes import sum_planes
from cora_kernels.planning.tile_sizes import OuterConfig, rank_block
from cora_kernels.segments import Segments


@triton.jit(do_not_specialize=launch.BATCH_SIZES)
def outer_kernel(
    wide_ptr,
    narrow_ptr,
    out_ptr,
    cu_ptr,
    M,
    P,
    r,
    n_segments,
    length,
    stride_wm,
    stride_nm,
    stride_op,
    stride_or,
    UNIT_P: tl.constexpr,
    UNIT_R: tl.constexpr,
    UNIT_WM: tl.constexpr,
    UNIT_NM: tl.constexpr,
    UNIT_OP: tl.constexpr,
    UNIT_OR: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    BM: tl.constexpr,
    BP: tl.constexpr,
    BR: tl.constexpr,
):
    """One [BP, BR] tile of wideᵀ·narrow, of one sample, over program_id(1)'s share of its rows, into a plane."""
    P *= UNIT_P
    r *= UNIT_R
    stride_wm *= UNIT_WM
    stride_nm *= UNIT_NM
    stride_op *= UNIT_OP
    stride_or *= UNIT_OR
    n_p = tl.cdiv(P, BP)
    i_p = tl.program_id(0) % n_p
    i = tl.program_id(0) // n_p
    j = tl.program_id(2) * BR
    first, last = share_of_rows(cu_ptr, length, M, i, BM)

    o_m = tl.arange(0, BM)
    o_p = tl.arange(0, BP)
    o_r = tl.arange(0, BR)
    column = i_p.to(tl.int64) * BP
    m_p = i_p * BP + o_p < P
    m_r = o_r < r - j
    p_wide = wide_ptr + first.to(tl.int64) * stride_wm + column
    p_narrow = narrow_ptr + first.to(tl.int64) * stride_nm + j
    o_wide = o_m[:, None].to(INDEX) * stride_wm + o_p[None, :]  # [BM, BP]
    o_narrow = o_m[:, None].to(INDEX) * stride_nm + o_r[None, :]  # [BM, BR]
    b_out = tl.zeros((BP, BR), dtype=tl.float32)
    for m in range(first, last, BM):
        m_m = o_m < last - m
        b_wide = tl.load(p_wide + o_wide, mask=m_m[:, None] & m_p[None, :], other=0.0).to(DTYPE)
        b_narrow = tl.load(p_narrow + o_narrow, mask=m_m[:, None] & m_r[None, :], other=0.0).to(DTYPE)
        b_out = tl.dot(tl.trans(b_wide), b_narrow, b_out, input_precision=PRECISION)
        p_wide += BM * tl.cast(stride_wm, INDEX)
        p_narrow += BM * tl.cast(stride_nm, INDEX)
    plane = tl.program_id(1).to(tl.int64) * n_segments + i
    p_out = out_ptr + plane * P * r + column * stride_op + j * stride_or
    o_out = o_p[:, None].to(INDEX) * stride_op + o_r[None, :].to(INDEX) * stride_or
    tl.store(p_out + o_out, b_out.to(out_ptr.dtype.element_ty), mask=m_p[:, None] & m_r[None, :])


def outer(
    u: Tensor, v: Tensor, segments: Segments, per_sample: bool, dtype: torch.dtype, config: OuterConfig
) -> Tensor:
    """u [M, p], v [M, q] -> [B, p, q] if per_sample else [p, q]."""
    p, q = u.shape[1], v.shape[1]
    _, n_segments, _ = walked = launch.walk(segments, per_sample)
    shape = (n_segments, p, q) if per_sample else (p, q)
    if n_segments == 0 or u.shape[0] == 0:
        return torch.zeros(shape, dtype=dtype, device=u.device)
    wide, narrow, stride_op, stride_or = (u, v, q, 1) if p >= q else (v, u, 1, q)
    (M, P), r = wide.shape, narrow.shape[1]
    BM, BP, BR = config.BM, config.BP, rank_block(r)
    columns, blocks = triton.cdiv(P, BP), triton.cdiv(r, BR)
    split = launch.split_of(columns * blocks * n_segments, triton.cdiv(M, n_segments * BM), u.device)
    out = torch.empty(split, *shape, dtype=dtype if split == 1 else torch.float32, device=u.device)
    both = (
        torch.promote_types(u.dtype, v.dtype) if u.dtype == v.dtype else min(u.dtype, v.dtype, key=lambda d: d.itemsize)
    )
    with launch.device_guard(u):
        outer_kernel[(columns * n_segments, split, blocks)](
            wide_ptr=wide,
            narrow_ptr=narrow,
            out_ptr=out,
            M=M,
            **launch.in_units(
                P=P,
                r=r,
                stride_wm=wide.stride(0),
                stride_nm=narrow.stride(0),
                stride_op=stride_op,
                stride_or=stride_or,
            ),
            **launch.of_segments(walked),
            DTYPE=_TRITON_DTYPES[both],
            PRECISION=launch.precision(both),
            INDEX=launch.index_type((wide, BM, BP), (narrow, BM, BR)),
            BM=BM,
            BP=BP,
            BR=BR,
            **launch.of_config(config),
        )
    return out[0] if split == 1 else sum_planes(out, dtype)


_TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
