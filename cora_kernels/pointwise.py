"""What lies between the linears of a language model: Llama's norm, the gate of its MLP, rotary position embeddings."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cora_kernels.backends import cpu
from cora_kernels.checks import plain
from cora_kernels.dispatch import KERNEL_DTYPES, cpu_serves


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y = x / sqrt(mean(x²) + eps) ∘ weight, over the last dimension.

    x: [..., N] of any float dtype; weight: [N]. Returns y like x. Differentiable in x and weight. Where the weight is
    frozen, on a CPU, one kernel reads x from memory once; else torch's operators serve, in float32 as in transformers.
    The kernel does not round x / sqrt(…) to x's dtype in between.

    Raises ValueError for a weight of another shape. Source: Zhang and Sennrich, Root Mean Square Layer Normalization,
    NeurIPS 2019.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight must be {list(x.shape[-1:])}, as the last dimension of x, got {list(weight.shape)}")
    if cpu_serves(x, weight) and not (torch.is_grad_enabled() and weight.requires_grad):
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        return _RMSNorm.apply(rows, weight.contiguous(), eps).view(x.shape)
    wide = x.to(torch.float32) if x.dtype in KERNEL_DTYPES else x
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """y = gate ∘ sigmoid(gate) ∘ up.

    gate, up: tensors of one shape and float dtype. Returns y like them. Differentiable in both. On a CPU one kernel
    reads both from memory once, and rounds once; else torch's operators serve.

    Raises ValueError for unlike shapes. Source: Shazeer, GLU Variants Improve Transformer, 2020, arXiv 2002.05202.
    """
    if gate.shape != up.shape:
        raise ValueError(f"up must be {list(gate.shape)}, as gate, got {list(up.shape)}")
    if cpu_serves(gate, up):
        return _SiluGate.apply(gate.contiguous(), up.contiguous())
    return F.silu(gate) * up


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) -> (a∘c₁ − b∘s₁, b∘c₂ + a∘s₂): every head of q and of k turned by its token's position.

    (a, b) are the halves of a head, (c₁, c₂) those of the token's row of cos, (s₁, s₂) of sin. q: [B, H, T, D]; k:
    [B, G, T, D], of any float dtype and any strides; cos, sin: [B, T, D], or [1, T, D] for all samples. Returns both,
    shaped like q and k. Differentiable in q and k; in cos and sin where they ask for it. On a CPU a kernel reads each
    from memory once and rounds once; else torch's operators serve.

    Raises ValueError for shapes that do not fit. Source: Su et al., RoFormer, 2021, arXiv 2104.09864.
    """
    batch, _, length, width = q.shape if q.dim() == 4 else (0, 0, 0, 0)
    if q.dim() != 4 or width % 2:
        raise ValueError(f"q must be [B, H, T, D], D even, got {list(q.shape)}")
    if k.dim() != 4 or (k.shape[0], *k.shape[2:]) != (batch, length, width):
        raise ValueError(f"k must be [{batch}, G, {length}, {width}] to suit q, got {list(k.shape)}")
    if cos.dim() != 3 or cos.shape[0] not in (1, batch) or cos.shape[1:] != (length, width):
        raise ValueError(f"cos must be [{batch} or 1, {length}, {width}] to suit q, got {list(cos.shape)}")
    if sin.shape != cos.shape:
        raise ValueError(f"sin must be {list(cos.shape)}, as cos, got {list(sin.shape)}")
    if cpu_serves(q, k, cos, sin) and not (torch.is_grad_enabled() and (cos.requires_grad or sin.requires_grad)):
        cos, sin = cos.contiguous(), sin.contiguous()
        return _Rotary.apply(q, cos, sin), _Rotary.apply(k, cos, sin)
    cos, sin = cos[:, None], sin[:, None]
    return q * cos + _half_turned(q) * sin, k * cos + _half_turned(k) * sin


def _half_turned(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, scales = cpu.rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scales)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return cpu.rms_norm_backward(plain(g, "grad_outputs").contiguous(), *ctx.saved_tensors), None, None


class _SiluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return cpu.silu_gate(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        return cpu.silu_gate_backward(plain(g, "grad_outputs").contiguous(), *ctx.saved_tensors)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(plain(g, "grad_outputs"), cos, sin, True), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> Tensor:
    rows = x.transpose(1, 2)
    # What comes from a linear has the heads of a row side by side, and so has the result.
    return cpu.rotary(rows if rows.stride(-1) == 1 else rows.contiguous(), cos, sin, backward).transpose(1, 2)
