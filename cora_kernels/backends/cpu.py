"""The native CPU kernels: the backend "cpu", C++ in csrc/cpu. Usable where the extension `_C` was built.

The frozen weights are packed for the micro-kernels the first time they are met: once for the forward and once, where dx
is asked for, for the backward. Each pack is as large as its weight and lives until the weight dies or changes, or until
`weight_packing(False)` or `clear_weight_packs()`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from cora_kernels.segments import Segments

try:
    from cora_kernels import _C
except ImportError as error:
    # Python calls a module that is not there a circular import.
    _loaded, _missing = False, str(error) if find_spec("cora_kernels._C") else "it was not built"
else:
    _loaded, _missing = True, ""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _why_not() -> str | None:
    if not _loaded:
        return f"the native extension is not there ({_missing}): install with a C++ compiler and --no-build-isolation"
    if _C.torch_version.split(".")[:2] != torch.__version__.split(".")[:2]:
        return f"the native extension was built for torch {_C.torch_version}, this is {torch.__version__}"
    if _C.cpu_isa() is None:
        return "the CPU kernels need an x86 processor with AVX2, FMA and F16C"
    return None


_unavailable = _why_not()


def availability() -> str | None:
    return _unavailable


def plain_group(*call: object) -> tuple[Tensor, ...] | None:
    """lora_linear_group(x, weights, lora_as, lora_bs, biases, scaling) with its backward, all of it in C++; or None.

    None, unless the call is right, padded and served here as it stands: csrc/plain.h.
    """
    return None if _unavailable else _C.plain_group(*call)


def not_supported_reasons(
    x: Tensor, weights: Sequence[Tensor], lora_as: Sequence[Tensor], lora_bs: Sequence[Tensor], segments: Segments
) -> list[str]:
    reasons = []
    if x.device.type != "cpu":
        reasons.append(f"it runs on the CPU, x is on {x.device}")
    if x.dtype not in _DTYPES:
        reasons.append(f"x must be float32, bfloat16 or float16, got {x.dtype}")
    for matrix in (*weights, *lora_as, *lora_bs):
        if matrix.dtype not in _DTYPES:
            reasons.append(f"weight, lora_a and lora_b must be float32, bfloat16 or float16, got {matrix.dtype}")
    return reasons


def shrink(x: Tensor, a: Tensor, scaling: float | Tensor, segments: Segments) -> Tensor:
    return torch.ops.cora_kernels.cpu_shrink.default(x, a, *_scaling(scaling), segments.cu_seqlens, segments.batch)


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
    out = torch.ops.cora_kernels.cpu_forward.default(
        x,
        list(weights),
        list(lora_as),
        list(lora_bs),
        list(biases),
        *_scaling(scaling),
        segments.cu_seqlens,
        segments.batch,
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
    out = torch.ops.cora_kernels.cpu_backward_input.default(
        list(gs),
        list(weights) if need_dx else [],
        list(lora_as) if need_dx else [],
        list(lora_bs),
        *_scaling(scaling),
        segments.cu_seqlens,
        segments.batch,
        len(lora_as),
        list(ds or ()),
    )
    dx = out[0] if need_dx else None
    return dx, out[int(need_dx) :] if ds is None else list(ds)


def outer(u: Tensor, v: Tensor, segments: Segments, per_sample: bool, dtype: torch.dtype) -> Tensor:
    return torch.ops.cora_kernels.cpu_outer.default(u, v, segments.cu_seqlens, segments.batch, per_sample, dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """o [M, H, D]; and what its backward needs of each row of scores: the largest, and one over the sum, [2, H, M]."""
    return torch.ops.cora_kernels.cpu_attention.default(q, k, v, cu_seqlens, scale)


def attention_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, sums: Tensor, cu_seqlens: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv."""
    return torch.ops.cora_kernels.cpu_attention_backward.default(g, q, k, v, sums, cu_seqlens, scale)


@contextmanager
def weight_packing(enabled: bool) -> Iterator[None]:
    """Inside, packed weights are kept from call to call (the default), or each call packs its own and frees it.

    Not keeping them saves one to two times the memory of the adapted weights and costs N·K element copies a call, a few
    per cent at a thousand rows. The switch is the process's: it holds in all threads, and a backward obeys the setting
    of the moment it runs. Weights created under `torch.inference_mode()` are never kept, they do not count versions.
    """
    before = _C.keep_packs(enabled) if _loaded else enabled
    try:
        yield
    finally:
        if _loaded:
            _C.keep_packs(before)


def clear_weight_packs() -> None:
    """Frees every pack. Also the way to have weights read again after a few elements were written through `.data`."""
    if _loaded:
        _C.clear_packs()


def weight_pack_bytes() -> int:
    """The memory that packs of living weights take."""
    return _C.packs_bytes() if _loaded else 0


def _scaling(scaling: float | Tensor) -> tuple[Tensor | None, float]:
    """Scales for each sample, or one for all: a float, as a tensor where torch.compile would bake its value in."""
    if isinstance(scaling, Tensor):
        return scaling, 1.0
    if torch.compiler.is_compiling():
        return torch.ones(()) * scaling, 1.0
    return None, scaling


def _fake_shrink(x: Tensor, a: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], a.shape[-1], dtype=torch.float32)


def _fake_forward(x: Tensor, weights: list[Tensor], lora_as: list[Tensor], *rest: Any) -> list[Tensor]:
    s = rest[-1]
    ys = [x.new_empty(x.shape[0], weight.shape[0]) for weight in weights]
    ss = [] if s else [x.new_empty(x.shape[0], a.shape[-1], dtype=torch.float32) for a in lora_as]
    return ys + ss


def _fake_backward_input(
    gs: list[Tensor], weights: list[Tensor], lora_as: list[Tensor], lora_bs: list[Tensor], *rest: Any
) -> list[Tensor]:
    g, n_a, ds = gs[0], *rest[-2:]
    dx = [g.new_empty(g.shape[0], weights[0].shape[1])] if weights else []
    dss = [] if ds else [g.new_empty(g.shape[0], b.shape[-2], dtype=torch.float32) for b in lora_bs[:n_a]]
    return dx + dss


def _fake_outer(
    u: Tensor, v: Tensor, cu_seqlens: Tensor | None, batch: int, per_sample: bool, dtype: torch.dtype
) -> Tensor:
    shape = (batch, u.shape[1], v.shape[1]) if per_sample else (u.shape[1], v.shape[1])
    return u.new_empty(shape, dtype=dtype)


def _fake_attention(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(2, q.shape[1], q.shape[0], dtype=torch.float32)


def _fake_attention_backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


if _loaded:
    torch.library.register_fake("cora_kernels::cpu_shrink", _fake_shrink)
    torch.library.register_fake("cora_kernels::cpu_forward", _fake_forward)
    torch.library.register_fake("cora_kernels::cpu_backward_input", _fake_backward_input)
    torch.library.register_fake("cora_kernels::cpu_outer", _fake_outer)
    torch.library.register_fake("cora_kernels::cpu_attention", _fake_attention)
    torch.library.register_fake("cora_kernels::cpu_attention_backward", _fake_attention_backward)
