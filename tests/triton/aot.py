"""Compile the launches of unchanged launchers ahead of time, for parts that are not there, and read what came out.

`python tests/triton/aot.py > cora_kernels/backends/triton/kernels.md` writes the registers, shared
memory and occupancy of each. `python tests/triton/aot.py PART I N` compiles every N-th kernel of a part, from the I-th.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from cora_kernels.backends.triton.decode import decode
from cora_kernels.backends.triton.descriptor_gemm import descriptor_gemm
from cora_kernels.backends.triton.expand import expand
from cora_kernels.backends.triton.lowrank_gemm import lowrank_gemm, lowrank_gemm_one_pass
from cora_kernels.backends.triton.outer import outer
from cora_kernels.backends.triton.planes import sum_planes
from cora_kernels.backends.triton.shrink import shrink, shrink_kernel
from cora_kernels.backends.triton.shrink_outer import shrink_outer, shrink_outer_kernel
from cora_kernels.planning.tile_sizes import (
    descriptor_configs,
    gemm_configs,
    outer_config,
    shrink_config,
    shrink_outer_config,
)
from cora_kernels.planning.versions import has_descriptors
from cora_kernels.segments import Segments


class Part(NamedTuple):
    """What one multiprocessor has: registers, shared memory (bytes, for one block and for all), threads."""

    target: GPUTarget
    registers: int
    shared_block: int
    shared: int
    threads: int
    matrix_instruction: str


PARTS = {
    "sm_80": Part(GPUTarget("cuda", 80, 32), 65536, 101376, 167936, 2048, "mma.sync"),
    "sm_90": Part(GPUTarget("cuda", 90, 32), 65536, 232448, 233472, 2048, "wgmma.mma_async"),
    "sm_100": Part(GPUTarget("cuda", 100, 32), 65536, 232448, 233472, 2048, "tcgen05.mma"),
    "gfx942": Part(GPUTarget("hip", "gfx942", 64), 131072, 65536, 65536, 2048, "v_mfma"),
}


# Where launches are recorded, `run` is another function.
_JIT_RUN = JITFunction.run


class Launch(NamedTuple):
    kernel: JITFunction
    values: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, Any]


class Compiled(NamedTuple):
    """`spills` in bytes (NVIDIA) or registers (AMD), `blocks` per multiprocessor, `loops` the lines of each innermost
    loop, of those that multiply matrices if any does; the main loop first.

    `narrowest`: the least bytes that a global load of the main loop moves (NVIDIA; 16 where it has none).
    """

    threads: int
    registers: int
    spills: int
    shared: int
    blocks: int
    narrowest: int
    loops: list[list[str]]

    @property
    def loop(self) -> list[str]:
        return self.loops[0] if self.loops else []


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Inside, kernels are not launched but listed."""
    launches: list[Launch] = []

    def record(self, *args, grid, warmup, **kwargs):
        values = dict(zip(self.arg_names, args, strict=False)) | {
            k: kwargs.pop(k) for k in self.arg_names if k in kwargs
        }
        constants = {p.name: values.pop(p.name) for p in self.params if p.is_constexpr}
        launches.append(Launch(self, values, constants, kwargs))

    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = _JIT_RUN


class Driver:
    """Stands where Triton keeps the GPU that is there: it compiles for this part then, and nothing can be launched."""

    def __init__(self, part: str) -> None:
        self.part = part

    def get_current_target(self) -> GPUTarget:
        return PARTS[self.part].target

    def get_current_device(self) -> int:
        return list(PARTS).index(self.part)

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(launch: Launch, part: str) -> Compiled:
    """As a launch on the part would compile it: by the JIT itself, which specialises what it is given."""
    before = dict(vars(driver))
    driver.set_active(Driver(part))
    try:
        binary = _JIT_RUN(launch.kernel, grid=(1,), warmup=True, **launch.values, **launch.constants, **launch.options)
    finally:
        vars(driver).update(before)
    return _read(binary, PARTS[part], launch.options["num_warps"])


