"""Tile sizes by kernel and part, hand-picked, and the limits of the kernels. `planning.choose` picks among them."""

from typing import NamedTuple

import torch

from cora_kernels.planning.versions import triton_version


class GemmConfig(NamedTuple):
    """One [BM, BN] tile of y a program, or a persistent grid: one program a multiprocessor, which walks the tiles."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int
    GROUP_M: int = 8
    persistent: bool = False


class ShrinkConfig(NamedTuple):
    """[BM, r] tiles of S, BK of K at a time."""

    BM: int
    BK: int
    num_warps: int
    num_stages: int


class OuterConfig(NamedTuple):
    """[BP, r] tiles of dA or dBᵀ, BM rows at a time."""

    BM: int
    BP: int
    num_warps: int
    num_stages: int


# 16-bit GEMMs, S given. Large tiles first, the last one for a few rows. At 128 x 128 and below two blocks or more share
# a multiprocessor, so that one computes while another stores. None spills on its part: the tests compile them.
_SMALL = GemmConfig(64, 64, 64, 4, 4), GemmConfig(16, 64, 128, 4, 4)
_LARGE = GemmConfig(128, 256, 64, 8, 3), GemmConfig(128, 128, 64, 8, 3)
_GEMM = {
    "sm_80": (GemmConfig(128, 256, 32, 8, 3), GemmConfig(128, 128, 32, 4, 4), GemmConfig(64, 128, 64, 4, 3), *_SMALL),
    "sm_90": (*_LARGE, GemmConfig(64, 128, 64, 4, 4), *_SMALL),
    "sm_100": (*_LARGE, GemmConfig(128, 64, 64, 4, 4), *_SMALL),
    # Its shared memory holds two stages.
    "gfx942": tuple(c._replace(num_stages=2) for c in (*_LARGE, GemmConfig(64, 128, 64, 4, 2), *_SMALL)),
}
# One pass holds S beside the tile: on sm_80, where both live in registers, the largest tiles would spill.
_ONE_PASS = _GEMM | {"sm_80": (GemmConfig(128, 128, 64, 8, 3), *_GEMM["sm_80"][2:])}
# The GEMM of descriptors, always persistent. A depth of 64 is the 128 bytes that the TMA swizzles. It copies past the
# registers and needs no addresses in them: the large tile compiles without spills by older Tritons, too.
_DESCRIPTORS = (
    GemmConfig(128, 256, 64, 8, 3, persistent=True),
    GemmConfig(128, 128, 64, 8, 4, persistent=True),
)
# fp32, on CUDA cores or in tf32.
_GEMM_FP32 = {
    "sm_80": (GemmConfig(64, 64, 32, 8, 3), GemmConfig(16, 64, 32, 4, 3)),
    "sm_90": (GemmConfig(64, 64, 32, 4, 3), GemmConfig(16, 64, 32, 4, 3)),
    "sm_100": (GemmConfig(64, 64, 32, 4, 3), GemmConfig(16, 64, 32, 4, 3)),
    "gfx942": (GemmConfig(64, 64, 32, 4, 2), GemmConfig(16, 64, 32, 4, 2)),
}

# The CUDA C++ GEMM, as csrc/cuda/lowrank_gemm.cu has it; registers hold S beside a tile of 128 x 128 up to rank 16.
_CUDA = (GemmConfig(128, 128, 32, 4, 4), GemmConfig(64, 64, 64, 4, 3), GemmConfig(16, 128, 64, 4, 3))
_CUDA_BESIDE_WIDE_S = (GemmConfig(64, 128, 32, 4, 4), *_CUDA[1:])

# Decode serves samples of at most so many rows, and so large a rank: its S lies in shared memory.
DECODE_LENGTH = 8
DECODE_RANK = 128
# The largest rank that one pass serves: beyond it S·A costs more per column tile than a second read of x.
ONE_PASS_RANK = 32
# The largest rank whose dS and dB come from one read of g: beyond it they fill the registers.
SHRINK_OUTER_RANK = 32


def gemm_configs(arch: str, dtype: torch.dtype, one_pass: bool) -> tuple[GemmConfig, ...]:
    """The tiles to choose from."""
    if dtype == torch.float32 or one_pass or not _is_old_triton():
        return (_GEMM_FP32 if dtype == torch.float32 else _ONE_PASS if one_pass else _GEMM)[arch]
    # Behind the main loop older compilers need more registers: of a tile a thread has 64 numbers at most.
    small = (c for c in _GEMM[arch] if c.BM * c.BN <= 128 * 128)
    return tuple(c._replace(num_warps=max(c.num_warps, c.BM * c.BN // 2048)) for c in small)


def descriptor_configs(arch: str) -> tuple[GemmConfig, ...]:
    """The tiles of the GEMM of descriptors: none on a part without wgmma or tcgen05, which read what the TMA brings."""
    if arch not in ("sm_90", "sm_100"):
        return ()
    # Before Triton 3.6 the large one spills there if it adds to y and B is each sample's own.
    return _DESCRIPTORS[1:] if arch == "sm_100" and _is_old_triton() else _DESCRIPTORS


def vendor_gemm_tiles(arch: str, dtype: torch.dtype) -> tuple[GemmConfig, ...]:
    """Those that the vendor's GEMM is taken to have, which no Triton compiles."""
    return (_GEMM_FP32 if dtype == torch.float32 else _GEMM)[arch]


