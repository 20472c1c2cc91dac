"""y = s·(x·A)·B + bias for at most eight rows a sample, on the CUDA cores: A and B are all its bytes.

In one launch; for few samples in two, as the many programs that each of them then has would all compute its S.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cora_kernels.backends.triton import launch
from cora_kernels.backends.triton.indexing import scaling_of
from cora_kernels.backends.triton.shrink import planes_of
from cora_kernels.planning.gpus import gpu_of
from cora_kernels.planning.tile_sizes import decodes_in_two, multiprocessors, shrink_config
from cora_kernels.segments import Segments


@triton.jit(do_not_specialize=launch.BATCH_SIZES)
def decode_kernel(
    x_ptr,
    a_ptr,
    b_ptr,
    bias_ptr,
    s_ptr,
    y_ptr,
    planes_ptr,
    scaling_ptr,
    scaling,
    n_planes,
    M,
    N,
    K,
    r,
    length,
    share,
    stride_xm,
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
    UNIT_AI: tl.constexpr,
    UNIT_AK: tl.constexpr,
    UNIT_AR: tl.constexpr,
    UNIT_BI: tl.constexpr,
    UNIT_BR: tl.constexpr,
    UNIT_BN: tl.constexpr,
    UNIT_YM: tl.constexpr,
    INDEX: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
    STAGES: tl.constexpr,
):
    """`share` columns of y of one sample. Each of its programs computes all of S: A comes from L2 after the first; or
    sums the planes of an S that was computed before, which holds the scaling."""
    N *= UNIT_N
    K *= UNIT_K
    r *= UNIT_R
    stride_xm *= UNIT_XM
    stride_ai *= UNIT_AI
    stride_ak *= UNIT_AK
    stride_ar *= UNIT_AR
    stride_bi *= UNIT_BI
    stride_br *= UNIT_BR
    stride_bn *= UNIT_BN
    stride_ym *= UNIT_YM
    i = tl.program_id(0)
    i_n = tl.program_id(1)
    o_t = tl.arange(0, BT)
    o_n = tl.arange(0, BN)
    o_r = tl.arange(0, BR)
    m_t = o_t < length
    m_r = o_r < r
    row = i.to(tl.int64) * length

    m_s = m_t[:, None] & m_r[None, :]
    o_s = o_t[:, None] * r + o_r[None, :]  # [BT, BR]
    if planes_ptr is not None:
        b_s = tl.zeros((BT, BR), dtype=tl.float32)
        p_planes = planes_ptr + row * r
        for _ in range(n_planes):
            b_s += tl.load(p_planes + o_s, mask=m_s, other=0.0)
            p_planes += tl.cast(M, tl.int64) * r
    else:
        o_k = tl.arange(0, BK)
        p_x = x_ptr + row * stride_xm
        p_a = a_ptr + i.to(tl.int64) * stride_ai
        o_x = o_t[:, None].to(INDEX) * stride_xm + o_k[None, :]  # [BT, BK]
        o_a = o_k[:, None].to(INDEX) * stride_ak + o_r[None, :].to(INDEX) * stride_ar  # [BK, BR]
        # Products are added where they are, and summed over the depth once: a sum in every trip would wait for its
        # loads.
        b_products = tl.zeros((BT, BK, BR), dtype=tl.float32)
        for k in tl.range(0, K, BK, num_stages=STAGES):
            m_k = o_k < K - k
            b_x = tl.load(p_x + o_x, mask=m_t[:, None] & m_k[None, :], other=0.0).to(tl.float32)
            b_a = tl.load(p_a + o_a, mask=m_k[:, None] & m_r[None, :], other=0.0).to(tl.float32)
            b_products += b_x[:, :, None] * b_a[None, :, :]
            p_x += BK
            p_a += BK * tl.cast(stride_ak, INDEX)
        b_s = tl.sum(b_products, axis=1)
        b_s *= scaling_of(scaling_ptr, scaling, stride_scaling, i)
    if i_n == 0:
        tl.store(s_ptr + row * r + o_s, b_s, mask=m_s)

    p_b = b_ptr + i.to(tl.int64) * stride_bi
    p_y = y_ptr + row * stride_ym
    o_b = o_r[:, None].to(INDEX) * stride_br + o_n[None, :].to(INDEX) * stride_bn  # [BR, BN]
    o_y = o_t[:, None].to(INDEX) * stride_ym + o_n[None, :]  # [BT, BN]
    for n in tl.range(i_n * share, tl.minimum(i_n * share + share, N), BN, num_stages=STAGES):
        column = tl.cast(n, tl.int64)
        m_n = o_n < N - n
        b_b = tl.load(p_b + column * stride_bn + o_b, mask=m_r[:, None] & m_n[None, :], other=0.0).to(tl.float32)
        b_y = tl.sum(b_s[:, :, None] * b_b[None, :, :], axis=1)
        if bias_ptr is not None:
            b_y += tl.load(bias_ptr + (column + o_n) * stride_bias, mask=m_n, other=0.0).to(tl.float32)[None, :]
        tl.store(p_y + column + o_y, b_y.to(y_ptr.dtype.element_ty), mask=m_t[:, None] & m_n[None, :])


def decode(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float | Tensor,
    segments: Segments,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x [B·T, K] with T <= 8, a [K, r] or [B, K, r], b [r, N] or [B, r, N] -> y [B·T, N] and S [B·T, r] fp32."""
    (M, K), (r, N) = x.shape, b.shape[-2:]
    y = x.new_empty(M, N)
    s = torch.empty(M, r, dtype=torch.float32, device=x.device)
    if M == 0:
        return y, s
    planes = None
    if decodes_in_two(segments.batch, multiprocessors(x.device)):
        rows = M if a.dim() == 2 else M // segments.batch
        planes = planes_of(x, a, scaling, segments, shrink_config(gpu_of(x.device).arch, x.dtype, rows, r))
    BT, BR = triton.next_power_of_2(segments.length), triton.next_power_of_2(r)
    block = max(16, 8192 // (BT * BR))
    columns = triton.cdiv(N, block)
    pieces = max(1, min(columns, triton.cdiv(2 * multiprocessors(x.device), segments.batch)))
    share = triton.cdiv(columns, pieces) * block
    with launch.device_guard(x):
        decode_kernel[(segments.batch, triton.cdiv(N, share))](
            x_ptr=x,
            a_ptr=a,
            b_ptr=b,
            bias_ptr=bias,
            s_ptr=s,
            y_ptr=y,
            planes_ptr=planes,
            n_planes=0 if planes is None else planes.shape[0],
            M=M,
            **launch.in_units(
                N=N,
                K=K,
                r=r,
                stride_xm=x.stride(0),
                **launch.strides_of(a, "ai", "ak", "ar"),
                **launch.strides_of(b, "bi", "br", "bn"),
                stride_ym=y.stride(0),
            ),
            length=segments.length,
            share=share,
            stride_bias=0 if bias is None else bias.stride(0),
            **launch.of_scaling(scaling),
            INDEX=launch.index_type((x, BT, block), (a, block, BR), (b, BR, block)),
            BT=BT,
            BK=block,
            BN=block,
            BR=BR,
            # Loads of the next trips are under way meanwhile, into shared memory: of fp32 it holds fewer.
            STAGES=3 if a.dtype.itemsize == b.dtype.itemsize == 2 else 2,
            num_warps=4 if BT * BR * block <= 8192 else 8,
            num_stages=3,
            enable_fp_fusion=True,
        )
    return y, s
