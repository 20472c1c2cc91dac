"""The backend "triton": on NVIDIA and AMD GPUs, and on CPU tensors where kernels are interpreted or simulated."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from cora_kernels.segments import Segments

try:
    import triton

    from cora_kernels.backends.triton import strategies
    from cora_kernels.backends.triton.planes import sum_planes_kernel
except ImportError as error:
    _missing: str | None = f"Triton is not there ({error})"
else:
    _missing = None

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
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


def not_supported_reasons(
    x: Tensor, weights: Sequence[Tensor], lora_as: Sequence[Tensor], lora_bs: Sequence[Tensor], segments: Segments
) -> list[str]:
    reasons = []
    on_cpu = x.device.type == "cpu" and (_interprets() or _simulates())
    if x.device.type != "cuda" and not on_cpu:
        reasons.append(f"it runs on NVIDIA and AMD GPUs, x is on {x.device}")
    elif not on_cpu and _is_too_old(x.device):
        reasons.append("it needs compute capability 8.0 (Ampere) or later")
    if x.dtype not in _DTYPES:
        reasons.append(f"x must be float32, bfloat16 or float16, got {x.dtype}")
    for factor in (*lora_as, *lora_bs):
        if factor.dtype not in _DTYPES:
            reasons.append(f"lora_a and lora_b must be float32, bfloat16 or float16, got {factor.dtype}")
    if _interprets() and any(t.dtype == torch.bfloat16 for t in (x, *lora_as, *lora_bs)):
        reasons.append("Triton's interpreter rounds and multiplies bfloat16 wrongly")
    return reasons


def shrink(x: Tensor, a: Tensor, scaling: float | Tensor, segments: Segments) -> Tensor:
    if torch.compiler.is_compiling():
        return torch.ops.cora_kernels.triton_shrink(x, a, _as_tensor(scaling), *_layout(segments))
    return strategies.shrink([x], [a], scaling, segments)


def forward(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_as: Sequence[Tensor],
    lora_bs: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    scaling: float | Tensor,
    segments: Segments,
    s: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    if not torch.compiler.is_compiling():
        return strategies.forward(x, weights, lora_as, lora_bs, biases, scaling, segments, s)
    out = torch.ops.cora_kernels.triton_forward(
        x,
        list(weights),
        list(lora_as),
        list(lora_bs),
        list(biases),
        _as_tensor(scaling),
        *_layout(segments),
        list(s or ()),
    )
    return out[: len(weights)], out[len(weights) :] if s is None else list(s)


def backward_input(
    gs: Sequence[Tensor],
    weights: Sequence[Tensor],
    lora_as: Sequence[Tensor],
    lora_bs: Sequence[Tensor],
    scaling: float | Tensor,
    segments: Segments,
    need_dx: bool,
    ds: Sequence[Tensor] | None = None,
) -> tuple[Tensor | None, list[Tensor]]:
    if not torch.compiler.is_compiling():
        return strategies.backward_input(gs, weights, lora_as, lora_bs, scaling, segments, need_dx, ds)
    out = torch.ops.cora_kernels.triton_backward_input(
        list(gs),
        list(weights) if need_dx else [],
        list(lora_as) if need_dx else [],
        list(lora_bs),
        _as_tensor(scaling),
        *_layout(segments),
        len(lora_as),
        list(ds or ()),
    )
    return out[0] if need_dx else None, out[int(need_dx) :] if ds is None else list(ds)


def outer(u: Tensor, v: Tensor, segments: Segments, per_sample: bool, dtype: torch.dtype) -> Tensor:
    if torch.compiler.is_compiling():
        return torch.ops.cora_kernels.triton_outer(u, v, *_layout(segments), per_sample, dtype)
    return strategies.outer(u, v, segments, per_sample, dtype)


def shrink_outer(
    g: Tensor,
    b: Tensor,
    s: Tensor,
    scaling: float | Tensor,
    segments: Segments,
    width: int | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor] | None:
    """Of this backend alone: see `strategies.shrink_outer`."""
    return None if torch.compiler.is_compiling() else strategies.shrink_outer(g, b, s, scaling, segments, width, dtype)


# For torch.compile, operators: it then traces no launcher, whose choices depend on sizes, and compiles nothing again
# when only a size changes. A float scaling travels as a tensor on the CPU, whose value is no constant and no wait.
def _as_tensor(scaling: float | Tensor) -> Tensor:
    return scaling if isinstance(scaling, Tensor) else torch.ones((), dtype=torch.float64) * scaling


def _from_tensor(scaling: Tensor) -> float | Tensor:
    return scaling if scaling.dim() else scaling.item()


def _layout(segments: Segments) -> tuple[Tensor | None, int, int | None]:
    return segments.cu_seqlens, segments.batch, segments.length


def _shrink(x, a, scaling, cu_seqlens, batch, length):
    return strategies.shrink([x], [a], _from_tensor(scaling), Segments(batch, x.shape[0], length, cu_seqlens))


def _forward(x, weights, lora_as, lora_bs, biases, scaling, cu_seqlens, batch, length, s):
    segments = Segments(batch, x.shape[0], length, cu_seqlens)
    ys, ss = strategies.forward(x, weights, lora_as, lora_bs, biases, _from_tensor(scaling), segments, s or None)
    return ys if s else ys + ss


def _backward_input(gs, weights, lora_as, lora_bs, scaling, cu_seqlens, batch, length, n_a, ds):
    need_dx = len(weights) > 0
    segments = Segments(batch, gs[0].shape[0], length, cu_seqlens)
    lora_as = lora_as if need_dx else [None] * n_a
    dx, dss = strategies.backward_input(
        gs, weights, lora_as, lora_bs, _from_tensor(scaling), segments, need_dx, ds or None
    )
    return ([dx] if need_dx else []) + ([] if ds else dss)


def _outer(u, v, cu_seqlens, batch, length, per_sample, dtype):
    return strategies.outer(u, v, Segments(batch, u.shape[0], length, cu_seqlens), per_sample, dtype)


def _fake_shrink(x, a, scaling, cu_seqlens, batch, length):
    return x.new_empty(x.shape[0], a.shape[-1], dtype=torch.float32)


def _fake_forward(x, weights, lora_as, lora_bs, biases, scaling, cu_seqlens, batch, length, s):
    ys = [x.new_empty(x.shape[0], weight.shape[0]) for weight in weights]
    return ys + ([] if s else [x.new_empty(x.shape[0], a.shape[-1], dtype=torch.float32) for a in lora_as])


def _fake_backward_input(gs, weights, lora_as, lora_bs, scaling, cu_seqlens, batch, length, n_a, ds):
    g = gs[0]
    dx = [g.new_empty(g.shape[0], weights[0].shape[1])] if weights else []
    return dx + ([] if ds else [g.new_empty(g.shape[0], b.shape[-2], dtype=torch.float32) for b in lora_bs[:n_a]])


def _fake_outer(u, v, cu_seqlens, batch, length, per_sample, dtype):
    return u.new_empty((batch, u.shape[1], v.shape[1]) if per_sample else (u.shape[1], v.shape[1]), dtype=dtype)


_LAYOUT = "Tensor? cu_seqlens, SymInt batch, SymInt? length"
_LIBRARY = torch.library.Library("cora_kernels", "FRAGMENT")
for _schema, _call, _fake in (
    (f"triton_shrink(Tensor x, Tensor a, Tensor scaling, {_LAYOUT}) -> Tensor", _shrink, _fake_shrink),
    (
        "triton_forward(Tensor x, Tensor[] weights, Tensor[] lora_as, Tensor[] lora_bs, Tensor?[] biases, "
        f"Tensor scaling, {_LAYOUT}, Tensor[] s) -> Tensor[]",
        _forward,
        _fake_forward,
    ),
    (
        "triton_backward_input(Tensor[] gs, Tensor[] weights, Tensor[] lora_as, Tensor[] lora_bs, Tensor scaling, "
        f"{_LAYOUT}, int n_a, Tensor[] ds) -> Tensor[]",
        _backward_input,
        _fake_backward_input,
    ),
    (
        f"triton_outer(Tensor u, Tensor v, {_LAYOUT}, bool per_sample, ScalarType dtype) -> Tensor",
        _outer,
        _fake_outer,
    ),
):
    _LIBRARY.define(_schema)
    _LIBRARY.impl(_schema.split("(")[0], _call, "CompositeExplicitAutograd")
    torch.library.register_fake(f"cora_kernels::{_schema.split('(')[0]}", _fake, lib=_LIBRARY)
