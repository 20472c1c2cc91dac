"""The one place that decides which kernels of a GPU backend run a problem: for "triton" and for "cuda"."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from cora_kernels.operands import is_per_sample
from cora_kernels.planning import cost, tuning_file
from cora_kernels.planning.cost import Plan, Problem
from cora_kernels.planning.gpus import Gpu
from cora_kernels.planning.tile_sizes import (
    DECODE_LENGTH,
    DECODE_RANK,
    ONE_PASS_RANK,
    SHRINK_OUTER_RANK,
    GemmConfig,
    cuda_gemm_configs,
    descriptor_configs,
    gemm_configs,
)
from cora_kernels.planning.versions import has_descriptors
from cora_kernels.segments import Segments

# The dtypes of x that each has kernels for.
DTYPES = {
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "cuda": (torch.bfloat16, torch.float16),
}
# The CPU's time for a launch by C++.
_CUDA_HOST_SECONDS = 6e-6


def problem_of(
    x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float | Tensor, segments: Segments, s_given: bool, added: bool
) -> Problem:
    """x [M, K]·w [K, N] + s·(x·a)·b: a scaling for each sample cuts tiles as an A for each sample does."""
    return Problem(
        rows=x.shape[0],
        inputs=x.shape[1],
        outputs=w.shape[1],
        rank=b.shape[-2],
        samples=segments.batch,
        length=segments.length,
        dtype=x.dtype,
        sample_a=a.dim() == 3 or is_per_sample(scaling),
        sample_b=b.dim() == 3,
        s_given=s_given,
        added=added,
        described=x.dtype == w.dtype == b.dtype and all(map(is_described, (x, w, b))),
    )


def is_described(t: Tensor) -> bool:
    """Whether a tensor descriptor can read the matrix or its transpose, or those of each sample.

    The TMA wants numbers side by side along one dimension, along the others whole 16 bytes from each to the next, and
    the first at such a place, too.
    """
    strides = [stride * t.element_size() for stride in t.stride()]
    strides.pop(-2 if t.stride(-2) == 1 else -1)
    side_by_side = 1 in t.stride()[-2:] and t.data_ptr() % 16 == 0
    return t.numel() > 0 and side_by_side and all(0 < stride < 2**40 and stride % 16 == 0 for stride in strides)


@lru_cache(maxsize=4096)
def choose(problem: Problem, gpu: Gpu, backend: str, strategy: str | None = None) -> Plan:
    """The plan that the backend runs: with the strategy asked for if the problem has it, else with the one chosen.

    That is what was tuned on this GPU, for "triton", else the fastest by the cost rule.
    """
    found = plans(problem, gpu, backend)
    measured = measured_for(problem, gpu, backend)
    if strategy is None and measured is not None:
        strategy = measured["strategy"]
    plan = next((plan for plan in found if plan.strategy == strategy), found[0])
    if measured and measured["strategy"] == plan.strategy == strategy and measured["config"]:
        return plan._replace(config=GemmConfig(*measured["config"]))
    return plan


def measured_for(problem: Problem, gpu: Gpu, backend: str) -> dict | None:
    """The strategy and tile that `python -m cora_kernels.tune` found the fastest for such problems, if it has run."""
    return tuning_file.load(gpu.name)["strategies"].get(key_of(problem)) if backend == "triton" else None


@lru_cache(maxsize=4096)
def plans(problem: Problem, gpu: Gpu, backend: str = "triton") -> tuple[Plan, ...]:
    """Every plan of the backend's kernels for the problem, the fastest by the cost rule first."""
    p, cuda = problem, backend == "cuda"
    gpu = rates_of(gpu, backend)

    def tiles(one_pass: bool) -> tuple[GemmConfig, ...]:
        if cuda:
            return (_cuda_tile(p, gpu, one_pass),)
        return gemm_configs(gpu.arch, p.dtype, one_pass)

    found, excluded = [], reasons(p, gpu, backend)
    if "one_pass" not in excluded:
        found.append(cost.one_pass(p, gpu, tiles(True)))
    found += [cost.two_kernels(p, gpu, tiles(False), split=not cuda), cost.separate(p, gpu, split=not cuda)]
    if "descriptors" not in excluded:
        found.append(cost.descriptors(p, gpu, descriptor_configs(gpu.arch)))
    if "decode" not in excluded:
        found.append(cost.decode(p, gpu, split=not cuda))
    return tuple(sorted(found, key=lambda plan: plan.seconds))


