"""What every kernel here asks of the batch: which sample owns a row, which rows a sample has, which tile comes next."""

import triton
import triton.language as tl


@triton.jit
def segment_of(cu_ptr, n_segments, length, row):
    """The sample that owns a row: the last one that starts at or before it."""
    if cu_ptr is None:
        low = row // length
    else:
        low = row * 0
        high = low + n_segments - 1
        while low < high:
            middle = (low + high + 1) // 2
            if tl.load(cu_ptr + middle) <= row:
                low = middle
            else:
                high = middle - 1
    return low


@triton.jit
def rows_of(cu_ptr, length, M, i):
    """The rows start:stop of sample i, inside 0:M whatever cu_seqlens says."""
    if cu_ptr is None:
        start = i * length
        stop = start + length
    else:
        start = tl.maximum(tl.load(cu_ptr + i), 0)
        stop = tl.minimum(tl.load(cu_ptr + i + 1), M)
    return start, stop


@triton.jit
def share_of_rows(cu_ptr, length, M, i, BM: tl.constexpr):
    """Of the rows of sample i those of program_id(1), which splits them in whole tiles: first:last, perhaps none."""
    start, stop = rows_of(cu_ptr, length, M, i)
    share = tl.cdiv(tl.cdiv(tl.maximum(stop - start, 0), tl.num_programs(1)), BM) * BM
    first = start + tl.program_id(1) * share
    return first, tl.minimum(first + share, stop)


@triton.jit
def first_slot(cu_ptr, length, i, BM: tl.constexpr):
    """The number of the first row tile of sample i where tiles do not straddle samples.

    Packed, sample i starts at slot cu[i] // BM + i: enough slots for its tiles, and no prefix sum over the lengths.
    """
    if cu_ptr is None:
        slot = i * tl.cdiv(length, BM)
    else:
        slot = tl.load(cu_ptr + i) // BM + i
    return slot


@triton.jit
def slots_of(cu_ptr, n_segments, length, M, BM: tl.constexpr):
    """How many slots the samples have together."""
    if cu_ptr is None:
        slots = n_segments * ((length + BM - 1) // BM)
    else:
        slots = M // BM + n_segments
    return slots


@triton.jit
def segment_of_slot(cu_ptr, n_segments, length, slot, BM: tl.constexpr):
    """The sample whose row tiles the slot belongs to."""
    if cu_ptr is None:
        low = slot // tl.cdiv(length, BM)
    else:
        low = slot * 0
        high = low + n_segments - 1
        while low < high:
            middle = (low + high + 1) // 2
            if first_slot(cu_ptr, length, middle, BM) <= slot:
                low = middle
            else:
                high = middle - 1
    return low


@triton.jit
def tile_of_slot(cu_ptr, n_segments, length, M, slot, BM: tl.constexpr):
    """The sample that a slot belongs to, the first row of its tile, and which of the tile's BM rows the sample has."""
    i = segment_of_slot(cu_ptr, n_segments, length, slot, BM)
    start, stop = rows_of(cu_ptr, length, M, i)
    first = start + (slot - first_slot(cu_ptr, length, i, BM)) * BM
    rows = first + tl.arange(0, BM)
    return i, first, (rows >= start) & (rows < stop)


@triton.jit
def scaling_of(scaling_ptr, scaling, stride_scaling, i):
    """The scaling of sample i in fp32: its own, or the one number of all."""
    factor = tl.full((), scaling, tl.float32)
    if scaling_ptr is not None:
        factor = tl.load(scaling_ptr + i * stride_scaling).to(tl.float32)
    return factor


@triton.jit
def grouped_tile(tile, n_m, n_n, GROUP_M: tl.constexpr):
    """Row and column of a tile: GROUP_M row tiles side by side share each W tile while it is in L2."""
    in_group = GROUP_M * n_n
    group = tile // in_group
    height = tl.minimum(n_m - group * GROUP_M, GROUP_M)
    within = tile % in_group
    return group * GROUP_M + within % height, within // height
