"""What other packages compute in training, as torch code: their kernels need a GPU, their own models or other limits.

x [B, T, K], W [N, K], A [B, K, r], B [B, r, N] or [r, N]. The order of the products, what is saved and what is computed
again are theirs; code and names are ours.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def peft_mixed_batch(x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The layer of PEFT under adapter_names: the rows of each adapter are taken out, the delta put back in place."""
    y = F.linear(x, w)
    for i in range(len(x)):
        rows = [i]
        y[rows] += (x[rows] @ a[i] @ (b[i] if b.dim() == 3 else b)) * scaling
    return y


def lorafusion(x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """LoRAFusion (arXiv 2510.00206): S apart and saved, x·W with S·B added; dS with dB, g·Wᵀ with dS·Aᵀ added."""
    return _LoRAFusion.apply(x, w, a, b.expand(len(x), *b.shape[-2:]), scaling)


def unsloth(x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """unsloth's fast_lora, which has one adapter, sample by sample: addmm_ on x·W; x·A computed again for dB."""
    return _Unsloth.apply(x, w, a, b.expand(len(x), *b.shape[-2:]), scaling)


class _LoRAFusion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        s = torch.bmm(x, a).mul_(scaling)
        ctx.save_for_backward(x, w, a, b, s)
        ctx.scaling = scaling
        return F.linear(x, w).baddbmm_(s, b)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w, a, b, s = ctx.saved_tensors
        ds = torch.bmm(g, b.mT).mul_(ctx.scaling)
        db = torch.bmm(s.mT, g)
        dx = (g @ w).baddbmm_(ds, a.mT)
        return dx, None, torch.bmm(x.mT, ds), db, None


class _Unsloth(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        y = F.linear(x, w)
        for i, rows in enumerate(x):
            y[i].addmm_(rows @ a[i], b[i], alpha=scaling)
        ctx.save_for_backward(x, w, a, b)
        ctx.scaling = scaling
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w, a, b = ctx.saved_tensors
        dx, das, dbs = g @ w, [], []
        for i, rows in enumerate(x):
            ds = g[i] @ b[i].t()
            das.append((rows.t() @ ds).mul_(ctx.scaling))
            dbs.append(((rows @ a[i]).t() @ g[i]).mul_(ctx.scaling))
            dx[i].addmm_(ds, a[i].t(), alpha=ctx.scaling)
        return dx, None, torch.stack(das), torch.stack(dbs), None
