"""packed_attention: causal attention within each sample of a packed batch: a language model needs no padding then."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cora_kernels import dispatch
from cora_kernels.autograd import autocasts
from cora_kernels.backends import cpu, varlen_attention
from cora_kernels.checks import boundaries, check_saved, has_tangent, number, parents_of, plain, transform
from cora_kernels.segments import prefixes, spans

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    parents: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """o_i = softmax(scale · q_i·k_iᵀ, keys up to the query's own position) · v_i for every sample i and head.

    A sample with a parent p has k_i = [k_p; k_i] and v_i = [v_p; v_i]: its queries see all of the parent and, causally,
    the sample itself. So samples that begin alike hold their beginning once, as a sample of its own.

    Args:
        q: [M, H, D], the rows of all samples one after another. float32, bfloat16, float16 or float64.
        k, v: [M, G, D] in q's dtype; each of the G heads serves H / G heads of q in a row.
        cu_seqlens: int32 [B + 1] of any stride, on q's device: sample i owns the rows cu_seqlens[i]:cu_seqlens[i + 1],
            perhaps none. It starts at 0, never decreases and ends at M.
        parents: int32 [B] of any stride, on q's device: the sample whose keys and values each sample reads before its
            own, -1 for none; None where no sample has one. A parent is another sample, before or after its children,
            and has no parent itself.
        scale: a real number; None is D ** -0.5.

    Returns o [M, H, D] in q's dtype. Differentiable once, in q, k and v. On the CPU a kernel of its own serves, whose
    products are summed in float32, a parent's gradients over its children in their order, of which no [T, T] matrix is
    kept and whose bits are the same for any number of threads. On NVIDIA GPUs torch.nn.attention.varlen serves bfloat16
    and float16 (torch >= 2.10, D a multiple of 8 up to 256), which reads cu_seqlens and parents on the host once a
    batch. Elsewhere, or where `use_backend` names a backend of another device, "chain" or "reference", it is torch's
    attention, sample by sample. Under autocast q, k and v are cast as for torch's attention.

    Strides and views are free and layouts and subclasses refused as in `lora_linear`.

    Raises TypeError for a wrong type, layout or dtype, ValueError for a wrong shape, device or value.

    Source: Dao et al., FlashAttention (NeurIPS 2022, arXiv 2205.14135), for the backward from the rows' sums.
    """
    q, k, v = plain(q, "q"), plain(k, "k"), plain(v, "v")
    autocast = autocasts(q)
    _check(q, k, v, autocast)
    cu_seqlens = boundaries(cu_seqlens, "q", q)
    if parents is not None:
        parents = parents_of(parents, cu_seqlens)
    scale = q.shape[-1] ** -0.5 if scale is None else number(scale, "scale")
    if autocast:
        q, k, v = (t.to(torch.get_autocast_dtype(q.device.type)) for t in (q, k, v))
    # torch's attention has the derivatives of torch.func and of the forward mode, too.
    eager = not torch.compiler.is_compiling()
    watched = eager and (transform() is not None or has_tangent(q, k, v))
    served = not watched and attention_not_supported_reason(q.dtype, q.device, q.shape[2]) is None
    if served and q.device.type == varlen_attention.DEVICE:
        if eager and q.shape[0] > 0:
            return varlen_attention.attention(q, k, v, cu_seqlens, parents, scale)
    elif served:
        if eager and torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
            for name, t in (("q", q), ("k", k), ("v", v)):
                check_saved(t, name)
        return _PackedAttention.apply(q, k, v, cu_seqlens, parents, scale)
    samples = spans(cu_seqlens, q.shape[0])
    befores = [None] * len(samples) if parents is None else prefixes(parents, samples)
    # torch's attention gives its output the strides of q, even where rows or heads share memory, and has no backward in
    # bfloat16 where those of k or v do.
    q, k, v = (t.contiguous() for t in (q, k, v))
    outs = [_of_sample(q, k, v, rows, before, scale) for rows, before in zip(samples, befores, strict=True)]
    return torch.cat(outs or [_of_sample(q, k, v, slice(0, 0), None, scale)])


def attention_not_supported_reason(dtype: torch.dtype, device: torch.device, width: int) -> str | None:
    """Why torch's attention serves calls of this dtype, device and width of a head sample by sample; or None: then a
    kernel does."""
    on_gpu = device.type == varlen_attention.DEVICE
    if dispatch.asked(None) not in (None, "concat", *(("triton", "cuda") if on_gpu else ("cpu",))):
        return f"use_backend asks for {dispatch.asked(None)!r}"
    if on_gpu:
        return varlen_attention.not_supported_reason(dtype, device, width)
    if device.type != "cpu":
        return f"the kernels run on the CPU and on NVIDIA GPUs, the tensors are on {device}"
    if dtype == torch.float64:
        return "the kernel has no float64"
    return cpu.availability()


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, parents: Tensor | None, scale: float
    ) -> Tensor:
        q, k, v = (_unit_stride(t) for t in (q, k, v))
        out, sums = cpu.attention(q, k, v, cu_seqlens, parents, scale)
        ctx.save_for_backward(q, k, v, sums, cu_seqlens, parents)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sums, cu_seqlens, parents = ctx.saved_tensors
        g = _unit_stride(plain(g, "grad_outputs"))
        return *cpu.attention_backward(g, q, k, v, sums, cu_seqlens, parents, ctx.scale), None, None, None


def _of_sample(q: Tensor, k: Tensor, v: Tensor, rows: slice, before: slice | None, scale: float) -> Tensor:
    """The output of the sample in `rows`, whose parent is in the rows `before`."""
    mask, q, k_v = None, q[rows], [k[rows], v[rows]]
    if before is not None:
        k_v = [torch.cat([t[before], own]) for t, own in zip((k, v), k_v, strict=True)]
        seen = len(k_v[0]) - len(q)
        mask = torch.ones(len(q), len(k_v[0]), dtype=torch.bool, device=q.device).tril(seen)
    q, k, v = (t.transpose(0, 1)[None] for t in (q, *k_v))
    out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, is_causal=mask is None, enable_gqa=True)
    return out[0].transpose(0, 1)


def _unit_stride(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 else t.contiguous()


def _check(q: Tensor, k: Tensor, v: Tensor, autocast: bool) -> None:
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.dtype not in _DTYPES or (t.dtype != q.dtype and not (autocast and t.dtype != torch.float64)):
            raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, as q is, got {t.dtype}")
        if t.dim() != 3 or t.shape[0] != q.shape[0] or t.shape[2] != q.shape[-1] or 0 in t.shape[1:]:
            raise ValueError(
                f"{name} must be [M, heads, D] with the M and D of q {list(q.shape)} and no empty dimension but M, got "
                f"{list(t.shape)}"
            )
    if k.shape != v.shape or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"k and v must be of one shape whose heads divide those of q {list(q.shape)}, got {list(k.shape)} and "
            f"{list(v.shape)}"
        )
    for name, t in (("k", k), ("v", v)):
        if t.device != q.device:
            raise ValueError(f"{name} must be on the device of q, {q.device}, got {t.device}")
