"""The CUDA C++ kernels: the backend "cuda", csrc/cuda. bf16 and fp16 on NVIDIA GPUs since Ampere.

Usable where the extension `_C` was built with nvcc beside a CUDA build of torch. `cora_kernels.planning.choose` decides
between one pass, two kernels and decode; csrc/cuda/ops.cpp runs what it is told.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cora_kernels.backends import extension
from cora_kernels.operands import Operands
from cora_kernels.planning import choose, gpus
from cora_kernels.segments import Segments

_missing = extension.unavailable
if _missing is None and not hasattr(torch.ops.cora_kernels, "cuda_forward"):
    _missing = "the native extension was built without CUDA: install with nvcc, beside a CUDA build of torch"

KERNELS = ("lowrank_gemm", "shrink", "outer", "decode")
_DEVICE = "cuda"
_OLDEST = (8, 0)
_DTYPES = choose.DTYPES["cuda"]


def architectures() -> str | None:
    """Those that the kernels were built for, or None where they were not built."""
    return torch.ops.cora_kernels.cuda_architectures() if _missing is None else None


def availability() -> str | None:
    if _missing is not None:
        return _missing
    return None if torch.cuda.is_available() else "no NVIDIA GPU is there"


def not_supported_reasons(x: Tensor, operands: Operands) -> list[str]:
    reasons = []
    if x.device.type != _DEVICE:
        reasons.append(f"it runs on NVIDIA GPUs, x is on {x.device}")
    elif _capability(x.device) < _OLDEST:
        reasons.append("it needs compute capability 8.0 (Ampere) or later")
    if x.dtype not in _DTYPES:
        reasons.append(f"x must be bfloat16 or float16, got {x.dtype}")
    if not _aligned(x):
        reasons.append(f"the rows of x must be 16-byte aligned, got strides {tuple(x.stride())}")
    for weight in operands.weights:
        if any(size % 8 for size in weight.shape):
            reasons.append(f"the widths of weight must be multiples of 8, got {tuple(weight.shape)}")
        elif not _aligned(weight if weight.stride(1) == 1 else weight.t()):
            reasons.append(f"the rows of weight must be 16-byte aligned, got strides {tuple(weight.stride())}")
    for factor in (*operands.lora_as, *operands.lora_bs):
        if factor.dtype not in (x.dtype, torch.float32):
            reasons.append(f"lora_a and lora_b must be float32 or, like x, {x.dtype}, got {factor.dtype}")
    if not torch.compiler.is_compiling() and torch.jit.is_tracing():
        reasons.append("torch.jit.trace cannot record it")
    return reasons


def shrink(x: Tensor, a: Tensor, scaling: float | Tensor, segments: Segments) -> Tensor:
    return extension.shrink(torch.ops.cora_kernels.cuda_shrink, x, a, scaling, segments)


def forward(x: Tensor, operands: Operands, s: Sequence[Tensor] | None = None) -> tuple[list[Tensor], list[Tensor]]:
    if torch.compiler.is_compiling():
        return extension.forward(torch.ops.cora_kernels.cuda_planned_forward, x, operands, s)
    return _forward(x, operands, s)


def _forward(x: Tensor, operands: Operands, s: Sequence[Tensor] | None) -> tuple[list[Tensor], list[Tensor]]:
    chosen = [
        _strategy(x, weight.t(), operands.lora_as[operands.a_of(j)], b, operands, s is not None or operands.a_of(j) < j)
        for j, (weight, b) in enumerate(zip(operands.weights, operands.lora_bs, strict=True))
    ]
    return extension.forward(torch.ops.cora_kernels.cuda_forward, x, operands, s, chosen)


def backward_input(
    gs: Sequence[Tensor], operands: Operands, need_dx: bool, ds: Sequence[Tensor] | None = None
) -> tuple[Tensor | None, list[Tensor]]:
    if torch.compiler.is_compiling():
        op = torch.ops.cora_kernels.cuda_planned_backward_input
        return extension.backward_input(op, gs, operands, need_dx, ds)
    return _backward_input(gs, operands, need_dx, ds)


def _backward_input(
    gs: Sequence[Tensor], operands: Operands, need_dx: bool, ds: Sequence[Tensor] | None
) -> tuple[Tensor | None, list[Tensor]]:
    chosen, summed = [], len(operands.lora_as) < len(gs)
    for j, a in enumerate(operands.lora_as if need_dx else ()):
        factors = operands.lora_bs[j].transpose(-1, -2), a.transpose(-1, -2)
        given = ds is not None or summed
        chosen.append(_strategy(gs[j], operands.weights[j], *factors, operands, given, added=j > 0))
    op = torch.ops.cora_kernels.cuda_backward_input
    return extension.backward_input(op, gs, operands, need_dx, ds, chosen)


def outer(u: Tensor, v: Tensor, segments: Segments, per_sample: bool, dtype: torch.dtype) -> Tensor:
    return extension.outer(torch.ops.cora_kernels.cuda_outer, u, v, segments, per_sample, dtype)


def _aligned(t: Tensor) -> bool:
    """By its place in its storage, which itself starts at a multiple of 512 bytes.

    torch.compile traces no storage_offset: there the drivers copy what the place alone rules out.
    """
    placed = torch.compiler.is_compiling() or t.storage_offset() % 8 == 0
    return placed and t.stride(-1) == 1 and all(stride % 8 == 0 for stride in t.stride()[:-1])


@torch.compiler.assume_constant_result
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else _OLDEST


def _strategy(
    x: Tensor, w: Tensor, a: Tensor, b: Tensor, operands: Operands, s_given: bool, added: bool = False
) -> str:
    # A scaling of each sample's own makes no factor of its own here: only those are read anew for every sample.
    problem = choose.problem_of(x, w, a, b, 1.0, operands.segments, s_given, added)
    return choose.choose(problem, gpus.gpu_of(x.device), "cuda").strategy


if _missing is None:
    extension.register_fakes("cuda")
# torch.compile calls these, whose choices depend on sizes: it compiles nothing again when only a size changes.
extension.define_ops("cuda_planned", {"forward": _forward, "backward_input": _backward_input})