def launches(arch: str) -> Iterator[tuple[str, Launch]]:
    """Every kernel at a production shape, under each of its configurations for the part, by label."""
    T, K, N, r = 1024, 4096, 4096, 16
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        x, w = meta(8 * T, K, dtype=dtype), meta(N, K, dtype=dtype)
        a, b, s = meta(8, K, r, dtype=dtype), meta(r, N, dtype=dtype), meta(8 * T, r)
        bias = meta(N, dtype=dtype)
        padded, packed = Segments(8, 8 * T, T, None), Segments(8, 8 * T, None, meta(9, dtype=torch.int32))
        with recorded() as found:
            for config in gemm_configs(arch, dtype, one_pass=True):
                label = f"lowrank_gemm one pass {name} {config.BM}x{config.BN}x{config.BK}"
                lowrank_gemm_one_pass(x, w.t(), a, b, 1.0, padded, config, bias=bias)
                yield label + " forward", found[-1]
                wide = meta(8, K, 32, dtype=dtype)
                lowrank_gemm_one_pass(x, w.t(), wide, wide.transpose(1, 2), 1.0, packed, config)
                yield label + " packed, rank 32", found[-1]
            for config in gemm_configs(arch, dtype, one_pass=False):
                label = f"lowrank_gemm S given {name} {config.BM}x{config.BN}x{config.BK}"
                lowrank_gemm(x, w.t(), s, b, padded, config, bias=bias)
                yield label + " forward", found[-1]
                lowrank_gemm(x, w, s, a.transpose(1, 2), packed, config)
                yield label + " packed, dx", found[-1]
                if config == gemm_configs(arch, dtype, one_pass=False)[1] and dtype != torch.float32:
                    lowrank_gemm(x, w.t(), s, b, padded, config._replace(persistent=True))
                    yield label + " persistent", found[-1]
            tiles = descriptor_configs(arch) if has_descriptors() and dtype != torch.float32 else ()
            for config in tiles:
                label = f"descriptor_gemm {name} {config.BM}x{config.BN}x{config.BK}"
                descriptor_gemm(x, w.t(), s, b, padded, config, bias=bias)
                yield label + " forward", found[-1]
                descriptor_gemm(x, w, s, a.transpose(1, 2), packed, config)
                yield label + " packed, dx", found[-1]
            for rows in (16, T):
                for rank in (16, 64):
                    config = shrink_config(arch, dtype, rows, rank)
                    shrink([x], [meta(8, K, rank, dtype=dtype)], 1.0, packed, config)
                    launch = [launch for launch in found if launch.kernel is shrink_kernel][-1]
                    yield f"shrink {name} {config.BM}x{config.BK} rank {rank}", launch
            for rank in (16, 64):
                config = outer_config(arch, dtype, rank)
                outer(x, meta(8 * T, rank), packed, True, dtype, config)
                yield f"outer {name} {config.BM}x{config.BP} rank {rank}", found[-1]
            for rank in (16, 32):
                config = shrink_outer_config(arch, dtype, rank)
                shrink_outer(x, meta(8, rank, K, dtype=dtype), meta(8 * T, rank), 1.0, packed, dtype, config)
                launch = [launch for launch in found if launch.kernel is shrink_outer_kernel][-1]
                yield f"shrink_outer {name} {config.BM}x{config.BP} rank {rank}", launch
            expand(s, a.transpose(1, 2), packed, x)
            yield f"expand {name}", found[-1]
            decode(x[:32], a, b, 1.0, Segments(8, 32, 4, None))
            yield f"decode {name} 4 rows, of S", found[-1]
            decode(x[:256], meta(64, K, r, dtype=dtype), b, 1.0, Segments(64, 256, 4, None))
            yield f"decode {name} 4 rows", found[-1]
            sum_planes(meta(4, 8, K, r), dtype)
            yield f"sum_planes {name}", found[-1]


