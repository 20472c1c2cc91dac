"""Every kernel × layout × rank by the default tiles, compiled by the Triton that this process imports, as JSON.

`PYTHONPATH=FOLDER_OF_A_TRITON:. python tests/triton/matrix.py PART RANK...` prints one line for each, with the word
descriptors before PART those of the GEMM of descriptors. A compiler that aborts takes no test run with it that way.
"""

import json
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
from aot import PARTS, Launch, compiled, meta, not_bulk, recorded

from cora_kernels.backends.triton.decode import decode, decode_kernel
from cora_kernels.backends.triton.descriptor_gemm import descriptor_gemm
from cora_kernels.backends.triton.expand import expand
from cora_kernels.backends.triton.lowrank_gemm import lowrank_gemm, lowrank_gemm_one_pass
from cora_kernels.backends.triton.outer import outer, outer_kernel
from cora_kernels.backends.triton.shrink import shrink, shrink_kernel
from cora_kernels.backends.triton.shrink_outer import shrink_outer, shrink_outer_kernel
from cora_kernels.planning.tile_sizes import (
    DECODE_RANK,
    ONE_PASS_RANK,
    SHRINK_OUTER_RANK,
    descriptor_configs,
    gemm_configs,
    outer_config,
    rank_block,
    shrink_config,
    shrink_outer_config,
)
from cora_kernels.segments import Segments

BF16 = torch.bfloat16


class Entry(NamedTuple):
    """Of the global loads in the main loop, the bytes that each moves at least, and the bytes that it could."""

    label: str
    spills: int
    shared: int
    narrowest: int
    possible: int


def launches(arch: str, r: int) -> Iterator[tuple[str, Launch, int]]:
    """(label, launch, bytes of the tile that its main loop loads in rows of r: 0 if none, -1 for no such loop)."""
    B, T, K, N = 8, 1024, 4096, 2048
    M = B * T
    x, g, w, s, bias = (
        meta(M, K, dtype=BF16), meta(M, N, dtype=BF16), meta(N, K, dtype=BF16), meta(M, r), meta(N, dtype=BF16)
    )  # fmt: skip
    own_a, shared_a = meta(B, K, r, dtype=BF16), meta(K, r, dtype=BF16)
    own_b, shared_b = meta(B, r, N, dtype=BF16), meta(r, N, dtype=BF16)
    padded = Segments(B, M, T, None)
    packed = Segments(B, M, None, meta(B + 1, dtype=torch.int32))
    BR = rank_block(r)
    with recorded() as found:
        gemm = gemm_configs(arch, BF16, one_pass=False)[0]
        for name, segments in (("padded", padded), ("packed", packed)):
            for kind, b in (("shared B", shared_b), ("own B", own_b)):
                lowrank_gemm(x, w.t(), s, b, segments, gemm, bias=bias)
                yield f"y of S, {kind}, {name}", found[-1], 0
            for kind, a in (("shared A", shared_a), ("own A", own_a)):
                lowrank_gemm(g, w, s, a.transpose(-1, -2), segments, gemm, y=x)
                yield f"dx of dS, {kind}, {name}", found[-1], 0
        if r <= ONE_PASS_RANK:
            one = gemm_configs(arch, BF16, one_pass=True)[0]
            for name, segments in (("padded", padded), ("packed", packed)):
                for kind, a, b in (
                    ("own A", own_a, shared_b),
                    ("own A and B", own_a, own_b),
                    ("own B", shared_a, own_b),
                ):
                    lowrank_gemm_one_pass(x, w.t(), a, b, 1.0, segments, one, bias=bias)
                    yield f"y in one pass, {kind}, {name}", found[-1], 2 * one.BK * BR
                    back = b.transpose(-1, -2), a.transpose(-1, -2)
                    lowrank_gemm_one_pass(g, w, *back, 1.0, segments, one)
                    yield f"dx in one pass, {kind}, {name}", found[-1], 2 * one.BK * BR
        for name, segments in (("padded", padded), ("packed", packed)):
            config = shrink_config(arch, BF16, T, r)
            for kind, rows, factor in (("A", x, own_a), ("B", g, own_b.transpose(1, 2)), ("shared A", x, shared_a)):
                shrink([rows], [factor], 1.0, segments, config)
                yield f"shrink {kind}, {name}", _last(found, shrink_kernel), 2 * config.BK * BR
            shrink([x], [own_a], 1.0, segments, config, wide=meta(M, K + 64, dtype=BF16))
            yield f"shrink A and copy, {name}", _last(found, shrink_kernel), 2 * config.BK * BR
            config = outer_config(arch, BF16, r)
            for kind, u, v, per_sample in (("dA", x, s, True), ("dB", s, g, True), ("shared dB", s, g, False)):
                outer(u, v, segments, per_sample, BF16, config)
                yield f"outer {kind}, {name}", _last(found, outer_kernel), 4 * config.BM * BR
            if r <= SHRINK_OUTER_RANK:
                config = shrink_outer_config(arch, BF16, r)
                for kind, b in (("own B", own_b), ("shared B", shared_b)):
                    shrink_outer(g, b, s, 1.0, segments, BF16, config)
                    yield f"shrink and outer {kind}, {name}", _last(found, shrink_outer_kernel), 4 * config.BM * BR
            expand(s, own_a.transpose(1, 2), segments, x, add=True)
            yield f"expand {name}", found[-1], -1
        if r <= DECODE_RANK:
            for kind, a, b in (("own A", own_a, shared_b), ("own B", shared_a, own_b)):
                decode(x[:32], a, b, 1.0, Segments(B, 32, 4, None))
                yield f"decode of S, {kind}", _last(found, decode_kernel), -1
                # Of many samples a program computes its S itself.
                a, b = (t if t.dim() == 2 else meta(64, *t.shape[1:], dtype=BF16) for t in (a, b))
                decode(x[:256], a, b, 1.0, Segments(64, 256, 4, None))
                yield f"decode {kind}", _last(found, decode_kernel), -1


