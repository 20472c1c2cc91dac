"""The machine in words, and the rates it reaches: the roof of the roofline."""

import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cora_kernels.backends import extension


def describe() -> dict[str, str]:
    """Machine, threads and versions, as printed and written beside every table."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu": f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
        "kernels": (extension.loaded and extension._C.cpu_isa()) or "none",
        "threads": str(torch.get_num_threads()),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def slug(machine: dict[str, str]) -> str:
    """The machine as a part of a file name."""
    name = f"{machine['cpu'].split(',')[0]} {machine['kernels']}" if machine["gpu"] == "none" else machine["gpu"]
    return re.sub(r"[^a-z0-9]+", "-", f"{name} {machine['threads']} threads".lower()).strip("-")


def peaks() -> dict[str, float]:
    """FLOP/s of a square GEMM in each dtype and bytes/s of a copy: the median of five."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 1536
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x, y = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        found[name] = 2 * size**3 / _seconds(lambda x=x, y=y: x @ y)
    source = torch.ones((1 << 30 if device == "cuda" else 1 << 28) // 4, device=device)
    target = torch.empty_like(source)
    found["bytes"] = 2 * source.nbytes / _seconds(lambda: target.copy_(source))
    return found


def _seconds(run: Callable[[], object]) -> float:
    samples = []
    for _ in range(6):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples[1:])


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8"))):
        return found[1].strip()
    return platform.processor() or platform.machine()