def _is_old_triton() -> bool:
    version = triton_version()
    return version is not None and version < (3, 6)


def cuda_gemm_configs(rank: int) -> tuple[GemmConfig, ...]:
    """The tiles of the CUDA C++ GEMM beside an S of this rank, or where S is given: rank 0."""
    return _CUDA_BESIDE_WIDE_S if rank > 16 else _CUDA


def shrink_config(arch: str, dtype: torch.dtype, rows: int, rank: int) -> ShrinkConfig:
    """For samples of about `rows` rows each."""
    amd, fp32 = arch.startswith("gfx"), dtype == torch.float32
    BM = 16 if rows <= 16 else 32 if rows <= 32 or fp32 else 64
    wide = fp32 or (_is_old_triton() and _is_loaded_by_element(rank))
    return ShrinkConfig(BM, 64 if wide else 128, 8 if wide and not amd else 4, 2 if amd else 3)


def _is_loaded_by_element(rank: int) -> bool:
    """Rows of such a rank are no whole 16 bytes: the address of every number takes registers."""
    return rank % 8 != 0


def outer_config(arch: str, dtype: torch.dtype, rank: int) -> OuterConfig:
    num_stages = 2 if arch.startswith("gfx") else 3
    if dtype != torch.float32 and _is_loaded_by_element(rank):
        return OuterConfig(32, 64, 2, num_stages)  # the one that no Triton of the tests makes spill
    BP = 64 if dtype == torch.float32 or rank > 32 else 128
    return OuterConfig(32 if dtype == torch.float32 else 64, BP, 4, num_stages)


def shrink_outer_config(arch: str, dtype: torch.dtype, rank: int) -> OuterConfig:
    """Wide tiles of g: each adds a plane of dS."""
    if dtype == torch.float32:
        return OuterConfig(32, 64, 4, 2)
    if arch.startswith("gfx"):
        return OuterConfig(32, 128, 4, 2)
    # Half the rows for a wide S: before Triton 3.4 all of them would take more than the 99 KB of sm_86 and sm_89.
    return OuterConfig(32 if arch == "sm_80" and rank > 16 else 64, 256, 8, 3)


def rank_block(r: int, largest: int = 64) -> int:
    """The columns of S in one tensor-core step: at least 16, a power of two."""
    return min(max(1 << (r - 1).bit_length(), 16), largest)


def decodes_in_two(samples: int, multiprocessors: int) -> bool:
    """Whether decode's S comes from a launch of its own: of so few samples each has many programs, which would all
    compute it."""
    return 4 * samples < multiprocessors


def split_of(programs: int, trips: int, multiprocessors: int) -> int:
    """Into how many planes to split a loop: two programs for every multiprocessor, at least four trips for each."""
    return max(1, min(-(-2 * multiprocessors // max(programs, 1)), trips // 4))


def multiprocessors(device: torch.device) -> int:
    """Of the device; an A100's for tensors that no GPU holds."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 108
