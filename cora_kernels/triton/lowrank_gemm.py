"""y = x·W + S·B + bias in one launch, S = s·x·A computed in the K loop or given. The same kernel gives dx."""

import triton
import triton.language as tl

from cora_kernels.triton.tiles import grouped_tile, rows_of, segment_of


@triton.jit
def _load_rows(p_x, m_m, o_k, k, K, EVEN_K: tl.constexpr):
    """One [BM, BK] tile of x."""
    if EVEN_K:
        return tl.load(p_x, mask=m_m[:, None], other=0.0)
    return tl.load(p_x, mask=m_m[:, None] & (o_k < K - k)[None, :], other=0.0)


@triton.jit
def _load_factor(p_f, o_k, k, K, m_c, dtype: tl.constexpr, EVEN_K: tl.constexpr):
    """One [BK, columns] tile of W or A, in the dtype of x."""
    if EVEN_K:
        return tl.load(p_f, mask=m_c[None, :], other=0.0).to(dtype)
    return tl.load(p_f, mask=(o_k < K - k)[:, None] & m_c[None, :], other=0.0).to(dtype)


@triton.jit
def _load_columns(p_b, stride_br, o_r, r, m_n, dtype: tl.constexpr):
    """One [BR, BN] tile of B, in the dtype of x."""
    return tl.load(p_b + o_r[:, None].to(tl.int64) * stride_br, mask=(o_r < r)[:, None] & m_n[None, :], other=0.0).to(dtype)


@triton.jit
def lowrank_gemm_fwd_kernel(
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
    ONE_PASS: tl.constexpr,
    SHARED_A: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    n_m = tl.cdiv(M, BM)
    n_n = tl.cdiv(N, BN)
    o_k = tl.arange(0, BK)
    o_r = tl.arange(0, BR)
    m_r = o_r < r

    for tile in tl.range(tl.program_id(0), n_m * n_n, tl.num_programs(0)):
        i_m, i_n = grouped_tile(tile, n_m, n_n, GROUP_M)
        o_m = i_m * BM + tl.arange(0, BM)
        o_n = i_n * BN + tl.arange(0, BN)
        m_m = o_m < M
        m_n = o_n < N
        i_first = segment_of(cu_ptr, n_segments, length, i_m * BM)
        i_last = segment_of(cu_ptr, n_segments, length, tl.minimum(i_m * BM + BM, M) - 1)

        p_s = s_ptr + o_m[:, None].to(tl.int64) * r
        p_rows = x_ptr + o_m[:, None].to(tl.int64) * stride_xm + o_k[None, :]  # [BM, BK]
        p_x = p_rows
        p_w = w_ptr + o_k[:, None].to(tl.int64) * stride_wk + o_n[None, :].to(tl.int64) * stride_wn  # [BK, BN]
        b_y = tl.zeros((BM, BN), dtype=tl.float32)
        if ONE_PASS:
            p_columns = (
                a_ptr + o_k[:, None].to(tl.int64) * stride_ak + o_r[None, :].to(tl.int64) * stride_ar
            )  # [BK, BR]
            p_a = p_columns + i_first.to(tl.int64) * stride_ai
            b_s = tl.zeros((BM, BR), dtype=tl.float32)
        for k in range(0, K, BK):
            b_x = _load_rows(p_x, m_m, o_k, k, K, EVEN_K)
            b_w = _load_factor(p_w, o_k, k, K, m_n, dtype, EVEN_K)
            b_y = tl.dot(b_x, b_w, b_y, input_precision=PRECISION)
            if ONE_PASS:
                b_a = _load_factor(p_a, o_k, k, K, m_r, dtype, EVEN_K)
                b_s = tl.dot(b_x, b_a, b_s, input_precision=PRECISION)
                p_a += BK * stride_ak
            p_x += BK
            p_w += BK * stride_wk

        for i in range(i_first, i_last + 1):
            start, stop = rows_of(cu_ptr, length, M, i)
            m_i = (o_m >= start) & (o_m < stop)
            p_b = b_ptr + i.to(tl.int64) * stride_bi + o_n[None, :].to(tl.int64) * stride_bn
            if ONE_PASS:
                if not SHARED_A:
                    if i > i_first:
                        # The rows of a further sample in this tile: S anew, from x tiles that are still in L2.
                        p_x = p_rows
                        p_a = p_columns + i.to(tl.int64) * stride_ai
                        b_s = tl.zeros((BM, BR), dtype=tl.float32)
                        for k in range(0, K, BK):
                            b_x = _load_rows(p_x, m_i, o_k, k, K, EVEN_K)
                            b_a = _load_factor(p_a, o_k, k, K, m_r, dtype, EVEN_K)
                            b_s = tl.dot(b_x, b_a, b_s, input_precision=PRECISION)
                            p_x += BK
                            p_a += BK * stride_ak
                factor = scaling.to(tl.float32)
                if scaling_ptr is not None:
                    factor = tl.load(scaling_ptr + i).to(tl.float32)
                b_i = tl.where(m_i[:, None], b_s * factor, 0.0)
                if i_n == 0:
                    tl.store(p_s + o_r[None, :], b_i, mask=m_i[:, None] & m_r[None, :])
                b_b = _load_columns(p_b, stride_br, o_r, r, m_n, dtype)
                b_y = tl.dot(b_i.to(dtype), b_b, b_y, input_precision=PRECISION)
            else:
                for j in range(0, r, BR):
                    o_j = j + o_r
                    b_i = tl.load(p_s + o_j[None, :], mask=m_i[:, None] & (o_j < r)[None, :], other=0.0)
                    b_b = _load_columns(p_b, stride_br, o_j, r, m_n, dtype)
                    b_y = tl.dot(b_i.to(dtype), b_b, b_y, input_precision=PRECISION)

        if bias_ptr is not None:
            b_y += tl.load(bias_ptr + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
        p_y = y_ptr + o_m[:, None].to(tl.int64) * stride_ym + o_n[None, :]
        m_y = m_m[:, None] & m_n[None, :]
        if ACCUMULATE:
            b_y += tl.load(p_y, mask=m_y, other=0.0).to(tl.float32)
        tl.store(p_y, b_y.to(y_ptr.dtype.element_ty), mask=m_y)
