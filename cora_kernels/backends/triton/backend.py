"""The backend "triton": on NVIDIA and AMD GPUs, and on CPU tensors where kernels are interpreted or simulated."""

import re
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from cora_kernels.backends import extension
from cora_kernels.operands import Operands
from cora_kernels.planning import choose
from cora_kernels.segments import Segments

_OLDEST_TRITON = (3, 2)


def unsupported(version: str) -> str | None:
    """Why this Triton does not serve, or None. Those from 3.2 on compile every kernel: the tests hold it."""
    if tuple(map(int, re.findall(r"\d+", version)[:2])) >= _OLDEST_TRITON:
        return None
    return f"Triton 3.2 or later is needed, which torch 2.6 brings, found {version}"


try:
    import triton

    from cora_kernels.backends.triton import strategies
    from cora_kernels.backends.triton.planes import sum_planes_kernel
except ImportError as error:
    _missing: str | None = f"Triton is not there ({error})"
else:
    _missing = unsupported(triton.__version__)

_DTYPES = choose.DTYPES["triton"]
_OLDEST = (8, 0)


def availability() -> str | None:
    if _missing is not None:
        return _missing
    if _interprets() or _simulates():
        return None
    if not torch.cuda.is_available():
        return "no GPU is there, and Triton does not interpret kernels on the CPU (TRITON_INTERPRET=1)"
    return _cannot_launch()


@torch.compiler.assume_constant_result
def _cannot_launch() -> str | None:
    return _driver_error()


@lru_cache
def _driver_error() -> str | None:
    """Triton compiles what launches its kernels on first use, with a C compiler that need not be there."""
    try:
        triton.runtime.driver.active.get_current_device()
    except Exception as error:
        reason = str(error).partition("\n")[0]
        return f"Triton cannot launch kernels here ({reason})"
    return None


@torch.compiler.assume_constant_result
def _is_too_old(device: torch.device) -> bool:
    """Triton supports NVIDIA GPUs from Ampere on."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) < _OLDEST


@torch.compiler.assume_constant_result
def _interprets() -> bool:
    return not isinstance(sum_planes_kernel, triton.JITFunction)


@torch.compiler.assume_constant_result
def _simulates() -> bool:
    """Whether a simulator stands in the place of JITFunction.run and launches kernels on CPU tensors."""
    return triton.JITFunction.run.__module__ != triton.JITFunction.__module__


def not_supported_reasons(x: Tensor, operands: Operands) -> list[str]:
    reasons, factors = [], (*operands.lora_as, *operands.lora_bs)
    on_cpu = x.device.type == "cpu" and (_interprets() or _simulates())
    if x.device.type != "cuda" and not on_cpu:
        reasons.append(f"it runs on NVIDIA and AMD GPUs, x is on {x.device}")
    elif not on_cpu and _is_too_old(x.device):
        reasons.append("it needs compute capability 8.0 (Ampere) or later")
    if x.dtype not in _DTYPES:
        reasons.append(f"x must be float32, bfloat16 or float16, got {x.dtype}")
    for factor in factors:
        if factor.dtype not in _DTYPES:
            reasons.append(f"lora_a and lora_b must be float32, bfloat16 or float16, got {factor.dtype}")
    if _interprets() and any(t.dtype == torch.bfloat16 for t in (x, *factors)):
        reasons.append("Triton's interpreter rounds and multiplies bfloat16 wrongly")
    if not torch.compiler.is_compiling() and torch.jit.is_tracing():
        reasons.append("torch.jit.trace cannot record it")
    return reasons


def shrink(x: Tensor, a: Tensor, scaling: float | Tensor, segments: Segments) -> Tensor:
    if torch.compiler.is_compiling():
        return extension.shrink(torch.ops.cora_kernels.triton_shrink, x, a, scaling, segments)
    return strategies.shrink([x], [a], scaling, segments)


def forward(x: Tensor, operands: Operands, s: Sequence[Tensor] | None = None) -> tuple[list[Tensor], list[Tensor]]:
    if torch.compiler.is_compiling():
        return extension.forward(torch.ops.cora_kernels.triton_forward, x, operands, s)
    return strategies.forward(x, operands, s)


def backward_input(
    gs: Sequence[Tensor], operands: Operands, need_dx: bool, ds: Sequence[Tensor] | None = None
) -> tuple[Tensor | None, list[Tensor]]:
    if torch.compiler.is_compiling():
        return extension.backward_input(torch.ops.cora_kernels.triton_backward_input, gs, operands, need_dx, ds)
    return strategies.backward_input(gs, operands, need_dx, ds)


def outer(u: Tensor, v: Tensor, segments: Segments, per_sample: bool, dtype: torch.dtype) -> Tensor:
    if torch.compiler.is_compiling():
        return extension.outer(torch.ops.cora_kernels.triton_outer, u, v, segments, per_sample, dtype)
    return strategies.outer(u, v, segments, per_sample, dtype)


def shrink_beside(x: Tensor, a: Tensor, scaling: float | Tensor, segments: Segments, wide: Tensor) -> Tensor:
    """Of this backend alone: `shrink`, which on its way writes [x | S | 0] to `wide` [M, K + p]."""
    return strategies.shrink([x], [a], scaling, segments, wide)


def shrink_outer(
    g: Tensor, operands: Operands, s: Tensor, need_dx: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """Of this backend alone: see `strategies.shrink_outer`."""
    return None if torch.compiler.is_compiling() else strategies.shrink_outer(g, operands, s, need_dx, dtype)


# torch.compile calls operators: it then traces no launcher, whose choices depend on sizes, and compiles nothing again
# when only a size changes.
if _missing is None:
    extension.define_ops(
        "triton",
        {
            "shrink": lambda x, a, scaling, segments: strategies.shrink([x], [a], scaling, segments),
            "forward": strategies.forward,
            "backward_input": strategies.backward_input,
            "outer": strategies.outer,
        },
    )