@lru_cache(maxsize=4096)
def concatenates(problems: tuple[Problem, ...], gpu: Gpu, backend: str) -> bool:
    """Whether [x | S]·[W | Bᵀ]ᵀ of these linears of one x is faster than all else: where the batch shares each B."""
    apart = [launch for p in problems for launch in choose(p, gpu, backend).launches]
    return concat(problems, gpu, backend).seconds < cost.seconds(apart)


@lru_cache(maxsize=4096)
def concat(problems: tuple[Problem, ...], gpu: Gpu, backend: str) -> Plan:
    """The plan of that: Triton's shrink copies x on its way."""
    return cost.concat(problems, rates_of(gpu, backend), copies=backend == "triton")


def rates_of(gpu: Gpu, backend: str) -> Gpu:
    """The rates with the GEMM and the launches of the backend in the place of Triton's."""
    return gpu._replace(gemm=gpu.gemm_cuda, host=_CUDA_HOST_SECONDS) if backend == "cuda" else gpu


def reasons(problem: Problem, gpu: Gpu, backend: str) -> dict[str, str]:
    """Of the strategies that the problem, the part or the backend excludes, why."""
    p, found = problem, {}
    if p.s_given:
        found["one_pass"] = "S is there already"
    elif p.rank > ONE_PASS_RANK:
        found["one_pass"] = f"up to rank {ONE_PASS_RANK}"
    for name, why in (("descriptors", _why_not_described(p, gpu, backend)), ("decode", _why_not_decoded(p))):
        if why is not None:
            found[name] = why
    return found


def _why_not_described(p: Problem, gpu: Gpu, backend: str) -> str | None:
    if backend != "triton":
        return "of Triton alone"
    if not descriptor_configs(gpu.arch):
        return "on Hopper and data-centre Blackwell"
    if not has_descriptors():
        return "Triton 3.4 or later"
    if p.dtype == torch.float32:
        return "bfloat16 and float16"
    if any(size % 8 for size in (p.inputs, p.outputs, p.rank)):
        return "K, N and r in multiples of 8"
    return None if p.described else "x, W and B of one dtype, in rows of whole 16 bytes"


def _why_not_decoded(p: Problem) -> str | None:
    if p.added:
        return "does not add to y"
    if p.s_given:
        return "S is there already"
    if p.length is None or not 1 <= p.length <= DECODE_LENGTH:
        return f"samples of up to {DECODE_LENGTH} rows, not packed"
    return f"up to rank {DECODE_RANK}" if p.rank > DECODE_RANK else None


def _cuda_tile(p: Problem, gpu: Gpu, one_pass: bool) -> GemmConfig:
    """As csrc/cuda/lowrank_gemm.cu picks it: whole waves of tiles, and of the matrix rate what a tile reaches."""

    def waves(tile: GemmConfig) -> int:
        tiles = cost.row_tiles(p, tile.BM, one_pass) * -(-p.outputs // tile.BN)
        return -(-tiles // gpu.multiprocessors) * (tile.BM * tile.BN + 1024)

    return min(cuda_gemm_configs(p.rank if one_pass else 0), key=waves)


def key_of(problem: Problem) -> str:
    """Problems of one key share what was measured for one of them: rows and samples to the nearest power of two."""
    p = problem
    rows, samples = (round(math.log2(max(n, 1))) for n in (p.rows, p.samples))
    short = _why_not_decoded(p._replace(added=False)) is None
    kinds = f"{'A' * p.sample_a}{'B' * p.sample_b}{'S' * p.s_given}{'T' * short}"
    return f"{p.inputs}-{p.outputs}-r{p.rank}-rows{rows}-samples{samples}-{str(p.dtype)[6:]}-{kinds}"


_SLOWER = "dS costs less on the way of dx"


def why_not_fused(problem: Problem, backend: str) -> str:
    """Why dS and dB do not come from one read of g, where they do not."""
    if backend != "triton":
        return "of Triton alone"
    return f"up to rank {SHRINK_OUTER_RANK}" if problem.rank > SHRINK_OUTER_RANK else _SLOWER


def fuses(problem: Problem, gpu: Gpu, backend: str = "triton") -> bool:
    """Whether dS and dB of the backward's problem come from one read of g: where that is faster, and Triton has it.

    A problem without outputs is one of which no dx is wanted.
    """
    if why_not_fused(problem, backend) != _SLOWER:
        return False
    together, apart = cost.shrink_outer(problem, gpu), cost.outer(problem, gpu)
    if problem.outputs:
        together += choose(problem._replace(s_given=True), gpu, backend).launches
        apart += choose(problem, gpu, backend).launches
    else:
        apart += cost.shrink(problem, gpu)
    return cost.seconds(together) < cost.seconds(apart)
