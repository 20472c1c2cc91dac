"""lora_linear and lora_linear_group: the formula, the shapes, and every check of the arguments."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cora_kernels import dispatch
from cora_kernels.autograd import LoraLinearGroup, no_autocast, run
from cora_kernels.segments import Segments, borders_of

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def lora_linear(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    bias: Tensor | None = None,
    *,
    scaling: float | Tensor = 1.0,
    cu_seqlens: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    if isinstance(lora_a, (list, tuple)):
        raise TypeError(f"lora_a must be a Tensor, got a {type(lora_a).__name__}; lora_linear_group takes several")
    biases = None if bias is None else (bias,)
    return _lora_linear(x, (weight,), (lora_a,), (lora_b,), biases, scaling, cu_seqlens, backend, False)[0]


def lora_linear_group(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_a: Tensor | Sequence[Tensor],
    lora_bs: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    *,
    scaling: float | Tensor = 1.0,
    cu_seqlens: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    lora_as = (lora_a,) if isinstance(lora_a, Tensor) else tuple(lora_a)
    return _lora_linear(x, weights, lora_as, lora_bs, biases, scaling, cu_seqlens, backend, True)


def _lora_linear(x, weights, lora_as, lora_bs, biases, scaling, cu_seqlens, backend, grouped):
    n = len(weights)
    biases = (None,) * n if biases is None else biases
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
    segments = Segments.of(x, cu_seqlens)
    if cu_seqlens is not None and cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        borders_of(cu_seqlens, segments.rows)
    name = dispatch.select(backend, x, weights, lora_as, lora_bs, segments)
    tensors = (*weights, *lora_as, *lora_bs, *biases)
    with no_autocast(x):
        if torch.is_grad_enabled() and any(
            isinstance(t, Tensor) and t.requires_grad for t in (x, scaling, *lora_as, *lora_bs, *biases)
        ):
            return LoraLinearGroup.apply(name, n, len(lora_as), scaling, x, cu_seqlens, *tensors)
        return tuple(run(name, scaling, x, cu_seqlens, weights, lora_as, lora_bs, biases)[0])
