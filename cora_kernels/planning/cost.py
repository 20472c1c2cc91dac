"""The written cost rule: bytes, operations and time of every way to run a problem, and the fastest of them.

A launch takes the longer of its bytes over the bandwidth and its operations over the matrix rate, whole waves of tiles
counted. So one pass beats two kernels roughly where N·r / BN < matrix rate / bandwidth.
"""

import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch

from cora_kernels.planning import tuning_file
from cora_kernels.planning.tile_sizes import ONE_PASS_RANK, GemmConfig, gemm_configs, shrink_outer_config

LAUNCH_SECONDS = 3e-6
DECODE_LENGTH = 8
DECODE_RANK = 128


class Gpu(NamedTuple):
    """What good kernels reach, not the data sheet: `matrix` FLOP/s in 16 bits, `simple` in fp32, bytes/s.

    `gemm` is the speed of our GEMM over the vendor's. The rates of A100, H100, H200, RTX 4090 and L40S are those behind
    the break-even ratios that the project's design measured; the others and every `gemm` are estimates until
    `python -m cora_kernels.tune` has run.
    """

    name: str
    arch: str
    matrix: float
    simple: float
    bandwidth: float
    multiprocessors: int
    gemm: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", "sm_80", 291e12, 18e12, 2.04e12, 108, 0.95),
        Gpu("L40S", "sm_80", 333e12, 80e12, 0.864e12, 142, 0.95),
        Gpu("RTX 4090", "sm_80", 164e12, 70e12, 1.01e12, 128, 0.95),
        Gpu("H100", "sm_90", 750e12, 55e12, 3.35e12, 132, 0.80),
        Gpu("H200", "sm_90", 745e12, 55e12, 4.8e12, 132, 0.80),
        Gpu("B200", "sm_100", 1500e12, 65e12, 7.7e12, 148, 0.60),
        Gpu("MI300X", "gfx942", 600e12, 120e12, 4.3e12, 304, 0.75),
    )
}


@lru_cache
def gpu_of(device: torch.device) -> Gpu:
    """The rates of the device: as tuned, or of the nearest part in the table. Of an A100 for tensors on no GPU."""
    if device.type != "cuda":
        return GPUS["A100"]
    properties = torch.cuda.get_device_properties(device)
    known = [gpu for gpu in GPUS.values() if re.search(rf"{gpu.name}(?!\d)", properties.name)]  # an A1000 is no A100
    if torch.version.hip:
        nearest = "MI300X"
    else:
        capability = properties.major, properties.minor
        nearest = {9: "H100", 10: "B200", 11: "B200"}.get(
            properties.major, "A100" if capability <= (8, 0) else "RTX 4090"
        )
    gpu = known[0] if known else GPUS[nearest]
    rates = tuning_file.load(properties.name)["gpu"]
    return gpu._replace(name=properties.name, multiprocessors=properties.multi_processor_count, **rates)


class Problem(NamedTuple):
    """y [rows, outputs] = x [rows, inputs]·W + s·(x·A)·B. `length` is None where samples are packed."""

    rows: int
    inputs: int
    outputs: int
    rank: int
    samples: int
    length: int | None
    dtype: torch.dtype
    sample_a: bool = True
    sample_b: bool = False
    s_given: bool = False


class Launch(NamedTuple):
    kernel: str
    bytes: int
    operations: int
    seconds: float
    config: GemmConfig | None = None


class Plan(NamedTuple):
    """A way to run a problem: "one_pass", "two_kernels", "chain" or "decode", and the tile of our GEMM, if any."""

    way: str
    config: GemmConfig | None
    launches: tuple[Launch, ...]

    @property
    def bytes(self) -> int:
        return sum(launch.bytes for launch in self.launches)

    @property
    def operations(self) -> int:
        return sum(launch.operations for launch in self.launches)

    @property
    def seconds(self) -> float:
        return sum(launch.seconds for launch in self.launches)


@lru_cache(maxsize=4096)
def choose(problem: Problem, gpu: Gpu, way: str | None = None) -> Plan:
    """The plan to run: in the way asked for if the problem has it, else as tuned on this GPU, else by the rule."""
    found = plans(problem, gpu)
    measured = tuning_file.load(gpu.name)["ways"].get(key_of(problem))
    if way is None and measured is not None:
        way = measured["way"]
    for plan in found:
        if plan.way == way:
            tile = measured["config"] if measured and measured["way"] == way else None
            return plan if tile is None else plan._replace(config=GemmConfig(*tile))
    return found[0]


