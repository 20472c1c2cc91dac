"""The backend "cpu": C++ kernels for x86 processors, csrc/cpu. Usable where the extension `_C` was built."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cora_kernels.backends import extension
from cora_kernels.operands import Operands
from cora_kernels.segments import Segments


def _why_not() -> str | None:
    if extension.unavailable is None and extension._C.cpu_isa() is None:
        return "the CPU kernels need an x86 processor with AVX2, FMA and F16C"
    return extension.unavailable


_unavailable = _why_not()
_fast_path_group = None if _unavailable else extension._C.fast_path_group


def availability() -> str | None:
    return _unavailable


def fast_path(*call: object) -> tuple[Tensor, ...] | None:
    """lora_linear_group(x, weights, lora_as, lora_bs, biases, scaling) with its backward, all of it in C++; or None.

    None, unless the call is right, padded and served here as it stands: csrc/cpu/fast_path.h.
    """
    return None if _fast_path_group is None else _fast_path_group(*call)


def not_supported_reasons(x: Tensor, operands: Operands) -> list[str]:
    reasons = []
    if x.device.type != "cpu":
        reasons.append(f"it runs on the CPU, x is on {x.device}")
    if x.dtype == torch.float64:  # so are the weights and the factors then, and never else
        reasons.append(f"x must be float32, bfloat16 or float16, got {x.dtype}")
    if not torch.compiler.is_compiling() and torch.jit.is_tracing():
        reasons.append("torch.jit.trace cannot record it")
    return reasons


def shrink(x: Tensor, a: Tensor, scaling: float | Tensor, segments: Segments) -> Tensor:
    return extension.shrink(torch.ops.cora_kernels.cpu_shrink.default, x, a, scaling, segments)


def forward(x: Tensor, operands: Operands, s: Sequence[Tensor] | None = None) -> tuple[list[Tensor], list[Tensor]]:
    return extension.forward(torch.ops.cora_kernels.cpu_forward.default, x, operands, s)


def backward_input(
    gs: Sequence[Tensor], operands: Operands, need_dx: bool, ds: Sequence[Tensor] | None = None
) -> tuple[Tensor | None, list[Tensor]]:
    return extension.backward_input(torch.ops.cora_kernels.cpu_backward_input.default, gs, operands, need_dx, ds)


def outer(u: Tensor, v: Tensor, segments: Segments, per_sample: bool, dtype: torch.dtype) -> Tensor:
    return extension.outer(torch.ops.cora_kernels.cpu_outer.default, u, v, segments, per_sample, dtype)


def attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, parents: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """o [M, H, D]; and what its backward needs of each row of scores: the largest, and one over the sum, [2, H, M]."""
    return torch.ops.cora_kernels.cpu_attention.default(q, k, v, cu_seqlens, parents, scale)


def attention_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, sums: Tensor, cu_seqlens: Tensor, parents: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv."""
    return torch.ops.cora_kernels.cpu_attention_backward.default(g, q, k, v, sums, cu_seqlens, parents, scale)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """x [M, K] · weightᵀ + bias; or transposed, x [M, N] · weight."""
    return torch.ops.cora_kernels.cpu_linear.default(x, weight, bias, transposed)


def multiplies_faster(rows: int, dtype: torch.dtype) -> bool:
    """Whether a product of so many rows with a frozen weight is faster here than torch's, W packed in the call.

    In fp32 it takes 0.85 to 0.98 of torch's time with AVX2 and 0.45 to 0.56 with AVX-512, from 256 rows on, and as long
    with 128 and AVX2; in bf16, where the processor has no instruction for it, half. Where it has one, torch is as fast.
    """
    native = dtype != torch.float32 and extension._C.cpu_isa() not in ("avx2", "avx512")
    return rows >= 128 and not native


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y [M, N]; and the scale of each row, fp32 [M], which the backward needs."""
    return torch.ops.cora_kernels.cpu_rms_norm.default(x, weight, eps)


def rms_norm_backward(g: Tensor, x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """dx."""
    return torch.ops.cora_kernels.cpu_rms_norm_backward.default(g, x, weight, scales)


def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    return torch.ops.cora_kernels.cpu_silu_gate.default(gate, up)


def silu_gate_backward(g: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up."""
    return torch.ops.cora_kernels.cpu_silu_gate_backward.default(g, gate, up)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> Tensor:
    """x [B, T, H, D] rotated by cos and sin [1 or B, T, D]; or dx of its gradient."""
    return torch.ops.cora_kernels.cpu_rotary.default(x, cos, sin, backward)


def _fake_attention(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(2, q.shape[1], q.shape[0], dtype=torch.float32)


def _fake_attention_backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _fake_linear(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1 if transposed else 0])


def _fake_rms_norm(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(len(x), dtype=torch.float32)


if extension.loaded:
    extension.register_fakes("cpu")
    torch.library.register_fake("cora_kernels::cpu_attention", _fake_attention)
    torch.library.register_fake("cora_kernels::cpu_attention_backward", _fake_attention_backward)
    torch.library.register_fake("cora_kernels::cpu_linear", _fake_linear)
    torch.library.register_fake("cora_kernels::cpu_rms_norm", _fake_rms_norm)
    torch.library.register_fake("cora_kernels::cpu_rms_norm_backward", lambda g, x, weight, scales: torch.empty_like(x))
    torch.library.register_fake("cora_kernels::cpu_silu_gate", lambda gate, up: torch.empty_like(gate))
    torch.library.register_fake(
        "cora_kernels::cpu_silu_gate_backward", lambda g, gate, up: (torch.empty_like(gate), torch.empty_like(gate))
    )
    torch.library.register_fake("cora_kernels::cpu_rotary", lambda x, cos, sin, backward: x.new_empty(x.shape))
