"""dS = s·g·Bᵀ and dB = Sᵀ·g from one read of g, for a dx that does not compute dS on its way."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cora_kernels.backends.triton import launch
from cora_kernels.backends.triton.indexing import scaling_of, share_of_rows
from cora_kernels.backends.triton.planes import sum_planes
from cora_kernels.planning.tile_sizes import OuterConfig, rank_block
from cora_kernels.segments import Segments


@triton.jit(do_not_specialize=launch.BATCH_SIZES)
def shrink_outer_kernel(
    g_ptr,
    b_ptr,
    s_ptr,
    ds_ptr,
    db_ptr,
    scaling_ptr,
    cu_ptr,
    scaling,
    M,
    N,
    r,
    n_segments,
    length,
    stride_gm,
    stride_bi,
    stride_br,
    stride_bn,
    stride_scaling,
    UNIT_N: tl.constexpr,
    UNIT_R: tl.constexpr,
    UNIT_GM: tl.constexpr,
    UNIT_BI: tl.constexpr,
    UNIT_BR: tl.constexpr,
    UNIT_BN: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
):
    """BN columns of g over program_id(1)'s share of one sample's rows: dB of them, and their part of dS as a plane."""
    N *= UNIT_N
    r *= UNIT_R
    stride_gm *= UNIT_GM
    stride_bi *= UNIT_BI
    stride_br *= UNIT_BR
    stride_bn *= UNIT_BN
    dtype: tl.constexpr = g_ptr.dtype.element_ty
    n_n = tl.cdiv(N, BN)
    i_n = tl.program_id(0) % n_n
    i = tl.program_id(0) // n_n
    first, last = share_of_rows(cu_ptr, length, M, i, BM)

    o_m = tl.arange(0, BM)
    o_n = tl.arange(0, BN)
    o_r = tl.arange(0, BR)
    column = i_n.to(tl.int64) * BN
    m_n = i_n * BN + o_n < N
    m_r = o_r < r
    p_b = b_ptr + i.to(tl.int64) * stride_bi + column * stride_bn
    o_b = o_n[:, None].to(INDEX) * stride_bn + o_r[None, :].to(INDEX) * stride_br  # [BN, BR]
    b_b = tl.load(p_b + o_b, mask=m_n[:, None] & m_r[None, :], other=0.0).to(dtype)
    factor = scaling_of(scaling_ptr, scaling, stride_scaling, i)

    row = first.to(tl.int64)
    p_g = g_ptr + row * stride_gm + column
    p_s = s_ptr + row * r
    p_ds = ds_ptr + (i_n.to(tl.int64) * M + row) * r
    o_g = o_m[:, None].to(INDEX) * stride_gm + o_n[None, :]  # [BM, BN]
    o_s = o_m[:, None] * r + o_r[None, :]  # [BM, BR]
    b_db = tl.zeros((BN, BR), dtype=tl.float32)
    for m in range(first, last, BM):
        m_m = o_m < last - m
        m_s = m_m[:, None] & m_r[None, :]
        b_g = tl.load(p_g + o_g, mask=m_m[:, None] & m_n[None, :], other=0.0)
        b_s = tl.load(p_s + o_s, mask=m_s, other=0.0).to(dtype)
        b_ds = tl.dot(b_g, b_b, input_precision=PRECISION)
        tl.store(p_ds + o_s, b_ds * factor, mask=m_s)
        b_db = tl.dot(tl.trans(b_g), b_s, b_db, input_precision=PRECISION)
        p_g += BM * tl.cast(stride_gm, INDEX)
        p_s += BM * r
        p_ds += BM * r
    plane = tl.program_id(1).to(tl.int64) * n_segments + i
    p_db = db_ptr + plane * r * N + column + o_n[:, None] + o_r[None, :].to(tl.int64) * N
    tl.store(p_db, b_db.to(db_ptr.dtype.element_ty), mask=m_n[:, None] & m_r[None, :])


def shrink_outer(
    g: Tensor,
    b: Tensor,
    s: Tensor,
    scaling: float | Tensor,
    segments: Segments,
    dtype: torch.dtype,
    config: OuterConfig,
) -> tuple[Tensor, Tensor]:
    """g [M, N], b [r, N] or [B, r, N], s [M, r] fp32 -> dS [M, r] fp32 and dB, shaped like b, in dtype.

    r <= SHRINK_OUTER_RANK. A scaling for each sample asks for a b for each sample.
    """
    (M, N), r = g.shape, b.shape[-2]
    _, n_segments, _ = walked = launch.walk(segments, b.dim() == 3)
    if n_segments == 0 or M == 0:
        return s.new_zeros(M, r), torch.zeros(b.shape, dtype=dtype, device=g.device)
    BM, BN = config.BM, config.BP
    columns = triton.cdiv(N, BN)
    split = launch.split_of(columns * n_segments, triton.cdiv(M, n_segments * BM), g.device)
    ds = torch.empty(columns, M, r, dtype=torch.float32, device=g.device)
    db = torch.empty(split, *b.shape, dtype=dtype if split == 1 else torch.float32, device=g.device)
    with launch.device_guard(g):
        shrink_outer_kernel[(columns * n_segments, split)](
            g_ptr=g,
            b_ptr=b,
            s_ptr=s,
            ds_ptr=ds,
            db_ptr=db,
            M=M,
            **launch.in_units(
                N=N,
                r=r,
                stride_gm=g.stride(0),
                **launch.strides_of(b, "bi", "br", "bn"),
            ),
            **launch.of_segments(walked),
            **launch.of_scaling(scaling),
            PRECISION=launch.precision(g.dtype),
            INDEX=launch.index_type((g, BM, BN), (b, BN, rank_block(r))),
            BM=BM,
            BN=BN,
            BR=rank_block(r),
            **launch.of_config(config),
        )
    return sum_planes(ds, torch.float32), db[0] if split == 1 else sum_planes(db, dtype)
