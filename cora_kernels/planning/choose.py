"""The one place that decides which kernels of a GPU backend run a problem: for "triton" and for "cuda"."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from cora_kernels.planning import cost, tuning_file
from cora_kernels.planning.cost import LAUNCH_SECONDS, Plan, Problem, outer_launch, shrink_outer_launch
from cora_kernels.planning.gpus import Gpu
from cora_kernels.planning.tile_sizes import (
    DECODE_LENGTH,
    DECODE_RANK,
    ONE_PASS_RANK,
    SHRINK_OUTER_RANK,
    GemmConfig,
    cuda_gemm_configs,
    gemm_configs,
)
from cora_kernels.segments import Segments

# The dtypes of x that each has kernels for.
DTYPES = {
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "cuda": (torch.bfloat16, torch.float16),
}


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
        sample_a=a.dim() == 3 or isinstance(scaling, Tensor),
        sample_b=b.dim() == 3,
        s_given=s_given,
        added=added,
    )


@lru_cache(maxsize=4096)
def choose(problem: Problem, gpu: Gpu, backend: str, strategy: str | None = None) -> Plan:
    """The plan that the backend runs: with the strategy asked for if the problem has it, else with the one chosen.

    "triton" takes what was tuned on this GPU, else the fastest by the cost rule. "cuda" takes decode where A or B is
    each sample's own and samples are short, else one pass where it computes less again than two kernels read again.
    """
    return _of_cuda(problem, gpu, strategy) if backend == "cuda" else _of_triton(problem, gpu, strategy)


def _of_triton(problem: Problem, gpu: Gpu, strategy: str | None) -> Plan:
    found = plans(problem, gpu)
    measured = tuning_file.load(gpu.name)["strategies"].get(key_of(problem))
    if strategy is None and measured is not None:
        strategy = measured["strategy"]
    plan = next((plan for plan in found if plan.strategy == strategy), found[0])
    if plan.strategy == "decode" and problem.added:
        return cost.separate(problem, gpu)
    if plan.strategy == strategy and measured and measured["strategy"] == strategy and measured["config"]:
        return plan._replace(config=GemmConfig(*measured["config"]))
    return plan


def _of_cuda(problem: Problem, gpu: Gpu, strategy: str | None) -> Plan:
    p = problem
    short = p.length is not None and 1 <= p.length <= DECODE_LENGTH and p.rank <= DECODE_RANK
    if short and not p.added and (p.sample_a or p.sample_b) and strategy in (None, "decode"):
        return cost.decode(p, gpu)
    # FLOP/s over bytes/s: what one pass computes again in every tile of 128 columns against a second read of x.
    pays = p.outputs * (16 if p.rank <= 16 else 32) / 128 < gpu.matrix / gpu.bandwidth
    if not p.s_given and p.rank <= ONE_PASS_RANK and (pays if strategy is None else strategy == "one_pass"):
        return cost.one_pass(p, gpu, (_cuda_tile(p, gpu, True),))
    return cost.two_kernels(p, gpu, (_cuda_tile(p, gpu, False),), split=False)


def _cuda_tile(p: Problem, gpu: Gpu, one_pass: bool) -> GemmConfig:
    """As csrc/cuda/lowrank_gemm.cu picks it: whole waves of tiles, and of the matrix rate what a tile reaches."""

    def waves(tile: GemmConfig) -> int:
        tiles = cost.row_tiles(p, tile.BM, one_pass) * -(-p.outputs // tile.BN)
        return -(-tiles // gpu.multiprocessors) * (tile.BM * tile.BN + 1024)

    return min(cuda_gemm_configs(p.rank if one_pass else 0), key=waves)


@lru_cache(maxsize=4096)
def plans(problem: Problem, gpu: Gpu) -> tuple[Plan, ...]:
    """Every plan of Triton's kernels for the problem, the fastest by the cost rule first."""
    found = [
        cost.two_kernels(problem, gpu, gemm_configs(gpu.arch, problem.dtype, False)),
        cost.separate(problem, gpu),
    ]
    if not problem.s_given and problem.rank <= ONE_PASS_RANK:
        found.append(cost.one_pass(problem, gpu, gemm_configs(gpu.arch, problem.dtype, True)))
    if _decodes(problem):
        found.append(cost.decode(problem, gpu))
    return tuple(sorted(found, key=lambda plan: plan.seconds))


def _decodes(problem: Problem) -> bool:
    short = problem.length is not None and problem.length <= DECODE_LENGTH
    return short and problem.rank <= DECODE_RANK and not problem.s_given


def key_of(problem: Problem) -> str:
    """Problems of one key share what was measured for one of them: rows and samples to the nearest power of two."""
    p = problem
    rows, samples = (round(math.log2(max(n, 1))) for n in (p.rows, p.samples))
    kinds = f"{'A' * p.sample_a}{'B' * p.sample_b}{'S' * p.s_given}{'T' * _decodes(p)}"
    return f"{p.inputs}-{p.outputs}-r{p.rank}-rows{rows}-samples{samples}-{str(p.dtype)[6:]}-{kinds}"


def fuses(problem: Problem, gpu: Gpu, backend: str = "triton") -> bool:
    """Whether dS and dB of the backward's problem come from one read of g: where that is faster, and Triton has it.

    A problem without outputs is one of which no dx is wanted.
    """
    if backend != "triton" or problem.rank > SHRINK_OUTER_RANK:
        return False
    together = shrink_outer_launch(problem, gpu).seconds + LAUNCH_SECONDS  # of the sum of planes
    apart = outer_launch(problem, gpu).seconds
    if problem.outputs:
        together += choose(problem._replace(s_given=True), gpu, backend).seconds
        apart += choose(problem, gpu, backend).seconds
    else:
        apart += sum(launch.seconds for launch in cost.shrink(problem, gpu))
    return together < apart
