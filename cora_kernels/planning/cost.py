"""The written cost rule: bytes, operations and time of every strategy for a problem.

A launch takes the longer of its bytes over the bandwidth and its operations over the matrix rate, whole waves of tiles
counted. So one pass beats two kernels roughly where N·r / BN < matrix rate / bandwidth. A plan takes the longer of what
its launches take on the GPU and what the CPU takes to make them: a small problem is won by few launches.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from cora_kernels.planning.gpus import Gpu
from cora_kernels.planning.tile_sizes import (
    GemmConfig,
    decodes_in_two,
    outer_config,
    rank_block,
    shrink_config,
    shrink_outer_config,
    split_of,
    vendor_gemm_tiles,
)

# On the GPU, from one kernel to the next; on the CPU, of an operator of torch.
LAUNCH_SECONDS = 3e-6
VENDOR_HOST_SECONDS = 8e-6
# What the five descriptors of a launch add to it: two microseconds each, an estimate.
DESCRIPTORS_HOST_SECONDS = 10e-6


class Problem(NamedTuple):
    """y [rows, outputs] = x [rows, inputs]·W + s·(x·A)·B. `length` is None where samples are packed.

    `s_given`: S has been computed already. `added`: the product is added to the y that is there. `described`: x, W and
    B lie in memory as tensor descriptors read them.
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
    described: bool = True


class Launch(NamedTuple):
    """`seconds` on the GPU, `host` seconds of the CPU in eager mode."""

    kernel: str
    bytes: int
    operations: int
    seconds: float
    host: float
    config: GemmConfig | None = None


class Plan(NamedTuple):
    """A strategy for a problem, the tile of our GEMM, if it has one, and the launches.

    "one_pass": S is computed in the GEMM. "two_kernels": S first, then the GEMM with S·B added.
    "descriptors": the same, by the GEMM whose tiles tensor descriptors bring. "separate": S, S·B and then the vendor's
    GEMM on top. "decode": the same for a few rows a sample, S and S·B in one launch, or in two.
    "concat": S and x side by side, then one GEMM of the vendor's over both; of weights with room for B alone.
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
        return seconds(self.launches)


def seconds(launches: Sequence[Launch]) -> float:
    """The CPU makes the next launches while the GPU runs one: the slower of the two sets the pace."""
    return max(sum(launch.seconds for launch in launches), sum(launch.host for launch in launches))


def floor(problem: Problem, gpu: Gpu) -> Launch:
    """The frozen linear alone, by the vendor's GEMM."""
    return vendor_gemm(problem, gpu, 0)


def outer(p: Problem, gpu: Gpu) -> tuple[Launch, ...]:
    """dA = xᵀ·dS of the problem; of the backward's problem, dBᵀ = gᵀ·S."""
    config = outer_config(gpu.arch, p.dtype, min(p.inputs, p.rank))
    programs = _cdiv(p.inputs, config.BP) * _cdiv(p.rank, rank_block(p.rank))
    product, planes = _product_in_planes(p, gpu, programs, config.BM)
    moved = p.rows * p.inputs * p.dtype.itemsize + _s_bytes(p) + product
    return _streamed("outer", gpu, moved, 2 * p.rows * p.inputs * p.rank), *planes


def shrink_outer(p: Problem, gpu: Gpu) -> tuple[Launch, ...]:
    """dS and dB of the backward's problem from one read of g; every tile of its columns adds a plane of dS."""
    config = shrink_outer_config(gpu.arch, p.dtype, p.rank)
    columns = _cdiv(p.inputs, config.BP)
    product, planes = _product_in_planes(p, gpu, columns, config.BM)
    moved = p.rows * p.inputs * p.dtype.itemsize + _a_bytes(p) + product + (1 + columns) * _s_bytes(p)
    together = _streamed("shrink and outer", gpu, moved, 4 * p.rows * p.inputs * p.rank)
    return together, *_sum_of_planes(columns, _s_bytes(p), _s_bytes(p), gpu), *planes


def one_pass(p: Problem, gpu: Gpu, tiles: Sequence[GemmConfig]) -> Plan:
    """With the fastest of these tiles."""
    moved = _base_bytes(p) + _a_bytes(p) + _b_bytes(p) + _s_bytes(p)

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