@cache
def table(arch: str) -> dict[str, Compiled]:
    return {label: compiled(launch, arch) for label, launch in launches(arch)}


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _read(binary: Any, part: Part, num_warps: int) -> Compiled:
    shared = binary.metadata.shared
    if part.target.backend == "hip":
        text = binary.asm["amdgcn"]

        def count(name: str) -> int:
            return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])

        registers, spills = count("vgpr_count"), count("vgpr_spill_count") + count("sgpr_spill_count")
        unit = 8
    else:
        text = binary.asm["ptx"]
        registers, spills = _assembled(text, part.target.arch)
        unit = 8
    threads = num_warps * part.target.warp_size
    by_registers = part.registers // (-(-registers // unit) * unit * threads)
    by_shared = part.shared // (shared + 1024) if part.target.backend == "cuda" else part.shared // max(shared, 1)
    blocks, loops = min(by_registers, by_shared, part.threads // threads), _loops(text)
    narrowest = min(map(_loaded, loops[0]), default=16) if loops else 16
    return Compiled(threads, registers, spills, shared, blocks, narrowest, loops)


def _assembled(ptx: str, arch: int) -> tuple[int, int]:
    """Registers and bytes of spills, by ptxas."""
    target = re.search(r"\.target\s+(sm_\w+)", ptx)[1]
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    newer = tools / "ptxas-blackwell"  # which some versions of Triton bring for sm_90 and later, or sm_100
    tool = newer if arch >= 90 and newer.exists() else tools / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [str(tool), "-v", f"--gpu-name={target}", str(source), "-o", str(source) + ".cubin"]
        done = subprocess.run(command, capture_output=True, text=True)
        log = done.stderr
        assert done.returncode == 0, log
    spills = sum(map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log).groups()))
    return int(re.search(r"Used (\d+) registers", log)[1]), spills


def _loaded(line: str) -> int:
    """The bytes that a line of PTX loads from global memory; 16 if it is no such load."""
    if copied := re.search(r"cp\.async\.c[ag]\.shared\.global .*, 0x(\w+), ", line):
        return int(copied[1], 16)
    loaded = re.search(r"ld\.global(?:\.\D\w*(?:::\w+)*)*?(?:\.v(\d))?\.[bsuf](\d+)", line)
    return int(loaded[1] or 1) * int(loaded[2]) // 8 if loaded else 16


def not_bulk(loop: list[str]) -> list[str]:
    """The lines of PTX that touch global (or local) memory by other means than bulk copies."""
    # At the start of an instruction: `tcgen05.st` and `tcgen05.wait::st` are of tensor memory.
    other = re.compile(r"(?<![\w.:])(?:(?:ld|st|atom|red)\.(?!shared|param)|cp\.async\.c[ag]\.)")
    return [line for line in loop if other.search(line)]


def _loops(text: str) -> list[list[str]]:
    """The innermost loops, label to branch back: the one with the most matrix instructions, or the longest, first."""
    lines = text.split("\n")
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"\s*([$.\w]+):", line))}
    spans = [
        (labels[m[1]], i)
        for i, line in enumerate(lines)
        if (m := re.search(r"\b(?:bra|s_cbranch_\w+|s_branch)(?:\.uni)?\s+([$.\w]+)", line)) and labels.get(m[1], i) < i
    ]
    # On AMD a block that the fast path skips may lie behind the end of the program and go back into it: no loop.
    spans = [span for span in spans if not any("s_endpgm" in line for line in lines[slice(*span)])]
    matrix = re.compile("|".join(re.escape(part.matrix_instruction) for part in PARTS.values()))
    spans = [span for span in spans if any(matrix.search(line) for line in lines[slice(*span)])] or spans

    def inside(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
        return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]

    loops = [lines[i:j] for i, j in spans if not any(inside(span, (i, j)) for span in spans)]
    return sorted(loops, key=lambda loop: (sum(bool(matrix.search(line)) for line in loop), len(loop)), reverse=True)


def document() -> str:
    lines = [
        "# The compiled Triton kernels",
        "",
        f"Triton {triton.__version__}, 8 x 1024 rows, 4096 → 4096; written by `python tests/triton/aot.py`.",
        "Registers are per thread, shared memory is in bytes per block, blocks are those that fit one multiprocessor.",
    ]
    for arch in PARTS:
        lines += ["", f"## {arch}", "", "| kernel | registers | spills | shared | blocks |", "|---|--:|--:|--:|--:|"]
        for label, found in table(arch).items():
            lines.append(f"| {label} | {found.registers} | {found.spills} | {found.shared} | {found.blocks} |")
    return "\n".join(lines)


def share(arch: str, i: int, n: int) -> Iterator[str]:
    """Every n-th of the launches from the i-th on, as JSON: a process each compiles them all."""
    for label, launch in islice(launches(arch), i, None, n):
        found = compiled(launch, arch)
        yield json.dumps({"label": label, "spills": found.spills, "fits": found.shared <= PARTS[arch].shared_block})


if __name__ == "__main__":
    if len(sys.argv) == 4:
        for line in share(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])):
            print(line, flush=True)
    else:
        print(document())
