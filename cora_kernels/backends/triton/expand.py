"""y = S·B + bias, or y += S·B in place: the delta alone, around a base GEMM that is not ours."""

import triton
import triton.language as tl
from torch import Tensor

from cora_kernels.backends.triton import launch
from cora_kernels.backends.triton.indexing import tile_of_slot
from cora_kernels.segments import Segments


@triton.jit(do_not_specialize=launch.BATCH_SIZES)
def expand_kernel(
    s_ptr,
    b_ptr,
    bias_ptr,
    y_ptr,
    cu_ptr,
    M,
    N,
    r,
    n_segments,
    length,
    stride_bi,
    stride_br,
    stride_bn,
    stride_ym,
    stride_bias,
    UNIT_N: tl.constexpr,
    UNIT_R: tl.constexpr,
    UNIT_BI: tl.constexpr,
    UNIT_BR: tl.constexpr,
    UNIT_BN: tl.constexpr,
    UNIT_YM: tl.constexpr,
    ADD: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
):
    """One [BM, BN] tile of y, of the rows of one sample."""
    N *= UNIT_N
    r *= UNIT_R
    stride_bi *= UNIT_BI
    stride_br *= UNIT_BR
    stride_bn *= UNIT_BN
    stride_ym *= UNIT_YM
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    n_n = tl.cdiv(N, BN)
    slot = tl.program_id(0) // n_n
    i_n = tl.program_id(0) % n_n
    i, first, m_m = tile_of_slot(cu_ptr, n_segments, length, M, slot, BM)
    i_rows = tl.arange(0, BM)
    i_columns = tl.arange(0, BN)
    o_r = tl.arange(0, BR)
    m_n = i_n * BN + i_columns < N
    row = first.to(tl.int64)
    column = i_n.to(tl.int64) * BN

    p_s = s_ptr + row * r
    p_b = b_ptr + i.to(tl.int64) * stride_bi + column * stride_bn
    o_s = i_rows[:, None] * r + o_r[None, :]  # [BM, BR]
    o_b = o_r[:, None].to(INDEX) * stride_br + i_columns[None, :].to(INDEX) * stride_bn  # [BR, BN]
    b_y = tl.zeros((BM, BN), dtype=tl.float32)
    for j in range(0, r, BR):
        m_r = o_r < r - j
        b_s = tl.load(p_s + j + o_s, mask=m_m[:, None] & m_r[None, :], other=0.0)
        b_b = tl.load(p_b + o_b, mask=m_r[:, None] & m_n[None, :], other=0.0)
        b_y = tl.dot(b_s.to(dtype), b_b.to(dtype), b_y, input_precision=PRECISION)
        p_b += BR * tl.cast(stride_br, INDEX)
    if bias_ptr is not None:
        b_y += tl.load(bias_ptr + (column + i_columns) * stride_bias, mask=m_n, other=0.0).to(tl.float32)[None, :]
    p_y = y_ptr + row * stride_ym + column + i_rows[:, None].to(INDEX) * stride_ym + i_columns[None, :]
    m_y = m_m[:, None] & m_n[None, :]
    if ADD:
        b_y += tl.load(p_y, mask=m_y, other=0.0).to(tl.float32)
    tl.store(p_y, b_y.to(dtype), mask=m_y)


def expand(
    s: Tensor, b: Tensor, segments: Segments, y: Tensor, bias: Tensor | None = None, add: bool = False
) -> Tensor:
    """y [M, N] = s [M, r]·b ([r, N] or [B, r, N]) + bias, or y += that, in place. Rows of y have unit inner stride."""
    (M, N), r = y.shape, b.shape[-2]
    _, n_segments, _ = walked = launch.walk(segments, b.dim() == 3)
    if M == 0:
        return y
    rows = M // max(n_segments, 1)
    BM, BN, BR = 16 if rows <= 16 else 64, 128, 16
    with launch.device_guard(y):
        expand_kernel[(launch.count_slots(walked, M, BM) * triton.cdiv(N, BN),)](
            s_ptr=s,
            b_ptr=b,
            bias_ptr=bias,
            y_ptr=y,
            M=M,
            **launch.in_units(
                N=N,
                r=r,
                **launch.strides_of(b, "bi", "br", "bn"),
                stride_ym=y.stride(0),
            ),
            **launch.of_segments(walked),
            stride_bias=0 if bias is None else bias.stride(0),
            ADD=add,
            PRECISION=launch.precision(y.dtype),
            INDEX=launch.index_type((b, BR, BN), (y, BM, BN)),
            BM=BM,
            BN=BN,
            BR=BR,
            num_warps=4,
            num_stages=2,
            enable_fp_fusion=True,
        )
    return y