def descriptors(p: Problem, gpu: Gpu, tiles: Sequence[GemmConfig]) -> Plan:
    """With the fastest of these tiles. Where B is each sample's own, a tile has the rows of one sample."""
    moved = _base_bytes(p) + _b_bytes(p) + _s_bytes(p)
    rates = gpu._replace(gemm=gpu.gemm_descriptors, fill=gpu.fill_descriptors, host=gpu.host + DESCRIPTORS_HOST_SECONDS)
    cut = p._replace(sample_a=False)

    def launch(config: GemmConfig) -> Launch:
        per_tile = 2 * config.BM * config.BN * (p.inputs + max(16, p.rank))
        return _gemm("descriptor GEMM", p, rates, config, row_tiles(cut, config.BM, True), per_tile, moved)

    return _best("descriptors", tiles, launch, shrink(p, gpu))


def separate(p: Problem, gpu: Gpu, split: bool = True) -> Plan:
    y = p.rows * p.outputs * p.dtype.itemsize
    expand = _streamed("expand", gpu, _b_bytes(p) + _s_bytes(p) + y, 2 * p.rows * p.rank * p.outputs)
    return Plan("separate", None, (*shrink(p, gpu, split), expand, vendor_gemm(p, gpu, y)))


def decode(p: Problem, gpu: Gpu, split: bool = True) -> Plan:
    """`split`: for few samples S comes from a launch of its own, in planes, which decode sums."""
    y = p.rows * p.outputs * p.dtype.itemsize
    moved = _b_bytes(p) + _s_bytes(p) + y
    operations = 2 * p.rows * p.rank * p.outputs
    before: tuple[Launch, ...] = ()
    if split and decodes_in_two(p.samples, gpu.multiprocessors):
        before = shrink(p, gpu)[:1]
        moved += _planes_of_s(p, gpu) * _s_bytes(p)
    else:
        moved += _a_bytes(p) + p.rows * p.inputs * p.dtype.itemsize
        operations += 2 * p.rows * p.rank * p.inputs
    return Plan("decode", None, (*before, _streamed("decode", gpu, moved, operations), vendor_gemm(p, gpu, y)))


