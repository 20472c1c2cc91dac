"""The one autograd.Function of the op: what is saved, which gradients are computed, and by which calls of the backend."""

from collections.abc import Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cora_kernels.segments import Segments


class LoraLinearGroup(torch.autograd.Function):
    """y_j = x·W_jᵀ + s·(x·A_j)·B_j + bias_j, j < n. tensors = (*weights, *lora_as, *lora_bs, *biases), lora_as 1 or n.

    The weights get no gradient. S (without s, where s is a tensor that needs a gradient) is saved only for dB and ds,
    x only for dA, the weights and A only for dx: the caller's own tensors, never a cast or a copy of them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        backend: ModuleType,
        n: int,
        n_a: int,
        scaling: Any,
        x: Tensor,
        cu_seqlens: Tensor | None,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        weights, lora_as, lora_bs, biases = _unflatten(tensors, n, n_a)
        needs_scaling, needs_x = ctx.needs_input_grad[3:5]
        _, needs_as, needs_bs, _ = _unflatten(ctx.needs_input_grad[6:], n, n_a)

        kept = None
        if needs_scaling:
            kernels, segments, rows = backend, Segments.of(x, cu_seqlens), as_rows(x)
            kept = [kernels.shrink(rows, a, 1.0, segments) for a in lora_as]
            ready = [_scaled(u, segments.per_row(scaling)) for u in kept]
            ys, _ = run(backend, scaling, x, cu_seqlens, weights, lora_as, lora_bs, biases, ready)
        else:
            ys, kept = run(backend, scaling, x, cu_seqlens, weights, lora_as, lora_bs, biases)

        nothing = [None] * n
        needs_ds = needs_x or needs_scaling or any(needs_as)
        ctx.save_for_backward(
            cu_seqlens,
            scaling if isinstance(scaling, Tensor) else None,
            x if any(needs_as) else None,
            *(weights if needs_x else nothing),
            *(lora_as if needs_x else nothing[:n_a]),
            *(lora_bs if needs_ds else nothing),
            *(kept if needs_scaling or any(needs_bs) else nothing[:n_a]),
        )
        ctx.backend, ctx.n, ctx.n_a = backend, n, n_a
        ctx.scaling = None if isinstance(scaling, Tensor) else scaling
        ctx.as_like = [(a.dim() == 3, a.dtype) for a in lora_as]
        ctx.bs_like = [(b.dim() == 3, b.dtype) for b in lora_bs]
        ctx.bias_dtypes = [None if bias is None else bias.dtype for bias in biases]
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        n, kernels = ctx.n, ctx.backend
        needs_scaling, needs_x = ctx.needs_input_grad[3:5]
        _, needs_as, needs_bs, needs_biases = _unflatten(ctx.needs_input_grad[6:], n, ctx.n_a)
        cu_seqlens, scaling, x, *saved = ctx.saved_tensors
        weights, lora_as, lora_bs, ss = _unflatten(saved, n, ctx.n_a)
        scaling = ctx.scaling if scaling is None else scaling
        segments = Segments.of(grads[0], cu_seqlens)
        gs = [as_rows(g) for g in grads]

        dx = d_scaling = None
        dss = [None] * ctx.n_a
        with no_autocast(gs[0]):
            weights = [w if w is None else w.to(gs[0].dtype) for w in weights]
            if needs_scaling:
                _, unscaled = kernels.backward_input(gs, weights, lora_as, lora_bs, 1.0, segments, False)
                d_scaling = _d_scaling(kernels, ss, unscaled, segments).to(scaling.dtype)
                per_row = segments.per_row(scaling)
                dss, ss = [_scaled(u, per_row) for u in unscaled], [_scaled(u, per_row) for u in ss]
                if needs_x:
                    dx, _ = kernels.backward_input(gs, weights, lora_as, lora_bs, scaling, segments, True, dss)
            elif needs_x or any(needs_as):
                dx, dss = kernels.backward_input(gs, weights, lora_as, lora_bs, scaling, segments, needs_x)

            rows = None if x is None else as_rows(x)
            das = [
                kernels.outer(rows, ds, segments, per_sample, dtype) if needed else None
                for needed, ds, (per_sample, dtype) in zip(needs_as, dss, ctx.as_like, strict=True)
            ]
            dbs = [
                kernels.outer(ss[j % len(ss)], gs[j], segments, per_sample, dtype) if needs_bs[j] else None
                for j, (per_sample, dtype) in enumerate(ctx.bs_like)
            ]
            d_biases = [
                g.sum(0, dtype=_accumulator(g)).to(dtype) if needed else None
                for needed, g, dtype in zip(needs_biases, gs, ctx.bias_dtypes, strict=True)
            ]
        dx = None if dx is None else dx.view(*grads[0].shape[:-1], dx.shape[1])
        return None, None, None, d_scaling, dx, None, *([None] * n), *das, *dbs, *d_biases


def run(
    backend: ModuleType,
    scaling: float | Tensor,
    x: Tensor,
    cu_seqlens: Tensor | None,
    weights: Sequence[Tensor],
    lora_as: Sequence[Tensor],
    lora_bs: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    s: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The forward of a backend on x as the caller has it: ys shaped like x, and S."""
    dtype = x.dtype
    ys, ss = backend.forward(
        as_rows(x),
        [weight.to(dtype) for weight in weights],
        lora_as,
        lora_bs,
        [bias if bias is None else bias.to(dtype) for bias in biases],
        scaling,
        Segments.of(x, cu_seqlens),
        s,
    )
    return [y.view(*x.shape[:-1], y.shape[1]) for y in ys], ss


def as_rows(t: Tensor) -> Tensor:
    """[..., K] -> [M, K] with unit inner stride; a view wherever the strides allow one."""
    rows = t if t.dim() == 2 else t.reshape(t.shape[0] * t.shape[1], t.shape[2])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _unflatten(items: Sequence[Any], n: int, n_a: int) -> tuple[list[Any], ...]:
    """(*n weights, *n_a lora_as, *n lora_bs, *the rest) -> four lists."""
    return list(items[:n]), list(items[n : n + n_a]), list(items[n + n_a : 2 * n + n_a]), list(items[2 * n + n_a :])


def _scaled(rows: Tensor, per_row: Tensor) -> Tensor:
    return (rows * per_row).to(rows.dtype)


def _d_scaling(kernels: Any, ss: Sequence[Tensor], dss: Sequence[Tensor], segments: Segments) -> Tensor:
    """ds_i = Σ_rows of i <S, dS> = trace(Sᵀ·dS), both without s: exact at s = 0 too."""
    traces = [
        kernels.outer(s, ds, segments, True, _accumulator(s)).diagonal(dim1=1, dim2=2).sum(1)
        for s, ds in zip(ss, dss, strict=True)
    ]
    return sum(traces[1:], traces[0])


def _accumulator(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def no_autocast(t: Tensor) -> Any:
    """The backends fix their own dtypes: an autocast around them would change those."""
    device = t.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
