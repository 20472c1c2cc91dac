"""The one autograd.Function of the op: what is saved, which gradients are computed, by which calls of the backend."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cora_kernels.checks import plain
from cora_kernels.operands import Operands
from cora_kernels.segments import Segments


class LoraLinearGroup(torch.autograd.Function):
    """y_j = x·W_jᵀ + s·(x·A_j)·B_j + bias_j, j < n. tensors = (*weights, *lora_as, *lora_bs, *biases), lora_as 1 or n.

    S is saved only for dB and ds, x only for dA, the weights and A only for dx: the caller's own tensors, never a copy
    or a cast of them. Where s needs a gradient, the S that is saved is x·A, without s: ds is then exact at s = 0 too.
    """

    @staticmethod
    def forward(
        ctx: Any, kernels: ModuleType, n: int, n_a: int, segments: Segments, scaling: Any, x: Tensor, *tensors: Any
    ) -> tuple[Tensor, ...]:
        weights, lora_as, lora_bs, biases = _unflatten(tensors, n, n_a)
        operands = Operands(weights, lora_as, lora_bs, biases, scaling, segments)
        needs_scaling, needs_x = ctx.needs_input_grad[4:6]
        _, needs_as, needs_bs, _ = _unflatten(ctx.needs_input_grad[6:], n, n_a)

        with without_autocast(x):
            if needs_scaling:
                rows = as_rows(x)
                kept = [kernels.shrink(rows, a, 1.0, segments) for a in lora_as]
                ys, _ = run(kernels, x, operands, _scale(kept, scaling, segments))
            else:
                ys, kept = run(kernels, x, operands, None)

        nothing = [None] * n
        ctx.save_for_backward(
            segments.cu_seqlens,
            scaling if isinstance(scaling, Tensor) else None,
            x if any(needs_as) else None,
            *(weights if needs_x else nothing),
            *(lora_as if needs_x else nothing[:n_a]),
            *(lora_bs if needs_x or needs_scaling or any(needs_as) else nothing),
            *(kept if needs_scaling or any(needs_bs) else nothing[:n_a]),
        )
        ctx.kernels, ctx.n, ctx.n_a = kernels, n, n_a
        if segments.cu_seqlens is not None:  # saved above
            segments = Segments(segments.batch, segments.rows, None, None)
        ctx.segments = segments
        ctx.scaling = None if isinstance(scaling, Tensor) else scaling
        ctx.as_like = [(a.dim() == 3, a.dtype) for a in lora_as]
        ctx.bs_like = [(b.dim() == 3, b.dtype) for b in lora_bs]
        ctx.bias_dtypes = [None if bias is None else bias.dtype for bias in biases]
        return (*ys,)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(grads[0]):
            return _backward(ctx, grads)


def _backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    kernels, n = ctx.kernels, ctx.n
    needs_scaling, needs_x = ctx.needs_input_grad[4:6]
    _, needs_as, needs_bs, needs_biases = _unflatten(ctx.needs_input_grad[6:], n, ctx.n_a)
    cu_seqlens, scaling, x, *saved = ctx.saved_tensors
    segments = ctx.segments
    if cu_seqlens is not None:
        segments = Segments(segments.batch, segments.rows, None, cu_seqlens)
    weights, lora_as, lora_bs, ss = _unflatten(saved, n, ctx.n_a)
    scaling = ctx.scaling if scaling is None else scaling
    gs = [as_rows(plain(g, "grad_outputs")) for g in grads]
    weights = [_cast(weight, gs[0].dtype) for weight in weights]
    operands = Operands(weights, lora_as, lora_bs, [None] * n, scaling, segments)

    dx = d_scaling = None
    dbs: list[Any] | None = None
    dss: list[Any] = [None] * ctx.n_a
    if needs_scaling:
        each = [kernels.shrink(g, b.transpose(-1, -2), 1.0, segments) for g, b in zip(gs, lora_bs, strict=True)]
        unscaled = operands.of_each_a(each)
        d_scaling = _d_scaling(kernels, ss, unscaled, segments).to(scaling.dtype)
        ss, dss = _scale(ss, scaling, segments), _scale(unscaled, scaling, segments)
        if needs_x:
            dx, _ = kernels.backward_input(gs, operands, True, dss)
    elif needs_x or any(needs_as):
        fused = _shrink_outer(ctx, gs, operands, ss, needs_x)
        if fused is None:
            dx, dss = kernels.backward_input(gs, operands, needs_x, None)
        else:
            (*dss, db) = fused
            dbs = [db]
            if needs_x:
                dx, _ = kernels.backward_input(gs, operands, True, dss)

    rows = None if x is None else as_rows(x)
    das = [
        kernels.outer(rows, ds, segments, per_sample, dtype) if needed else None
        for needed, ds, (per_sample, dtype) in zip(needs_as, dss, ctx.as_like, strict=True)
    ]
    if dbs is None:
        dbs = [
            kernels.outer(ss[operands.a_of(j)], gs[j], segments, per_sample, dtype) if needs_bs[j] else None
            for j, (per_sample, dtype) in enumerate(ctx.bs_like)
        ]
    d_biases = [
        g.sum(0, dtype=_accumulator(g)).to(dtype) if needed else None
        for needed, g, dtype in zip(needs_biases, gs, ctx.bias_dtypes, strict=True)
    ]
    dx = None if dx is None else dx.view(*grads[0].shape[:-1], dx.shape[1])
    return None, None, None, None, d_scaling, dx, *([None] * n), *das, *dbs, *d_biases


def _shrink_outer(
    ctx: Any, gs: Sequence[Tensor], operands: Operands, ss: Sequence[Tensor], need_dx: bool
) -> tuple[Tensor, Tensor] | None:
    """dS and dB of a single linear from one read of g, by a backend that can and where it pays; or None."""
    kernel = getattr(ctx.kernels, "shrink_outer", None)
    if kernel is None or ctx.n > 1 or not ctx.needs_input_grad[8]:
        return None
    return kernel(gs[0], operands, ss[0], need_dx, ctx.bs_like[0][1])


def run(
    kernels: ModuleType, x: Tensor, operands: Operands, s: Sequence[Tensor] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """The backend's forward on x as the caller has it: each y shaped like x, and S."""
    weights, lora_as, lora_bs, biases, scaling, segments = operands
    dtype, shape = x.dtype, x.shape[:-1]
    weights = [_cast(weight, dtype) for weight in weights]
    biases = [_cast(bias, dtype) for bias in biases]
    ys, ss = kernels.forward(as_rows(x), Operands(weights, lora_as, lora_bs, biases, scaling, segments), s)
    # No view: autograd would refuse what F.linear allows, to change the result in place.
    return [torch.ops.aten._unsafe_view(y, (*shape, y.shape[1])) for y in ys], ss


