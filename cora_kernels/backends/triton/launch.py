"""What every launcher here asks of torch: the device to launch on, the precision allowed, the width of offsets."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cora_kernels.operands import is_per_sample
from cora_kernels.planning import tile_sizes
from cora_kernels.planning.tile_sizes import GemmConfig, OuterConfig, ShrinkConfig
from cora_kernels.segments import Segments

Walked = tuple[Tensor | None, int, int]

# What differs from batch to batch: a kernel that Triton compiled for one batch serves every other.
BATCH_SIZES = ["M", "n_segments", "length", "n_planes"]


def device_guard(t: Tensor) -> AbstractContextManager:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(t.device) if t.is_cuda else nullcontext()


def precision(dtype: torch.dtype) -> str:
    """tf32 for fp32 where the user allows it to torch's own matmul and the part has it."""
    allowed = getattr(torch.backends.cuda.matmul, "fp32_precision", None)  # since torch 2.9
    if allowed is None:
        allowed = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
    return "tf32" if dtype == torch.float32 and allowed == "tf32" and not torch.version.hip else "ieee"


def index_type(*tiles: tuple[Tensor | None, int, int]) -> tl.dtype:
    """The type of offsets inside tiles (tensor, rows, columns): 64 bits only where 32 overflow."""
    spans = [rows * abs(t.stride(-2)) + columns * abs(t.stride(-1)) for t, rows, columns in tiles if t is not None]
    return tl.int64 if max(spans) >= 2**31 else tl.int32


def walk(segments: Segments, per_sample: bool) -> Walked:
    """(cu_seqlens, number of segments, length) of the segments to walk: one of all rows where every sample is alike."""
    if not per_sample:
        return None, 1, segments.rows
    return segments.cu_seqlens, segments.batch, segments.length or 0


def in_units(**numbers: int) -> dict[str, int]:
    """Strides and sizes by name, each divided by the largest power of two up to 8 that divides it, and that power as
    the constant UNIT_<name>, which the kernel multiplies it by again.

    Triton knows of an argument only whether 16 divides it, and moves 16 bytes at a time only where it knows that 8 do:
    at a rank of 8, 24 or 40 it would read A, B and S in elements of two bytes.
    """
    passed: dict[str, int] = {}
    for name, number in numbers.items():
        known = (
            number % 16 == 0 or number >= 2**31
        )  # beyond 32 bits the product would overflow the type of the quotient
        unit = 1 if known else number & -number
        passed |= {name: number // unit, f"UNIT_{name.removeprefix('stride_').upper()}": unit}
    return passed


def strides_of(factor: Tensor | None, *names: str) -> dict[str, int]:
    """The strides of A or B by the names of its three dimensions; 0 between the samples of one that they share."""
    if factor is None:
        strides = 0, 0, 0
    else:
        strides = factor.stride(0) if factor.dim() == 3 else 0, factor.stride(-2), factor.stride(-1)
    return {f"stride_{name}": stride for name, stride in zip(names, strides, strict=True)}


def of_segments(walked: Walked) -> dict[str, Any]:
    """The arguments of a kernel that say which segments it walks."""
    cu_seqlens, n_segments, length = walked
    return {"cu_ptr": cu_seqlens, "n_segments": n_segments, "length": length}


def of_scaling(scaling: float | Tensor) -> dict[str, Any]:
    """The arguments of a kernel that say how to scale: each sample by its own number, or all by one.

    The one may be a tensor, too: its value is read on the GPU, so that a CUDA graph reads it anew in every replay.
    """
    if isinstance(scaling, Tensor):
        stride = scaling.stride(0) if is_per_sample(scaling) else 0
        return {"scaling_ptr": scaling, "scaling": 0.0, "stride_scaling": stride}
    return {"scaling_ptr": None, "scaling": float(scaling), "stride_scaling": 0}


def of_config(config: GemmConfig | ShrinkConfig | OuterConfig) -> dict[str, Any]:
    """The options of a launch; products and sums may be fused whatever the user asks of Triton elsewhere."""
    return {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}


def count_slots(walked: Walked, rows: int, BM: int) -> int:
    """How many slots of BM rows the segments have; see indexing.first_slot."""
    cu_seqlens, n_segments, length = walked
    return n_segments * triton.cdiv(length, BM) if cu_seqlens is None else rows // BM + n_segments


def split_of(programs: int, trips: int, device: torch.device) -> int:
    """Into how many planes to split a loop on the device."""
    return tile_sizes.split_of(programs, trips, tile_sizes.multiprocessors(device))