def concat(problems: Sequence[Problem], gpu: Gpu, copies: bool) -> Plan:
    """Of linears that share x and a B of the batch each: [x | S]·[W | Bᵀ]ᵀ. `copies`: the shrink writes x and S side
    by side."""
    launches: list[Launch] = []
    for p in problems:
        columns = -(-p.rank // 64) * 64
        x, wide_x = (p.rows * width * p.dtype.itemsize for width in (p.inputs, p.inputs + columns))
        before = shrink(p, gpu, copies)
        if before and copies:
            planes = _planes_of_s(p, gpu) * _s_bytes(p)
            before = (
                _streamed("shrink and copy", gpu, before[0].bytes + x, before[0].operations),
                _streamed("sum of planes", gpu, planes + _s_bytes(p) + wide_x - x, 0),
            )
        elif before:
            copy_of_s = _copied("copy of S", gpu, _s_bytes(p) + wide_x - x)
            before = (*before, _copied("copy of x", gpu, 2 * x), copy_of_s)
        product = vendor_gemm(p._replace(inputs=p.inputs + columns), gpu, 0)
        launches += [*before, _copied("copy of B", gpu, 2 * _b_bytes(p)), product]
    return Plan("concat", None, tuple(launches))


def _copied(name: str, gpu: Gpu, moved: int) -> Launch:
    """By torch's own kernels."""
    return Launch(name, moved, 0, LAUNCH_SECONDS + moved / gpu.bandwidth, VENDOR_HOST_SECONDS)


def shrink(p: Problem, gpu: Gpu, split: bool = True) -> tuple[Launch, ...]:
    """S, unless it is given. `split`: K is split into fp32 planes where tiles are few, so that they fill the GPU."""
    if p.s_given:
        return ()
    planes = _planes_of_s(p, gpu) if split else 1
    moved = p.rows * p.inputs * p.dtype.itemsize + _a_bytes(p) + planes * _s_bytes(p)
    launch = _streamed("shrink", gpu, moved, 2 * p.rows * p.inputs * p.rank)
    return launch, *_sum_of_planes(planes, _s_bytes(p), _s_bytes(p), gpu)


def _planes_of_s(p: Problem, gpu: Gpu) -> int:
    config = shrink_config(gpu.arch, p.dtype, p.rows // max(p.samples, 1) if p.sample_a else p.rows, p.rank)
    tiles = row_tiles(p._replace(sample_b=False), config.BM, True)
    return split_of(tiles, _cdiv(p.inputs, config.BK), gpu.multiprocessors)


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
    """By the share of the vendor's rate that our GEMM has for the depth of the problem: see `Gpu`."""
    share = gpu.gemm / (1 + gpu.fill / p.inputs)
    tiles = rows * _cdiv(p.outputs, config.BN)
    # Multiprocessors without a tile ask for no bytes; the vendor's GEMM splits the depth for them.
    bandwidth = gpu.bandwidth * min(1.0, max(1, tiles) / gpu.multiprocessors)
    spent = max(_waves(p, gpu, config, tiles, per_tile) / share, moved / bandwidth)
    return Launch(name, moved, int(tiles * per_tile), LAUNCH_SECONDS + spent, gpu.host, config)


def vendor_gemm(p: Problem, gpu: Gpu, read: int) -> Launch:
    """The vendor's GEMM over the same tiles at its own rate; `read` bytes of y beyond its write.

    The epilogue of a tile reads them, and what of that no other tile's products hide comes on top.
    """
    moved = _base_bytes(p) + read
    products = min(
        _waves(p, gpu, c, _cdiv(p.rows, c.BM) * _cdiv(p.outputs, c.BN), 2 * c.BM * c.BN * p.inputs)
        for c in vendor_gemm_tiles(gpu.arch, p.dtype)
    )
    spent = max(products + gpu.exposed * read / gpu.bandwidth, moved / gpu.bandwidth)
    operations = 2 * p.rows * p.inputs * p.outputs
    return Launch("vendor GEMM", moved, operations, LAUNCH_SECONDS + spent, VENDOR_HOST_SECONDS)


def _waves(p: Problem, gpu: Gpu, config: GemmConfig, tiles: int, per_tile: float) -> float:
    """Seconds of whole waves of tiles at the vendor's rate: a large tile meets each loaded element more often."""
    area = config.BM * config.BN
    rate = (gpu.simple if p.dtype == torch.float32 else gpu.matrix) * area / (area + 1024) / gpu.multiprocessors
    return _cdiv(tiles, gpu.multiprocessors) * per_tile / rate


def _product_in_planes(p: Problem, gpu: Gpu, programs: int, BM: int) -> tuple[int, tuple[Launch, ...]]:
    """Bytes of dA (or dBᵀ) as `programs` tiles a sample write it, and the sum of its planes if its rows are split."""
    samples = p.samples if p.sample_a else 1
    planes = split_of(programs * samples, _cdiv(p.rows, max(samples, 1) * BM), gpu.multiprocessors)
    if planes == 1:
        return _a_bytes(p), ()
    plane = _a_bytes(p) // p.dtype.itemsize * 4
    return planes * plane, _sum_of_planes(planes, plane, _a_bytes(p), gpu)


def _sum_of_planes(planes: int, plane: int, total: int, gpu: Gpu) -> tuple[Launch, ...]:
    return (_streamed("sum of planes", gpu, planes * plane + total, 0),) if planes > 1 else ()


def _streamed(name: str, gpu: Gpu, moved: int, operations: int) -> Launch:
    return Launch(name, moved, operations, LAUNCH_SECONDS + moved / gpu.bandwidth, gpu.host)


def _base_bytes(p: Problem) -> int:
    return p.dtype.itemsize * (p.rows * p.inputs + p.outputs * p.inputs + p.rows * p.outputs)


def _a_bytes(p: Problem) -> int:
    return p.dtype.itemsize * p.rank * p.inputs * (p.samples if p.sample_a else 1)


def _b_bytes(p: Problem) -> int:
    return p.dtype.itemsize * p.rank * p.outputs * (p.samples if p.sample_b else 1)


def _s_bytes(p: Problem) -> int:
    return 4 * p.rows * p.rank


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)