class DescriptorEntry(NamedTuple):
    """`loops`: of each loop that multiplies, the matrix instructions, the bulk copies and the other global accesses."""

    label: str
    registers: int
    spills: int
    shared: int
    loops: list[tuple[int, int, list[str]]]


def descriptor_launches(arch: str, r: int) -> Iterator[tuple[str, Launch]]:
    """Every tile, both layouts of W and of B, with and without tails of samples."""
    B, T, K, N = 8, 1024, 4096, 2048
    M = B * T
    padded, packed = Segments(B, M, T, None), Segments(B, M, None, meta(B + 1, dtype=torch.int32))
    with recorded() as found:
        for tile in descriptor_configs(arch):
            for name, segments, dtype in (("padded", padded, torch.float16), ("packed", packed, BF16)):
                x, g, w = meta(M, K, dtype=dtype), meta(M, N, dtype=dtype), meta(N, K, dtype=dtype)
                a, b, bias = meta(B, K, r, dtype=dtype).mT, meta(B, r, N, dtype=dtype), meta(N, dtype=dtype)
                for kind, y, call_ in (
                    ("y", None, (x, w.t(), b)),
                    ("dx", None, (g, w, a)),
                    ("dx that adds", x, (g, w, a)),
                ):
                    rows, weight, factor = call_
                    descriptor_gemm(rows, weight, meta(M, r), factor, segments, tile, bias if kind == "y" else None, y)
                    yield f"r {r}: {tile.BM}x{tile.BN}, {name}, {kind}", found[-1]


def _described(label: str, launch: Launch, arch: str) -> DescriptorEntry:
    got = compiled(launch, arch)
    loops = [
        (
            sum(PARTS[arch].matrix_instruction in line for line in loop),
            sum("cp.async.bulk.tensor" in line for line in loop),
            not_bulk(loop),
        )
        for loop in got.loops
    ]
    return DescriptorEntry(label, got.registers, got.spills, got.shared, loops)


def _last(found: list[Launch], kernel: object) -> Launch:
    return [launch for launch in found if launch.kernel is kernel][-1]


def main(arch: str, *ranks: str) -> None:
    print(json.dumps({"triton": triton.__version__}))
    if arch == "descriptors":
        arch, *ranks = ranks
        for label, launch in (one for r in ranks for one in descriptor_launches(arch, int(r))):
            print(json.dumps(_described(label, launch, arch)._asdict()))
        return
    for r in map(int, ranks):
        for label, launch, tile in launches(arch, r):
            got = compiled(launch, arch)
            item = 4 if "outer" in label else 2
            possible = min(16, item * (r & -r), tile // got.threads) if tile > 0 else 16 * (tile + 1)
            print(json.dumps(Entry(f"r {r}: {label}", got.spills, got.shared, got.narrowest, possible)._asdict()))


if __name__ == "__main__":
    main(*sys.argv[1:])
