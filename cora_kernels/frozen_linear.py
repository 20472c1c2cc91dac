"""frozen_linear: x·Wᵀ of a weight that is not trained, by our product where it is faster than torch's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cora_kernels.autograd import as_rows
from cora_kernels.backends import cpu
from cora_kernels.checks import plain
from cora_kernels.dispatch import cpu_serves


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x·weightᵀ + bias, as F.linear, which also serves and raises where no kernel is faster.

    x: [..., K] of any float dtype and any strides; weight: [N, K], bias: [N], in x's dtype. Returns y [..., N].
    Differentiable in x; in weight and bias, too, by F.linear. The kernel, on a CPU, sums in float32.
    """
    tensors = (weight,) if bias is None else (weight, bias)
    fits = x.dim() >= 2 and weight.dim() == 2 and x.shape[-1] == weight.shape[1] and weight.numel() > 0
    trained = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if not fits or trained or (bias is not None and bias.shape != weight.shape[:1]) or not cpu_serves(x, *tensors):
        return F.linear(x, weight, bias)
    rows = x.numel() // x.shape[-1]
    if not cpu.multiplies_faster(rows, x.dtype):
        return F.linear(x, weight, bias)
    y = _FrozenLinear.apply(x.reshape(rows, x.shape[-1]), weight, bias)
    # No view: autograd would refuse what F.linear allows, to change the result in place.
    return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], len(weight)))


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return cpu.linear(as_rows(x), weight, bias, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return cpu.linear(as_rows(plain(g, "grad_outputs")), weight, None, True), None, None
