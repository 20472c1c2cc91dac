"""y = x·W + S·B + bias in one launch, S = s·x·A computed in the K loop or given. The same kernel gives dx."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cora_kernels.backends.triton import launch
from cora_kernels.backends.triton.indexing import (
    grouped_tile,
    rows_of,
    scaling_of,
    segment_of,
    slots_of,
    tile_of_slot,
)
from cora_kernels.operands import is_per_sample
from cora_kernels.planning.tile_sizes import GemmConfig, multiprocessors, rank_block
from cora_kernels.segments import Segments


@triton.jit
def _load_rows(p_x, m_m, o_k, k, K, EVEN_K: tl.constexpr):
    """One [BM, BK] tile of x."""
    if EVEN_K:
        b_x = tl.load(p_x, mask=m_m[:, None], other=0.0)
    else:
        b_x = tl.load(p_x, mask=m_m[:, None] & (o_k < K - k)[None, :], other=0.0)
    return b_x


@triton.jit
def _load_factor(p_f, o_k, k, K, m_c, dtype: tl.constexpr, EVEN_K: tl.constexpr):
    """One [BK, columns] tile of W or A, in the dtype of x."""
    if EVEN_K:
        b_f = tl.load(p_f, mask=m_c[None, :], other=0.0)
    else:
        b_f = tl.load(p_f, mask=(o_k < K - k)[:, None] & m_c[None, :], other=0.0)
    return b_f.to(dtype)


@triton.jit(do_not_specialize=launch.BATCH_SIZES)
def lowrank_gemm_kernel(
    x_ptr,
    w_ptr,
    a_ptr,
    b_ptr,
    bias_ptr,
    s_ptr,
    y_ptr,
    scaling_ptr,
    cu_ptr,
    scaling,
    M,
    N,
    K,
    r,
    n_segments,
    length,
    stride_xm,
    stride_wk,
    stride_wn,
    stride_ai,
    stride_ak,
    stride_ar,
    stride_bi,
    stride_br,
    stride_bn,
    stride_ym,
    stride_bias,
    stride_scaling,
    UNIT_N: tl.constexpr,
    UNIT_K: tl.constexpr,
    UNIT_R: tl.constexpr,
    UNIT_XM: tl.constexpr,
    UNIT_WK: tl.constexpr,
    UNIT_WN: tl.constexpr,
    UNIT_AI: tl.constexpr,
    UNIT_AK: tl.constexpr,
    UNIT_AR: tl.constexpr,
    UNIT_BI: tl.constexpr,
    UNIT_BR: tl.constexpr,
    UNIT_BN: tl.constexpr,
    UNIT_YM: tl.constexpr,
    ONE_PASS: tl.constexpr,
    STRADDLE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    PERSISTENT: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    EVEN_K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """[BM, BN] tiles of y. One pass: of one sample each. S given: they straddle samples, and S·B is added by sample."""
    N *= UNIT_N
    K *= UNIT_K
    r *= UNIT_R
    stride_xm *= UNIT_XM
    stride_wk *= UNIT_WK
    stride_wn *= UNIT_WN
    stride_ai *= UNIT_AI
    stride_ak *= UNIT_AK
    stride_ar *= UNIT_AR
    stride_bi *= UNIT_BI
    stride_br *= UNIT_BR
    stride_bn *= UNIT_BN
    stride_ym *= UNIT_YM
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    if ONE_PASS:
        n_m = slots_of(cu_ptr, n_segments, length, M, BM)
    else:
        n_m = tl.cdiv(M, BM)
    n_n = tl.cdiv(N, BN)
    # In the main loop a scalar address moves and 32-bit offsets stay: half the registers that 64-bit addresses take.
    i_rows = tl.arange(0, BM)
    i_columns = tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    o_r = tl.arange(0, BR)
    o_x = i_rows[:, None].to(INDEX) * stride_xm + o_k[None, :]  # [BM, BK]
    o_w = o_k[:, None].to(INDEX) * stride_wk + i_columns[None, :].to(INDEX) * stride_wn  # [BK, BN]
    m_r = o_r < r

    # A loop of one trip is folded away, and with it a quarter to a third of the registers (the tests' table has both).
    pid = tl.program_id(0)
    end = n_m * n_n if PERSISTENT else pid + 1
    for tile in tl.range(pid, end, tl.num_programs(0) if PERSISTENT else 1):
        i_m, i_n = grouped_tile(tile, n_m, n_n, GROUP_M)
        column = i_n.to(tl.int64) * BN
        m_n = i_n * BN + i_columns < N
        if ONE_PASS:
            i_first, first, m_m = tile_of_slot(cu_ptr, n_segments, length, M, i_m, BM)
        else:
            first = i_m * BM
            m_m = first + i_rows < M
        row = first.to(tl.int64)

        p_x = x_ptr + row * stride_xm
        p_w = w_ptr + column * stride_wn
        p_s = s_ptr + row * r
        b_y = tl.zeros((BM, BN), dtype=tl.float32)
        if ONE_PASS:
            o_a = o_k[:, None].to(INDEX) * stride_ak + o_r[None, :].to(INDEX) * stride_ar  # [BK, BR]
            p_a = a_ptr + i_first.to(tl.int64) * stride_ai
            b_s = tl.zeros((BM, BR), dtype=tl.float32)
        for k in range(0, K, BK):
            b_x = _load_rows(p_x + o_x, m_m, o_k, k, K, EVEN_K)
            b_w = _load_factor(p_w + o_w, o_k, k, K, m_n, dtype, EVEN_K)
            b_y = tl.dot(b_x, b_w, b_y, input_precision=PRECISION)
            if ONE_PASS:
                b_a = _load_factor(p_a + o_a, o_k, k, K, m_r, dtype, EVEN_K)
                b_s = tl.dot(b_x, b_a, b_s, input_precision=PRECISION)
                p_a += BK * tl.cast(stride_ak, INDEX)
            p_x += BK
            p_w += BK * tl.cast(stride_wk, INDEX)

        # Here, and not before the main loop, which they would take registers from.
        o_s = i_rows[:, None] * r + o_r[None, :]  # [BM, BR]
        o_b = o_r[:, None].to(INDEX) * stride_br + i_columns[None, :].to(INDEX) * stride_bn  # [BR, BN]
        if ONE_PASS:
            b_s *= scaling_of(scaling_ptr, scaling, stride_scaling, i_first)
            if i_n == 0:
                tl.store(p_s + o_s, b_s, mask=m_m[:, None] & m_r[None, :])
            p_b = b_ptr + i_first.to(tl.int64) * stride_bi + column * stride_bn
            b_b = tl.load(p_b + o_b, mask=m_r[:, None] & m_n[None, :], other=0.0).to(dtype)
            b_y = tl.dot(b_s.to(dtype), b_b, b_y, input_precision=PRECISION)
        else:
            o_m = first + i_rows
            i_first = segment_of(cu_ptr, n_segments, length, first)
            i_last = segment_of(cu_ptr, n_segments, length, tl.minimum(first + BM, M) - 1)
            # From zero: no Triton before 3.6 compiles a loop whose lower bound comes out of another loop.
            for i_from_first in tl.range(0, i_last + 1 - i_first, num_stages=1):
                i = i_first + i_from_first
                i_start, i_stop = rows_of(cu_ptr, length, M, i)
                m_i = (o_m >= i_start) & (o_m < i_stop)
                p_b = b_ptr + i.to(tl.int64) * stride_bi + column * stride_bn
                for j in tl.range(0, r, BR, num_stages=1):
                    m_j = o_r < r - j
                    b_s = tl.load(p_s + j + o_s, mask=m_i[:, None] & m_j[None, :], other=0.0)
                    b_b = tl.load(p_b + o_b, mask=m_j[:, None] & m_n[None, :], other=0.0).to(dtype)
                    if STRADDLE:
                        # 0 · inf is NaN: inf and NaN of this sample's B must not meet the zeros of the other rows.
                        m_b = tl.abs(b_b.to(tl.float32)) < float("inf")
                        b_b = tl.where(m_b, b_b, 0.0)
                        m_columns = tl.min(m_b.to(tl.int32), axis=0)
                        # In a branch: a sum over the whole tile of y in every step makes large tiles spill.
                        if tl.min(m_columns, axis=0) == 0:
                            b_bad = tl.where(m_columns == 0, float("nan"), 0.0)
                            b_y += tl.where(m_i[:, None], b_bad[None, :], 0.0)
                    b_y = tl.dot(b_s.to(dtype), b_b, b_y, input_precision=PRECISION)
                    p_b += BR * tl.cast(stride_br, INDEX)

        if bias_ptr is not None:
            b_y += tl.load(bias_ptr + (column + i_columns) * stride_bias, mask=m_n, other=0.0).to(tl.float32)[None, :]
        o_y = i_rows[:, None].to(INDEX) * stride_ym + i_columns[None, :]  # [BM, BN]
        p_y = y_ptr + row * stride_ym + column + o_y
        m_y = m_m[:, None] & m_n[None, :]
        if ACCUMULATE:
            b_y += tl.load(p_y, mask=m_y, other=0.0).to(tl.float32)
        tl.store(p_y, b_y.to(y_ptr.dtype.element_ty), mask=m_y)


def lowrank_gemm(
    x: Tensor,
    w: Tensor,
    s: Tensor,
    b: Tensor,
    segments: Segments,
    config: GemmConfig,
    bias: Tensor | None = None,
    y: Tensor | None = None,
) -> Tensor:
    """x [M, K]·w [K, N] + s [M, r]·b [r, N] or [B, r, N] (+ bias), added to y [M, N] if there is one."""
    accumulate = y is not None
    if y is None:
        y = x.new_empty(x.shape[0], w.shape[1])
    _launch(x, w, None, b, bias, s, y, 1.0, launch.walk(segments, b.dim() == 3), config, accumulate)
    return y


def lowrank_gemm_one_pass(
    x: Tensor,
    w: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float | Tensor,
    segments: Segments,
    config: GemmConfig,
    bias: Tensor | None = None,
    y: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same, and S = scaling · x·a [M, r] fp32 with it."""
    accumulate = y is not None
    if y is None:
        y = x.new_empty(x.shape[0], w.shape[1])
    s = torch.empty(x.shape[0], a.shape[-1], dtype=torch.float32, device=x.device)
    per_sample = a.dim() == 3 or b.dim() == 3 or is_per_sample(scaling)
    _launch(x, w, a, b, bias, s, y, scaling, launch.walk(segments, per_sample), config, accumulate)
    return y, s


