"""The written cost rule: bytes, operations and time of every strategy for a problem.

A launch takes the longer of its bytes over the bandwidth and its operations over the matrix rate, whole waves of tiles
counted. So one pass beats two kernels roughly where N·r / BN < matrix rate / bandwidth.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from cora_kernels.planning.gpus import Gpu
from cora_kernels.planning.tile_sizes import GemmConfig, gemm_configs, shrink_outer_config

LAUNCH_SECONDS = 3e-6


class Problem(NamedTuple):
    """y [rows, outputs] = x [rows, inputs]·W + s·(x·A)·B. `length` is None where samples are packed.

    `s_given`: S has been computed already. `added`: the product is added to the y that is there.
    """

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
    added: bool = False


class Launch(NamedTuple):
    kernel: str
    bytes: int
    operations: int
    seconds: float
    config: GemmConfig | None = None


class Plan(NamedTuple):
    """A strategy for a problem, the tile of our GEMM, if it has one, and the launches.

    "one_pass": S is computed in the GEMM. "two_kernels": S first, then the GEMM with S·B added. "separate": S, S·B and
    then the vendor's GEMM on top. "decode": S·B for a few rows a sample in one launch, then the vendor's GEMM on top.
    """

    strategy: str
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


def one_pass(p: Problem, gpu: Gpu, tiles: Sequence[GemmConfig]) -> Plan:
    """With the fastest of these tiles."""
    moved = _base_bytes(p) + _factor_bytes(p) + _s_bytes(p)

    def launch(config: GemmConfig) -> Launch:
        columns = config.BN + max(16, p.rank)
        per_tile = 2 * config.BM * (columns * p.inputs + config.BN * max(16, p.rank))
        return _gemm("one pass", p, gpu, config, row_tiles(p, config.BM, True), per_tile, moved)

    return _best("one_pass", tiles, launch, ())


def two_kernels(p: Problem, gpu: Gpu, tiles: Sequence[GemmConfig], split: bool = True) -> Plan:
    """With the fastest of these tiles. `split`: see `shrink`."""
    moved = _base_bytes(p) + _b_bytes(p) + _s_bytes(p)
    rank = max(16, p.rank)

    def launch(config: GemmConfig) -> Launch:
        straddled = 1 + config.BM * (p.samples - 1) / max(p.rows, 1) if p.sample_b else 1
        per_tile = 2 * config.BM * config.BN * (p.inputs + rank * straddled)
        return _gemm("low-rank GEMM", p, gpu, config, row_tiles(p, config.BM, False), per_tile, moved)

    return _best("two_kernels", tiles, launch, shrink(p, gpu, split))


def separate(p: Problem, gpu: Gpu) -> Plan:
    y = p.rows * p.outputs * p.dtype.itemsize
    expand = _streamed("expand", gpu, _b_bytes(p) + _s_bytes(p) + y, 2 * p.rows * p.rank * p.outputs)
    return Plan("separate", None, (*shrink(p, gpu), expand, _vendor_gemm(p, gpu, y)))


def decode(p: Problem, gpu: Gpu) -> Plan:
    y = p.rows * p.outputs * p.dtype.itemsize
    moved = _b_bytes(p) + _s_bytes(p) + y
    operations = 2 * p.rows * p.rank * p.outputs
    if not p.s_given:
        moved += _factor_bytes(p) - _b_bytes(p) + p.rows * p.inputs * p.dtype.itemsize
        operations += 2 * p.rows * p.rank * p.inputs
    return Plan("decode", None, (_streamed("decode", gpu, moved, operations), _vendor_gemm(p, gpu, y)))


def shrink(p: Problem, gpu: Gpu, split: bool = True) -> tuple[Launch, ...]:
    """S, unless it is given. `split`: K is split where the tiles are few, so that they fill the GPU."""
    if p.s_given:
        return ()
    moved = p.rows * p.inputs * p.dtype.itemsize + _factor_bytes(p) - _b_bytes(p) + _s_bytes(p)
    launch = _streamed("shrink", gpu, moved, 2 * p.rows * p.inputs * p.rank)
    tiles = p.samples * _cdiv(p.rows, 64 * max(p.samples, 1)) if p.sample_a else _cdiv(p.rows, 64)
    if not split or 2 * tiles > gpu.multiprocessors:
        return (launch,)
    return launch, _streamed("sum of planes", gpu, 3 * _s_bytes(p), 0)


def row_tiles(p: Problem, BM: int, one_pass: bool) -> int:
    """Tiles of BM rows: of one sample each in one pass, where A or B is each sample's own; else across samples."""
    if one_pass and (p.sample_a or p.sample_b):
        return p.samples * _cdiv(p.length, BM) if p.length else p.rows // BM + p.samples
    return _cdiv(p.rows, BM)


def _best(
    strategy: str, tiles: Sequence[GemmConfig], launch: Callable[[GemmConfig], Launch], before: tuple[Launch, ...]
) -> Plan:
    config = min(tiles, key=lambda config: launch(config).seconds)
    return Plan(strategy, config, (*before, launch(config)))


def _gemm(name: str, p: Problem, gpu: Gpu, config: GemmConfig, rows: int, per_tile: float, moved: int) -> Launch:
    tiles = rows * _cdiv(p.outputs, config.BN)
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
