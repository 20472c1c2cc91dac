"""Compile the launches of unchanged launchers ahead of time, for parts that are not there, and read what came out.

`python tests/triton/aot.py > cora_kernels/backends/triton/kernels.md` writes the registers, shared
memory and occupancy of each.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from cora_kernels.backends.triton.decode import decode
from cora_kernels.backends.triton.expand import expand
from cora_kernels.backends.triton.lowrank_gemm import lowrank_gemm, lowrank_gemm_one_pass
from cora_kernels.backends.triton.outer import outer
from cora_kernels.backends.triton.planes import sum_planes
from cora_kernels.backends.triton.shrink import shrink, shrink_kernel
from cora_kernels.backends.triton.shrink_outer import shrink_outer, shrink_outer_kernel
from cora_kernels.planning.tile_sizes import gemm_configs, outer_config, shrink_config, shrink_outer_config
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


class Launch(NamedTuple):
    kernel: JITFunction
    values: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, Any]


class Compiled(NamedTuple):
    """`spills` in bytes (NVIDIA) or registers (AMD), `blocks` per multiprocessor, `loop` the lines of its main loop."""

    threads: int
    registers: int
    spills: int
    shared: int
    blocks: int
    loop: list[str]


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

    run, JITFunction.run = JITFunction.run, record
    try:
        yield launches
    finally:
        JITFunction.run = run


def compiled(launch: Launch, part: str) -> Compiled:
    """As the JIT would specialise it: unit integers are constants, pointers and multiples of 16 are marked so."""
    names = [p.name for p in launch.kernel.params]
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(names):
        value = launch.constants.get(name, launch.values.get(name))
        if name in launch.constants or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[i,] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + _TYPES[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    binary = triton.compile(source, target=PARTS[part].target, options=launch.options)
    return _read(binary, PARTS[part], launch.options["num_warps"])


def launches(arch: str) -> Iterator[tuple[str, Launch]]:
    """Every kernel at a production shape, under each of its configurations for the part, by label."""
    T, K, N, r = 1024, 4096, 4096, 16
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        x, w = _meta(8 * T, K, dtype=dtype), _meta(N, K, dtype=dtype)
        a, b, s = _meta(8, K, r, dtype=dtype), _meta(r, N, dtype=dtype), _meta(8 * T, r)
        bias = _meta(N, dtype=dtype)
        padded, packed = Segments(8, 8 * T, T, None), Segments(8, 8 * T, None, _meta(9, dtype=torch.int32))
        with recorded() as found:
            for config in gemm_configs(arch, dtype, one_pass=True):
                label = f"lowrank_gemm one pass {name} {config.BM}x{config.BN}x{config.BK}"
                lowrank_gemm_one_pass(x, w.t(), a, b, 1.0, padded, config, bias=bias)
                yield label + " forward", found[-1]
                wide = _meta(8, K, 32, dtype=dtype)
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
            for rows in (16, T):
                config = shrink_config(arch, dtype, rows)
                for rank in (16, 64):
                    shrink([x], [_meta(8, K, rank, dtype=dtype)], 1.0, packed, config)
                    launch = [launch for launch in found if launch.kernel is shrink_kernel][-1]
                    yield f"shrink {name} {config.BM}x{config.BK} rank {rank}", launch
            for rank in (16, 64):
                config = outer_config(arch, dtype, rank)
                outer(x, _meta(8 * T, rank), packed, True, dtype, config)
                yield f"outer {name} {config.BM}x{config.BP} rank {rank}", found[-1]
            config = shrink_outer_config(arch, dtype)
            for rank in (16, 32):
                shrink_outer(x, _meta(8, rank, K, dtype=dtype), _meta(8 * T, rank), 1.0, packed, dtype, config)
                launch = [launch for launch in found if launch.kernel is shrink_outer_kernel][-1]
                yield f"shrink_outer {name} {config.BM}x{config.BP} rank {rank}", launch
            expand(s, a.transpose(1, 2), packed, x)
            yield f"expand {name}", found[-1]
            decode(x[:32], a, b, 1.0, Segments(8, 32, 4, None))
            yield f"decode {name} 4 rows", found[-1]
            sum_planes(_meta(4, 8, K, r), dtype)
            yield f"sum_planes {name}", found[-1]


@cache
def table(arch: str) -> dict[str, Compiled]:
    return {label: compiled(launch, arch) for label, launch in launches(arch)}


_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32"}


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
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
    return Compiled(
        threads, registers, spills, shared, min(by_registers, by_shared, part.threads // threads), _main_loop(text)
    )


def _assembled(ptx: str, arch: int) -> tuple[int, int]:
    """Registers and bytes of spills, by ptxas."""
    target = re.search(r"\.target\s+(sm_\w+)", ptx)[1]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={target}", str(source), "-o", str(source) + ".cubin"]
        done = subprocess.run(command, capture_output=True, text=True)
        log = done.stderr
        assert done.returncode == 0, log
    spills = sum(map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log).groups()))
    return int(re.search(r"Used (\d+) registers", log)[1]), spills


def _main_loop(text: str) -> list[str]:
    """Of the innermost loops, label to branch back: the one with the most matrix instructions, or the longest."""
    lines = text.split("\n")
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"\s*([$.\w]+):", line))}
    spans = [
        (labels[m[1]], i)
        for i, line in enumerate(lines)
        if (m := re.search(r"\b(?:bra|s_cbranch_\w+|s_branch)(?:\.uni)?\s+([$.\w]+)", line)) and labels.get(m[1], i) < i
    ]
    matrix = re.compile("|".join(re.escape(part.matrix_instruction) for part in PARTS.values()))
    spans = [span for span in spans if any(matrix.search(line) for line in lines[slice(*span)])] or spans

    def inside(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
        return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]

    loops = [lines[i:j] for i, j in spans if not any(inside(span, (i, j)) for span in spans)]
    return max(loops, key=lambda loop: (sum(bool(matrix.search(line)) for line in loop), len(loop)), default=[])


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


if __name__ == "__main__":
    print(document())