def _launch(x, w, a, b, bias, s, y, scaling, walked, config, accumulate):
    (M, K), N, r = x.shape, w.shape[1], b.shape[-2]
    if M == 0:
        return
    one_pass = a is not None
    cu_seqlens, n_segments, length = walked
    BM, BN, BK = config.BM, config.BN, config.BK
    n_m = launch.count_slots(walked, M, BM) if one_pass else triton.cdiv(M, BM)
    tiles = n_m * triton.cdiv(N, BN)
    programs = min(tiles, multiprocessors(x.device)) if config.persistent else tiles
    # A large tile leaves registers for sixteen columns of S at a time, and S·B is short beside the main loop.
    BR = rank_block(r, 64 if one_pass or BM * BN < 128 * 128 else 16)
    with launch.device_guard(x):
        lowrank_gemm_kernel[(programs,)](
            x_ptr=x,
            w_ptr=w,
            a_ptr=a,
            b_ptr=b,
            bias_ptr=bias,
            s_ptr=s,
            y_ptr=y,
            M=M,
            **launch.in_units(
                N=N,
                K=K,
                r=r,
                stride_xm=x.stride(0),
                stride_wk=w.stride(0),
                stride_wn=w.stride(1),
                **launch.strides_of(a, "ai", "ak", "ar"),
                **launch.strides_of(b, "bi", "br", "bn"),
                stride_ym=y.stride(0),
            ),
            **launch.of_segments(walked),
            stride_bias=0 if bias is None else bias.stride(0),
            **launch.of_scaling(scaling),
            ONE_PASS=one_pass,
            STRADDLE=n_segments > 1 and (cu_seqlens is not None or length % BM != 0),
            ACCUMULATE=accumulate,
            PERSISTENT=config.persistent,
            PRECISION=launch.precision(x.dtype),
            INDEX=launch.index_type((x, BM, BK), (w, BK, BN), (a, BK, BR), (b, BR, BN), (y, BM, BN)),
            EVEN_K=K % BK == 0,
            BM=BM,
            BN=BN,
            BK=BK,
            BR=BR,
            GROUP_M=config.GROUP_M,
            **launch.of_config(config),
        )
