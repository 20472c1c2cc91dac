"""The calls of the backend as launches of its kernels, by the strategies that `cora_kernels.planning.choose` picks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cora_kernels.backends.triton.decode import decode
from cora_kernels.backends.triton.descriptor_gemm import descriptor_gemm
from cora_kernels.backends.triton.expand import expand
from cora_kernels.backends.triton.lowrank_gemm import lowrank_gemm, lowrank_gemm_one_pass
from cora_kernels.backends.triton.outer import outer as launch_outer
from cora_kernels.backends.triton.shrink import shrink as launch_shrink
from cora_kernels.backends.triton.shrink_outer import shrink_outer as launch_shrink_outer
from cora_kernels.operands import Operands, is_per_sample
from cora_kernels.planning import choose, gpus
from cora_kernels.planning.cost import Problem
from cora_kernels.planning.tile_sizes import (
    GemmConfig,
    outer_config,
    shrink_config,
    shrink_outer_config,
)
from cora_kernels.segments import Segments


def shrink(
    xs: Sequence[Tensor],
    factors: Sequence[Tensor],
    scaling: float | Tensor,
    segments: Segments,
    wide: Tensor | None = None,
) -> Tensor:
    """Σ_j scaling · xs[j]·factors[j], fp32; of a single x, [x | S | 0] is written to `wide`, if it is there."""
    rows = segments.rows if factors[0].dim() == 2 else segments.rows // max(segments.batch, 1)
    config = shrink_config(gpus.gpu_of(xs[0].device).arch, xs[0].dtype, rows, factors[0].shape[-1])
    return launch_shrink(xs, factors, scaling, segments, config, wide)


def outer(u: Tensor, v: Tensor, segments: Segments, per_sample: bool, dtype: torch.dtype) -> Tensor:
    computed = torch.float32 if u.dtype == v.dtype == torch.float32 else torch.bfloat16
    config = outer_config(gpus.gpu_of(u.device).arch, computed, min(u.shape[1], v.shape[1]))
    return launch_outer(u, v, segments, per_sample, dtype, config)


def shrink_outer(
    g: Tensor, operands: Operands, s: Tensor, need_dx: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """dS and dB of a single linear from one read of g, where the cost rule finds that faster than apart; else None."""
    (b,), scaling, segments = operands.lora_bs, operands.scaling, operands.segments
    width = operands.weights[0].shape[1] if need_dx else 0
    gpu = gpus.gpu_of(g.device)
    problem = Problem(
        *(g.shape[0], g.shape[1], width, b.shape[-2], segments.batch, segments.length, g.dtype),
        sample_a=b.dim() == 3,
    )
    if (is_per_sample(scaling) and b.dim() == 2) or not choose.fuses(problem, gpu):
        return None
    return launch_shrink_outer(g, b, s, scaling, segments, dtype, shrink_outer_config(gpu.arch, g.dtype, b.shape[-2]))


def forward(
    x: Tensor,
    operands: Operands,
    s: Sequence[Tensor] | None = None,
    strategy: str | None = None,
    config: GemmConfig | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The backend's forward, by this strategy and with this tile if they are given: `cost.Plan` lists the strategies.

    S that one projection computed serves the others that share its A.
    """
    weights, lora_as, lora_bs, biases, _, _ = operands
    ys, ss = [], [] if s is None else list(s)
    for j, (weight, b, bias) in enumerate(zip(weights, lora_bs, biases, strict=True)):
        i = operands.a_of(j)
        ready = ss[i] if i < len(ss) else None
        y, computed = _low_rank(x, weight.t(), lora_as[i], b, operands, ready, bias, None, strategy, config)
        ys.append(y)
        ss[i : i + 1] = [computed]
    return ys, ss


def backward_input(
    gs: Sequence[Tensor],
    operands: Operands,
    need_dx: bool,
    ds: Sequence[Tensor] | None = None,
    strategy: str | None = None,
) -> tuple[Tensor | None, list[Tensor]]:
    """The backend's backward_input: dx is the forward with g for x, Bᵀ for A and Aᵀ for B, summed over the group."""
    weights, lora_as, lora_bs, _, scaling, segments = operands
    factors, n_a = [b.transpose(-1, -2) for b in lora_bs], len(lora_as)
    dss = [] if ds is None else list(ds)
    if ds is None and n_a < len(gs):
        dss = [shrink(gs, factors, scaling, segments)]
    elif ds is None and not need_dx:
        dss = [shrink([g], [factor], scaling, segments) for g, factor in zip(gs, factors, strict=True)]
    if not need_dx:
        return None, dss
    dx: Any = None
    for j, a in enumerate(lora_as):
        ready = dss[j] if j < len(dss) else None
        back = a.transpose(-1, -2)
        dx, computed = _low_rank(gs[j], weights[j], factors[j], back, operands, ready, None, dx, strategy, None)
        dss[j : j + 1] = [computed]
    for g, weight in zip(gs[n_a:], weights[n_a:], strict=True):
        dx.addmm_(g, weight)
    return dx, dss


def _low_rank(
    x: Tensor,
    w: Tensor,
    a: Tensor,
    b: Tensor,
    operands: Operands,
    s: Tensor | None,
    bias: Tensor | None,
    y: Tensor | None,
    strategy: str | None,
    config: GemmConfig | None,
) -> tuple[Tensor, Tensor]:
    """x·w + S·b + bias, added to y if there is one, and S: by the strategy asked for, or the one that is planned."""
    scaling, segments, add = operands.scaling, operands.segments, y is not None
    problem = choose.problem_of(x, w, a, b, scaling, segments, s_given=s is not None, added=add)
    plan = choose.choose(problem, gpus.gpu_of(x.device), "triton", strategy)
    config = config or plan.config
    if plan.strategy == "decode":
        y, s = decode(x, a, b, scaling, segments, bias)
        return y.addmm_(x, w), s
    if plan.strategy == "one_pass" and config is not None:
        return lowrank_gemm_one_pass(x, w, a, b, scaling, segments, config, bias, y)
    if s is None:
        s = shrink([x], [a], scaling, segments)
    if plan.strategy == "two_kernels" and config is not None:
        return lowrank_gemm(x, w, s, b, segments, config, bias, y), s
    if plan.strategy == "descriptors" and config is not None:
        return descriptor_gemm(x, w, s, b, segments, config, bias, y), s
    y = expand(s, b, segments, x.new_empty(x.shape[0], w.shape[1]) if y is None else y, bias, add)
    return y.addmm_(x, w), s
