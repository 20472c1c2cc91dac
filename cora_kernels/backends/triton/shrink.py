"""S = s·x·A, and dS = s·g·Bᵀ by the same kernel: long sums for few columns, split over K into fp32 planes.

On its way it can write [x | S | 0], as the backend "concat" wants it: it reads every element of x once.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cora_kernels.backends.triton import launch
from cora_kernels.backends.triton.indexing import scaling_of, tile_of_slot
from cora_kernels.backends.triton.planes import sum_planes
from cora_kernels.operands import is_per_sample
from cora_kernels.planning.tile_sizes import ShrinkConfig, rank_block
from cora_kernels.segments import Segments


@triton.jit(do_not_specialize=launch.BATCH_SIZES)
def shrink_kernel(
    x_ptr,
    a_ptr,
    s_ptr,
    copy_ptr,
    scaling_ptr,
    cu_ptr,
    scaling,
    M,
    K,
    r,
    n_segments,
    length,
    chunk,
    stride_xm,
    stride_ai,
    stride_ak,
    stride_ar,
    stride_cm,
    stride_scaling,
    UNIT_K: tl.constexpr,
    UNIT_R: tl.constexpr,
    UNIT_XM: tl.constexpr,
    UNIT_AI: tl.constexpr,
    UNIT_AK: tl.constexpr,
    UNIT_AR: tl.constexpr,
    UNIT_CM: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    EVEN_K: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
):
    """One [BM, BR] tile of the rows of one sample, over `chunk` of K, into plane program_id(1)."""
    K *= UNIT_K
    r *= UNIT_R
    stride_xm *= UNIT_XM
    stride_ai *= UNIT_AI
    stride_ak *= UNIT_AK
    stride_ar *= UNIT_AR
    stride_cm *= UNIT_CM
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    slot = tl.program_id(0)
    i_k = tl.program_id(1)
    j = tl.program_id(2) * BR
    i, first, m_m = tile_of_slot(cu_ptr, n_segments, length, M, slot, BM)
    i_rows = tl.arange(0, BM)
    o_k = tl.arange(0, BK)
    o_r = tl.arange(0, BR)
    m_r = o_r < r - j
    k_start = i_k * chunk
    k_stop = tl.minimum(k_start + chunk, K)

    row = first.to(tl.int64)
    p_x = x_ptr + row * stride_xm + k_start
    p_a = a_ptr + i.to(tl.int64) * stride_ai + k_start.to(tl.int64) * stride_ak + j.to(tl.int64) * stride_ar
    o_x = i_rows[:, None].to(INDEX) * stride_xm + o_k[None, :]  # [BM, BK]
    o_a = o_k[:, None].to(INDEX) * stride_ak + o_r[None, :].to(INDEX) * stride_ar  # [BK, BR]
    if copy_ptr is not None:
        p_copy = copy_ptr + row * stride_cm + k_start
        o_copy = i_rows[:, None].to(INDEX) * stride_cm + o_k[None, :]  # [BM, BK]
        m_copy = m_m & (j == 0)
    b_s = tl.zeros((BM, BR), dtype=tl.float32)
    for k in range(k_start, k_stop, BK):
        if EVEN_K:
            b_x = tl.load(p_x + o_x, mask=m_m[:, None], other=0.0)
            b_a = tl.load(p_a + o_a, mask=m_r[None, :], other=0.0)
        else:
            m_k = o_k < k_stop - k
            b_x = tl.load(p_x + o_x, mask=m_m[:, None] & m_k[None, :], other=0.0)
            b_a = tl.load(p_a + o_a, mask=m_k[:, None] & m_r[None, :], other=0.0)
        b_s = tl.dot(b_x, b_a.to(dtype), b_s, input_precision=PRECISION)
        if copy_ptr is not None:
            tl.store(p_copy + o_copy, b_x, mask=m_copy[:, None] & (o_k < k_stop - k)[None, :])
            p_copy += BK
        p_x += BK
        p_a += BK * tl.cast(stride_ak, INDEX)
    factor = scaling_of(scaling_ptr, scaling, stride_scaling, i)
    p_s = s_ptr + (i_k.to(tl.int64) * M + row) * r + j
    tl.store(p_s + i_rows[:, None] * r + o_r[None, :], b_s * factor, mask=m_m[:, None] & m_r[None, :])


def shrink(
    xs: Sequence[Tensor],
    factors: Sequence[Tensor],
    scaling: float | Tensor,
    segments: Segments,
    config: ShrinkConfig,
    wide: Tensor | None = None,
) -> Tensor:
    """Σ_j scaling · xs[j] [M, K_j] · factors[j] ([K_j, r] or [B, K_j, r]), summed in the order of j: [M, r] fp32.

    wide: [M, K + p], p >= r, which a single x is written to, S behind it and zeros behind that.
    """
    splits = [_planes(x, factor, scaling, segments, config) for x, factor in zip(xs, factors, strict=True)]
    planes = torch.empty(sum(splits), xs[0].shape[0], factors[0].shape[-1], dtype=torch.float32, device=xs[0].device)
    done = 0
    for x, factor, split in zip(xs, factors, splits, strict=True):
        _launch(x, factor, scaling, segments, planes[done : done + split], config, wide)
        done += split
    return sum_planes(planes, torch.float32, None if wide is None else wide[:, xs[0].shape[1] :])


def planes_of(x: Tensor, factor: Tensor, scaling: float | Tensor, segments: Segments, config: ShrinkConfig) -> Tensor:
    """scaling · x·factor as planes [P, M, r] fp32, whose sum it is."""
    shape = _planes(x, factor, scaling, segments, config), x.shape[0], factor.shape[-1]
    planes = torch.empty(shape, dtype=torch.float32, device=x.device)
    _launch(x, factor, scaling, segments, planes, config, None)
    return planes


def _planes(x: Tensor, factor: Tensor, scaling: float | Tensor, segments: Segments, config: ShrinkConfig) -> int:
    walked = launch.walk(segments, factor.dim() == 3 or is_per_sample(scaling))
    slots = launch.count_slots(walked, x.shape[0], config.BM)
    return launch.split_of(slots, triton.cdiv(x.shape[1], config.BK), x.device)


def _launch(x, a, scaling, segments, planes, config, copy):
    (M, K), r = x.shape, a.shape[-1]
    if M == 0:
        return
    walked = launch.walk(segments, a.dim() == 3 or is_per_sample(scaling))
    BM, BK, BR = config.BM, config.BK, rank_block(r)
    chunk = triton.cdiv(triton.cdiv(K, BK), planes.shape[0]) * BK
    with launch.device_guard(x):
        shrink_kernel[(launch.count_slots(walked, M, BM), planes.shape[0], triton.cdiv(r, BR))](
            x_ptr=x,
            a_ptr=a,
            s_ptr=planes,
            copy_ptr=copy,
            M=M,
            **launch.in_units(
                K=K,
                r=r,
                stride_xm=x.stride(0),
                **launch.strides_of(a, "ai", "ak", "ar"),
                stride_cm=0 if copy is None else copy.stride(0),
            ),
            **launch.of_segments(walked),
            chunk=chunk,
            **launch.of_scaling(scaling),
            PRECISION=launch.precision(x.dtype),
            INDEX=launch.index_type((x, BM, BK), (a, BK, BR), (copy, BM, BK)),
            EVEN_K=K % BK == 0,
            BM=BM,
            BK=BK,
            BR=BR,
            **launch.of_config(config),
        )
