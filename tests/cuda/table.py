"""Every kernel of the CUDA backend, assembled for two parts: registers, spills, shared memory, blocks that fit.

`python tests/cuda/table.py PTXSIM > csrc/cuda/kernels.md` writes the table; PTXSIM is the folder of ptxsim.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import simulator as simulation
import torch
from simulator import Simulator

from cora_kernels.planning.tile_sizes import DECODE_LENGTH, ONE_PASS_RANK
from cora_kernels.segments import Segments

ARCHITECTURES = (80, 90)


class Launched(NamedTuple):
    """One kernel: what it does, its mangled name, threads and bytes of shared memory of a block."""

    label: str
    kernel: str
    threads: int
    shared: int


def launched(simulator: Simulator, dtype: torch.dtype = torch.bfloat16) -> Iterator[Launched]:
    """Every kernel that the launchers know, at shapes that make them choose it."""
    seen = set()
    for M, K, N, T in ((512, 128, 128, 256), (64, 64, 64, 64), (16, 128, 128, 16), (8, 128, 128, 8)):
        for r in (16, 32, 64):
            x, w = torch.zeros(M, K, dtype=dtype), torch.zeros(N, K, dtype=dtype)
            a, b = torch.zeros(M // T, K, r, dtype=dtype), torch.zeros(M // T, r, N, dtype=dtype)
            segments = Segments(M // T, M, T, None)
            possible = ["decode"] if T <= DECODE_LENGTH else ["one_pass"] * (r <= ONE_PASS_RANK) + ["two_kernels"]
            for strategy in possible:
                for multiprocessors in (1, 108):
                    with simulator.recording(multiprocessors) as found:
                        _run(x, w, a, b, segments, strategy)
                    for kernel, _, threads, shared in found:
                        if kernel not in seen:
                            seen.add(kernel)
                            yield Launched(_label(kernel), kernel, threads, shared)
    for T in (1, 2, 4):
        with simulator.recording(108) as found:
            _run(x[:T], w, a, b, Segments(1, T, T, None), "decode")
        for kernel, _, threads, shared in found:
            if kernel not in seen:
                seen.add(kernel)
                yield Launched(_label(kernel), kernel, threads, shared)


def _run(x, w, a, b, segments, strategy) -> None:
    """Forward, backward and outer products, and the outer products that split their rows or have no wide side."""
    ops = torch.ops.cora_kernels
    y, s = ops.cuda_forward(x, [w], [a], [b], [None], None, 1.0, None, segments.batch, [], [strategy])
    ops.cuda_backward_input([y], [w], [a], [b], None, 1.0, None, segments.batch, 1, [], [strategy])
    ops.cuda_outer(x, s, None, segments.batch, True, torch.float32)
    ops.cuda_outer(s, s, None, segments.batch, True, torch.float32)
    ops.cuda_outer(x.new_zeros(4096, 8), s.new_zeros(4096, 1), None, 1, True, torch.float32)


def _label(kernel: str) -> str:
    numbers = re.findall(r"L[ib](\d+)E", kernel)
    if "GemmTile" in kernel:
        BM, BN, BK, *_, stages, R, backward = numbers
        ranks = f", rank {R}" if R != "0" else ""
        kind = "one pass" if R != "0" else "S given"
        return f"lowrank_gemm {kind}, {'dx' if backward == '1' else 'y'} {BM}x{BN}x{BK}, {stages} stages{ranks}"
    if "shrink_kernel" in kernel:
        return f"shrink {numbers[0]} rows, rank {numbers[1]}, {'dS' if numbers[2] == '1' else 'S'}"
    if "narrow_outer" in kernel:
        return "outer of two narrow sides"
    if "outer_kernel" in kernel:
        return f"outer 128 columns, rank {numbers[0]}"
    if "sum_planes" in kernel:
        return "outer, sum of planes"
    return f"decode, up to {numbers[0]} rows"


def sass(ptx: str, kernel: str, arch: int) -> str:
    """The kernel's machine code."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(simulation.alone(ptx, kernel))
        simulation.run("ptxas", f"-arch=sm_{arch}", source, "-o", cubin)
        return simulation.run(cuobjdump(), "-sass", cubin)


def cuobjdump() -> Path:
    """Of the toolkit, or of Triton."""
    found = shutil.which("cuobjdump")
    if found is None:
        import triton

        found = str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    return Path(found)


def document(simulator: Simulator) -> str:
    lines = [
        "# The compiled CUDA kernels",
        "",
        "bf16; fp16 differs by a few registers. Written by `python tests/cuda/table.py`.",
        "Registers are per thread, spills and shared memory in bytes, blocks are those that fit one multiprocessor.",
    ]
    kernels = sorted(launched(simulator))
    version = subprocess.run(["ptxas", "--version"], capture_output=True, text=True).stdout
    lines[2] += f" ptxas {re.search(r'release ([0-9.]+)', version)[1]}."
    for arch in ARCHITECTURES:
        lines += ["", f"## sm_{arch}", "", "| kernel | registers | spills | shared | blocks |", "|---|--:|--:|--:|--:|"]
        used = {}
        for ptx in simulator.ptx.values():
            used |= simulator.ptxsim.resource_usage(ptx, arch)
        for label, kernel, threads, shared in kernels:
            found = used[kernel]
            blocks = found.occupancy(threads, shared).blocks_per_sm
            spills, all_shared = found.spill_stores + found.spill_loads, found.static_shared + shared
            lines.append(f"| {label} | {found.registers} | {spills} | {all_shared} | {blocks} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(sys.argv[1]).resolve().parent))
    import ptxsim

    print(document(Simulator(ptxsim, simulation.build(simulation.ROOT / "build" / "simulated-cuda"))))
