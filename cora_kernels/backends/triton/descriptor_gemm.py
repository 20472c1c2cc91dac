"""y = x·W + S·B + bias, S given, on Hopper and later: tensor descriptors bring every tile (the TMA), a persistent grid.

S·B is one more step of the depth into the same accumulator. It gives dx too. Triton has descriptors that the host makes
from 3.4 on; what they cannot read, `planning.choose` leaves to the kernel of pointers.
"""

import triton
import triton.language as tl
from torch import Tensor

from cora_kernels.backends.triton import launch
from cora_kernels.backends.triton.indexing import grouped_tile, rows_of, slots_of, tile_of_slot
from cora_kernels.planning.tile_sizes import GemmConfig, multiprocessors, rank_block
from cora_kernels.segments import Segments


@triton.jit
def _store_half(
    b_y,
    y_desc,
    y_ptr,
    bias_ptr,
    first,
    stop,
    column,
    N,
    stride_ym,
    stride_bias,
    ACCUMULATE: tl.constexpr,
    TAILS: tl.constexpr,
):
    """Half the columns of a tile of y, whose rows from `stop` on belong to the next sample."""
    o_m = first + tl.arange(0, b_y.shape[0])
    o_n = column + tl.arange(0, b_y.shape[1])
    if bias_ptr is not None:
        p_bias = bias_ptr + o_n.to(tl.int64) * stride_bias
        b_y += tl.load(p_bias, mask=o_n < N, other=0.0).to(tl.float32)[None, :]
    if ACCUMULATE:
        b_y += y_desc.load([first, column]).to(tl.float32)
    b_out = b_y.to(y_desc.dtype)
    # A descriptor ends where y ends, and no sooner.
    if TAILS and first + b_y.shape[0] > stop:
        p_y = y_ptr + o_m.to(tl.int64)[:, None] * stride_ym + o_n[None, :]
        tl.store(p_y, b_out, mask=(o_m < stop)[:, None] & (o_n < N)[None, :])
    else:
        y_desc.store([first, column], b_out)


@triton.jit(do_not_specialize=launch.BATCH_SIZES)
def descriptor_gemm_kernel(
    x_desc,
    w_desc,
    s_desc,
    b_desc,
    y_desc,
    y_ptr,
    bias_ptr,
    cu_ptr,
    M,
    N,
    K,
    r,
    n_segments,
    length,
    stride_ym,
    stride_bias,
    UNIT_N: tl.constexpr,
    UNIT_YM: tl.constexpr,
    W_BY_COLUMN: tl.constexpr,
    B_BY_COLUMN: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    TAILS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """[BM, BN] tiles of y, of one sample each. Beyond its matrix a descriptor reads zeros and writes nothing."""
    N *= UNIT_N
    stride_ym *= UNIT_YM
    n_m = slots_of(cu_ptr, n_segments, length, M, BM)
    n_n = tl.cdiv(N, BN)
    # Not flattened into one loop with the depth: of that Triton makes nothing here, or does not compile it (3.4, 3.9).
    for tile in tl.range(tl.program_id(0), n_m * n_n, tl.num_programs(0)):
        i_m, i_n = grouped_tile(tile, n_m, n_n, GROUP_M)
        i, first, _ = tile_of_slot(cu_ptr, n_segments, length, M, i_m, BM)
        first = tl.maximum(first, 0)  # whatever cu_seqlens says
        _, stop = rows_of(cu_ptr, length, M, i)
        column = i_n * BN
        depth = K
        if TAILS:  # Of packed samples there may be slots without rows.
            depth = tl.where(first < stop, K, 0)

        b_y = tl.zeros((BM, BN), dtype=tl.float32)
        for k in range(0, depth, BK):
            b_x = x_desc.load([first, k])  # [BM, BK]
            if W_BY_COLUMN:
                b_w = w_desc.load([column, k]).T  # [BK, BN]
            else:
                b_w = w_desc.load([k, column])
            b_y = tl.dot(b_x, b_w, b_y)
        for j in tl.range(0, r, BR, num_stages=1):
            b_s = s_desc.load([first, j])  # [BM, BR]
            if B_BY_COLUMN:
                b_b = b_desc.load([i, column, j]).reshape(BN, BR).T  # [BR, BN]
            else:
                b_b = b_desc.load([i, j, column]).reshape(BR, BN)
            b_y = tl.dot(b_s.to(x_desc.dtype), b_b, b_y)

        # In halves: the accumulator and all of what is stored do not fit the registers beside one another.
        b_left, b_right = b_y.reshape(BM, 2, BN // 2).permute(0, 2, 1).split()
        right = column + BN // 2
        _store_half(b_left, y_desc, y_ptr, bias_ptr, first, stop, column, N, stride_ym, stride_bias, ACCUMULATE, TAILS)
        _store_half(b_right, y_desc, y_ptr, bias_ptr, first, stop, right, N, stride_ym, stride_bias, ACCUMULATE, TAILS)


def descriptor_gemm(
    x: Tensor,
    w: Tensor,
    s: Tensor,
    b: Tensor,
    segments: Segments,
    config: GemmConfig,
    bias: Tensor | None = None,
    y: Tensor | None = None,
) -> Tensor:
    """x [M, K]·w [K, N] + s [M, r]·b [r, N] or [B, r, N] (+ bias), added to y [M, N] if there is one.

    x, w and b of one 16-bit dtype, s fp32, and each such that `choose.is_described` holds.
    """
    # Not at import: before Triton 3.4 there is none.
    from triton.tools.tensor_descriptor import TensorDescriptor

    (M, K), N, r = x.shape, w.shape[1], b.shape[-2]
    accumulate = y is not None
    if y is None:
        y = x.new_empty(M, N)
    if M == 0:
        return y
    cu_seqlens, n_segments, length = walked = launch.walk(segments, b.dim() == 3)
    BM, BN, BK, BR = config.BM, config.BN, config.BK, rank_block(r)
    tiles = launch.count_slots(walked, M, BM) * triton.cdiv(N, BN)
    b = b if b.dim() == 3 else b[None]
    w_by_column, b_by_column = w.stride(0) == 1, b.stride(1) == 1
    with launch.device_guard(x):
        descriptor_gemm_kernel[(min(tiles, multiprocessors(x.device)),)](
            x_desc=TensorDescriptor.from_tensor(x, [BM, BK]),
            w_desc=TensorDescriptor.from_tensor(*((w.t(), [BN, BK]) if w_by_column else (w, [BK, BN]))),
            s_desc=TensorDescriptor.from_tensor(s, [BM, BR]),
            b_desc=TensorDescriptor.from_tensor(*((b.mT, [1, BN, BR]) if b_by_column else (b, [1, BR, BN]))),
            y_desc=TensorDescriptor.from_tensor(y, [BM, BN // 2]),
            y_ptr=y,
            bias_ptr=bias,
            M=M,
            K=K,
            r=r,
            **launch.in_units(N=N, stride_ym=y.stride(0)),
            **launch.of_segments(walked),
            stride_bias=0 if bias is None else bias.stride(0),
            W_BY_COLUMN=w_by_column,
            B_BY_COLUMN=b_by_column,
            ACCUMULATE=accumulate,
            TAILS=n_segments > 1 and (cu_seqlens is not None or length % BM != 0),
            BM=BM,
            BN=BN,
            BK=BK,
            BR=BR,
            GROUP_M=config.GROUP_M,
            **launch.of_config(config),
        )
    return y
