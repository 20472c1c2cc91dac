"""What every launcher here asks of torch: the device to launch on, the precision allowed, the width of offsets."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cora_kernels.planning.tile_sizes import GemmConfig, OuterConfig, ShrinkConfig, multiprocessors
from cora_kernels.segments import Segments

Walked = tuple[Tensor | None, int, int]


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


def rank_block(r: int, largest: int = 64) -> int:
    """The columns of S in one tensor-core step: at least 16, a power of two."""
    return min(max(triton.next_power_of_2(r), 16), largest)


def walk(segments: Segments, per_sample: bool) -> Walked:
    """(cu_seqlens, number of segments, length) of the segments to walk: one of all rows where every sample is alike."""
    if not per_sample:
        return None, 1, segments.rows
    return segments.cu_seqlens, segments.batch, segments.length or 0


def of_segments(walked: Walked) -> dict[str, Any]:
    """The arguments of a kernel that say which segments it walks."""
    cu_seqlens, n_segments, length = walked
    return {"cu_ptr": cu_seqlens, "n_segments": n_segments, "length": length}


def of_scaling(scaling: float | Tensor) -> dict[str, Any]:
    """The arguments of a kernel that say how to scale: each sample by its own number, or all by one."""
    if isinstance(scaling, Tensor):
        return {"scaling_ptr": scaling, "scaling": 0.0, "stride_scaling": scaling.stride(0)}
    return {"scaling_ptr": None, "scaling": float(scaling), "stride_scaling": 0}


def of_config(config: GemmConfig | ShrinkConfig | OuterConfig) -> dict[str, Any]:
    """The options of a launch; products and sums may be fused whatever the user asks of Triton elsewhere."""
    return {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}


def count_slots(walked: Walked, rows: int, BM: int) -> int:
    """How many slots of BM rows the segments have; see indexing.first_slot."""
    cu_seqlens, n_segments, length = walked
    return n_segments * triton.cdiv(length, BM) if cu_seqlens is None else rows // BM + n_segments


def split_of(programs: int, trips: int, device: torch.device) -> int:
    """Into how many planes to split a loop: two programs for every multiprocessor, at least four trips for each."""
    return max(1, min(triton.cdiv(2 * multiprocessors(device), max(programs, 1)), trips // 4))
