"""What the GPU can do at all: the rates that the cost rule and every other figure of the report stand on."""

from typing import Any

import torch

from bench.gpu.machine import Machine


def ceilings(machine: Machine, fast: bool) -> dict[str, Any]:
    """bytes/s of a copy, FLOP/s of mm, the exposed part of the y that addmm_ reads, mm at K + 64, a launch's CPU."""
    n, device = 8192 // machine.scale, machine.device
    dtype = torch.bfloat16
    x, w = (
        torch.randn(n, n // 2 + 64, device=device).to(dtype),
        torch.randn(n // 2 + 64, n // 2, device=device).to(dtype),
    )
    y = torch.empty(n, n // 2, dtype=dtype, device=device)
    narrow = x[:, : n // 2].contiguous(), w[: n // 2].contiguous()
    source = torch.empty((1 << 30) // machine.scale**2 // 2, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copied = machine.seconds(lambda: target.copy_(source))
    product = machine.seconds(lambda: torch.mm(*narrow, out=y))
    added = machine.seconds(lambda: y.addmm_(*narrow))
    wider = machine.seconds(lambda: torch.mm(x, w, out=y))
    bandwidth = 2 * source.numel() * source.itemsize / copied
    small = torch.zeros(16, 16, dtype=dtype, device=device)
    return {
        "bytes": bandwidth,
        "flops": 2 * n * (n // 2) ** 2 / product,
        "exposed": (added - product) * bandwidth / (y.numel() * y.itemsize),
        "wider": wider / product,
        "host": {"mm": machine.eager_seconds(lambda: torch.mm(small, small)), **_launches(machine)},
    }


def _launches(machine: Machine) -> dict[str, float]:
    """Of one launch of ours, by backend."""
    found = {}
    if "triton" in machine.usable():
        from cora_kernels.backends.triton.planes import sum_planes

        planes = torch.zeros(2, 16, 16, device=machine.device)
        found["triton"] = machine.eager_seconds(lambda: sum_planes(planes, torch.float32))
    if "cuda" in machine.usable():
        u, v = (torch.zeros(16, 8, device=machine.device) for _ in range(2))
        op = torch.ops.cora_kernels.cuda_outer
        found["cuda"] = machine.eager_seconds(lambda: op(u, v, None, 1, False, torch.float32))
    return found