def key_of(problem: Problem) -> str:
    """Problems of one key share what was measured for one of them: rows and samples to the nearest power of two."""
    p = problem
    rows, samples = (round(math.log2(max(n, 1))) for n in (p.rows, p.samples))
    kinds = f"{'A' * p.sample_a}{'B' * p.sample_b}{'S' * p.s_given}{'T' * can_decode(p)}"
    return f"{p.inputs}-{p.outputs}-r{p.rank}-rows{rows}-samples{samples}-{str(p.dtype)[6:]}-{kinds}"


@lru_cache(maxsize=4096)
def plans(problem: Problem, gpu: Gpu) -> tuple[Plan, ...]:
    """Every way that can run the problem, the fastest by the rule first."""
    found = [_two_kernels(problem, gpu), _chain(problem, gpu)]
    if not problem.s_given and problem.rank <= ONE_PASS_RANK:
        found.append(_one_pass(problem, gpu))
    if can_decode(problem):
        found.append(_decode(problem, gpu))
    return tuple(sorted(found, key=lambda plan: plan.seconds))


def can_decode(problem: Problem) -> bool:
    short = problem.length is not None and problem.length <= DECODE_LENGTH
    return short and problem.rank <= DECODE_RANK and not problem.s_given


def floor(problem: Problem, gpu: Gpu) -> Launch:
    """The frozen linear alone, by the vendor's GEMM."""
    return _vendor_gemm(problem, gpu, 0)


def outer_launch(problem: Problem, gpu: Gpu) -> Launch:
    """dA = xᵀ·dS of the problem; of the backward's problem, dBᵀ = gᵀ·S."""
    p = problem
    moved = p.rows * p.inputs * p.dtype.itemsize + _s_bytes(p) + _factor_bytes(p) - _b_bytes(p)
    return _streamed("outer", gpu, moved, 2 * p.rows * p.inputs * p.rank)


def shrink_outer_launch(problem: Problem, gpu: Gpu) -> Launch:
    """dS and dB of the backward's problem from one read of g; every tile of its columns adds a plane of dS."""
    p = problem
    columns = shrink_outer_config(gpu.arch, p.dtype).BP
    planes = 2 * _cdiv(p.inputs, columns) * _s_bytes(p)
    moved = p.rows * p.inputs * p.dtype.itemsize + 2 * (_factor_bytes(p) - _b_bytes(p)) + 2 * _s_bytes(p) + planes
    return _streamed("shrink and outer", gpu, moved, 4 * p.rows * p.inputs * p.rank)


def fuses(problem: Problem, gpu: Gpu) -> bool:
    """Whether dS and dB of the backward's problem are faster from one read of g. Without outputs no dx is wanted."""
    together = shrink_outer_launch(problem, gpu).seconds + LAUNCH_SECONDS  # of the sum of planes
    apart = outer_launch(problem, gpu).seconds
    if problem.outputs:
        together += choose(problem._replace(s_given=True), gpu, None).seconds
        apart += choose(problem, gpu, None).seconds
    else:
        apart += sum(launch.seconds for launch in _shrink(problem, gpu))
    return together < apart


def _one_pass(p: Problem, gpu: Gpu) -> Plan:
    moved = _base_bytes(p) + _factor_bytes(p) + _s_bytes(p)

    def launch(config: GemmConfig) -> Launch:
        row_tiles = _cdiv(p.rows, config.BM)
        if p.sample_a or p.sample_b:  # tiles of one sample each
            row_tiles = p.samples * _cdiv(p.length, config.BM) if p.length else p.rows // config.BM + p.samples
        columns = config.BN + max(16, p.rank)
        per_tile = 2 * config.BM * (columns * p.inputs + config.BN * max(16, p.rank))
        return _gemm("one pass", p, gpu, config, row_tiles, per_tile, moved)

    return _best("one_pass", gemm_configs(gpu.arch, p.dtype, True), launch, ())


def _two_kernels(p: Problem, gpu: Gpu) -> Plan:
    moved = _base_bytes(p) + _b_bytes(p) + _s_bytes(p)
    rank = max(16, p.rank)

    def launch(config: GemmConfig) -> Launch:
        straddled = 1 + config.BM * (p.samples - 1) / max(p.rows, 1) if p.sample_b else 1
        per_tile = 2 * config.BM * config.BN * (p.inputs + rank * straddled)
        return _gemm("low-rank GEMM", p, gpu, config, _cdiv(p.rows, config.BM), per_tile, moved)

    return _best("two_kernels", gemm_configs(gpu.arch, p.dtype, False), launch, _shrink(p, gpu))