def without_autocast(t: Tensor) -> AbstractContextManager[Any]:
    """The backends choose the dtype of every product: an autocast around them would change it."""
    return torch.autocast(t.device.type, enabled=False) if autocasts(t) else nullcontext()


def autocasts(t: Tensor) -> bool:
    """Whether autocast applies to t. The meta device, alone, has no such question to ask."""
    device = t.device.type
    return device != "meta" and t.dtype != torch.float64 and torch.is_autocast_enabled(device)


def as_rows(t: Tensor) -> Tensor:
    """[..., K] -> [M, K] with unit inner stride; a view wherever the strides allow one."""
    rows = t if t.dim() == 2 else t.reshape(t.shape[0] * t.shape[1], t.shape[2])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _cast(t: Any, dtype: torch.dtype) -> Any:
    # t.to alone costs a microsecond even where it does nothing.
    return t if t is None or t.dtype == dtype else t.to(dtype)


def _unflatten(items: Sequence[Any], n: int, n_a: int) -> tuple[list[Any], ...]:
    """(*n weights, *n_a lora_as, *n lora_bs, *the rest) -> four lists."""
    return list(items[:n]), list(items[n : n + n_a]), list(items[n + n_a : 2 * n + n_a]), list(items[2 * n + n_a :])


def _scale(ss: Sequence[Tensor], scaling: Tensor, segments: Segments) -> list[Tensor]:
    per_row = segments.per_row(scaling)
    return [(s * per_row).to(s.dtype) for s in ss]


def _d_scaling(kernels: ModuleType, ss: Sequence[Tensor], dss: Sequence[Tensor], segments: Segments) -> Tensor:
    """ds_i = Σ <S, dS> over the rows of sample i, both without s; `outer` with a column of ones sums by sample."""
    dtype = _accumulator(ss[0])
    per_row = [(s.to(dtype) * ds.to(dtype)).sum(1, keepdim=True) for s, ds in zip(ss, dss, strict=True)]
    total = sum(per_row[1:], per_row[0])
    return kernels.outer(total, torch.ones_like(total), segments, True, dtype).view(segments.batch)


def _accumulator(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32