def _chain(p: Problem, gpu: Gpu) -> Plan:
    y = p.rows * p.outputs * p.dtype.itemsize
    expand = _streamed("expand", gpu, _b_bytes(p) + _s_bytes(p) + y, 2 * p.rows * p.rank * p.outputs)
    return Plan("chain", None, (*_shrink(p, gpu), expand, _vendor_gemm(p, gpu, y)))


def _decode(p: Problem, gpu: Gpu) -> Plan:
    y = p.rows * p.outputs * p.dtype.itemsize
    moved = _factor_bytes(p) + p.rows * p.inputs * p.dtype.itemsize + _s_bytes(p) + y
    delta = _streamed("decode", gpu, moved, 2 * p.rows * p.rank * (p.inputs + p.outputs))
    return Plan("decode", None, (delta, _vendor_gemm(p, gpu, y)))


def _shrink(p: Problem, gpu: Gpu) -> tuple[Launch, ...]:
    if p.s_given:
        return ()
    moved = p.rows * p.inputs * p.dtype.itemsize + _factor_bytes(p) - _b_bytes(p) + _s_bytes(p)
    shrink = _streamed("shrink", gpu, moved, 2 * p.rows * p.inputs * p.rank)
    tiles = p.samples * _cdiv(p.rows, 64 * max(p.samples, 1)) if p.sample_a else _cdiv(p.rows, 64)
    if 2 * tiles > gpu.multiprocessors:
        return (shrink,)
    return shrink, _streamed("sum of planes", gpu, 3 * _s_bytes(p), 0)  # K is split, so that the tiles fill the GPU


def _best(
    way: str, configs: tuple[GemmConfig, ...], launch: Callable[[GemmConfig], Launch], before: tuple[Launch, ...]
) -> Plan:
    config = min(configs, key=lambda config: launch(config).seconds)
    return Plan(way, config, (*before, launch(config)))


def _gemm(name: str, p: Problem, gpu: Gpu, config: GemmConfig, row_tiles: int, per_tile: float, moved: int) -> Launch:
    tiles = row_tiles * _cdiv(p.outputs, config.BN)
    waves = _cdiv(tiles, gpu.multiprocessors)
    rate = _rate(p, gpu) * gpu.gemm * _reuse(config) / gpu.multiprocessors
    seconds = max(waves * per_tile / rate, moved / gpu.bandwidth)
    return Launch(name, moved, int(tiles * per_tile), LAUNCH_SECONDS + seconds, config)


def _vendor_gemm(p: Problem, gpu: Gpu, read: int) -> Launch:
    """The vendor's GEMM over the same tiles at its own rate; `read` bytes of y beyond its write."""
    moved = _base_bytes(p) + read
    seconds = min(
        _gemm("", p, gpu._replace(gemm=1.0), c, _cdiv(p.rows, c.BM), 2 * c.BM * c.BN * p.inputs, moved).seconds
        for c in gemm_configs(gpu.arch, p.dtype, False)
    )
    return Launch("vendor GEMM", moved, 2 * p.rows * p.inputs * p.outputs, seconds)


def _streamed(name: str, gpu: Gpu, moved: int, operations: int) -> Launch:
    return Launch(name, moved, operations, LAUNCH_SECONDS + moved / gpu.bandwidth)


def _reuse(config: GemmConfig) -> float:
    """Of the matrix rate, what a tile reaches: a large one meets each loaded element more often."""
    area = config.BM * config.BN
    return area / (area + 1024)


def _rate(p: Problem, gpu: Gpu) -> float:
    return gpu.simple if p.dtype == torch.float32 else gpu.matrix


def _base_bytes(p: Problem) -> int:
    return p.dtype.itemsize * (p.rows * p.inputs + p.outputs * p.inputs + p.rows * p.outputs)


def _factor_bytes(p: Problem) -> int:
    return p.dtype.itemsize * p.rank * p.inputs * (p.samples if p.sample_a else 1) + _b_bytes(p)


def _b_bytes(p: Problem) -> int:
    return p.dtype.itemsize * p.rank * p.outputs * (p.samples if p.sample_b else 1)


def _s_bytes(p: Problem) -> int:
    return 4 * p.rows * p.rank


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)
