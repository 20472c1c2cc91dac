"""lora_linear and lora_linear_group: the formula, the shapes, and every check of the arguments."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from cora_kernels import dispatch
from cora_kernels.autograd import LoraLinearGroup, autocasts, run, without_autocast
from cora_kernels.checks import check_cu_seqlens, kind_of
from cora_kernels.operands import Operands
from cora_kernels.segments import Segments, spans

_FACTOR_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_X_DTYPES = (*_FACTOR_DTYPES, torch.float64)


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
    """y_i = x_i·weightᵀ + scaling_i·(x_i·lora_a_i)·lora_b_i + bias for every sample i of the batch.

    Args:
        x: [B, T, K], or packed [M, K] with cu_seqlens. float32, bfloat16, float16 or float64. Any strides.
        weight: [N, K] as in nn.Linear, in x's dtype. Frozen: it never gets a gradient.
        lora_a: [B, K, r], one per sample, or [K, r], shared by all. r >= 1.
        lora_b: [B, r, N] or [r, N]. lora_a and lora_b may each be float32, bfloat16 or float16 whichever of them x is
            (with a float64 x: float64); x is never cast to suit them.
        bias: [N] in x's dtype.
        scaling: a number, or a floating tensor [B].
        cu_seqlens: int32 [B + 1], on x's device: sample i owns the rows cu_seqlens[i]:cu_seqlens[i + 1] of x, which may
            be none. It starts at 0, never decreases and ends at M: checked on the CPU only, where it costs no wait.
        backend: a name from `backends()`; None takes that of `use_backend`, else the best one for these tensors.

    Returns y, [B, T, N] or [M, N], in x's dtype. Differentiable once, in x, lora_a, lora_b, bias and a tensor scaling,
    each gradient in the dtype of its input; the same inputs always give the same bits. Products are summed in float32
    (float64 for float64). Under autocast x, weight and bias are cast as for F.linear.

    Raises TypeError for a wrong type or dtype and ValueError for a wrong shape, rank, device or value, for a weight
    that requires grad, and for a backend that cannot serve the call.

    Source: CoRA (Liu et al., AAAI 2025, arXiv 2408.10645); LoRA (Hu et al., ICLR 2022, arXiv 2106.09685).
    """
    return _group(x, (weight,), (lora_a,), (lora_b,), (bias,), scaling, cu_seqlens, backend, False)[0]


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
    """y_ij = x_i·weights_jᵀ + scaling_i·(x_i·lora_a_ij)·lora_bs_ij + biases_j: projections that share the input x.

    y_j is `lora_linear(x, weights[j], lora_a[j], lora_bs[j], biases[j], ...)`: shapes, dtypes, gradients and errors
    are described there. Where lora_a is one tensor, it serves every projection and x·lora_a is computed once.

    Args:
        weights: n of [N_j, K]. lora_bs: n of [B, r_j, N_j] or [r_j, N_j]. biases: n of [N_j] or None each.
        lora_a: one tensor [B, K, r] or [K, r], or a sequence of n.

    Returns n tensors [B, T, N_j] or [M, N_j]. Raises ValueError, besides, where the sequences differ in length.
    """
    _check_sequences(weights, lora_a, lora_bs, biases)
    lora_as = lora_a if isinstance(lora_a, (list, tuple)) else (lora_a,)
    biases = (None,) * len(weights) if biases is None else biases
    return _group(x, weights, lora_as, lora_bs, biases, scaling, cu_seqlens, backend, True)


def _group(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_as: Sequence[Tensor],
    lora_bs: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    scaling: float | Tensor,
    cu_seqlens: Tensor | None,
    backend: str | None,
    grouped: bool,
) -> tuple[Tensor, ...]:
    if cu_seqlens is None:
        ys = dispatch.fast_path(backend, x, weights, lora_as, lora_bs, biases, scaling)
        if ys is not None:
            return ys
    segments = _check_x(x, cu_seqlens)
    autocast = autocasts(x)
    operands = Operands(weights, lora_as, lora_bs, biases, scaling, segments)
    _check_operands(x, operands, autocast, grouped)
    _check_scaling(scaling, x, segments.batch)
    if autocast:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    kernels = dispatch.select(backend, x, operands)
    with without_autocast(x) if autocast else nullcontext():
        if torch.is_grad_enabled():
            for t in (x, scaling, *lora_as, *lora_bs, *biases):
                if isinstance(t, Tensor) and t.requires_grad:
                    tensors = (*weights, *lora_as, *lora_bs, *biases)
                    return LoraLinearGroup.apply(kernels, len(weights), len(lora_as), segments, scaling, x, *tensors)
        return tuple(run(kernels, x, operands)[0])


def _check_sequences(weights: object, lora_a: object, lora_bs: object, biases: object) -> None:
    named = {"weights": weights, "lora_bs": lora_bs, "biases": biases, "lora_a": lora_a}
    for name, value in named.items():
        if isinstance(value, (list, tuple)):
            if isinstance(weights, (list, tuple)) and len(value) != len(weights):
                raise ValueError(f"{name} must hold one entry per weight, {len(weights)}, got {len(value)}")
        elif name in ("weights", "lora_bs") or (name == "biases" and value is not None):
            raise TypeError(f"{name} must be a list or tuple, got {kind_of(value)}")
    if not weights:
        raise ValueError("weights must hold at least one Tensor, got none")


def _check_x(x: Tensor, cu_seqlens: Tensor | None) -> Segments:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a Tensor, got {kind_of(x)}")
    if x.dtype not in _X_DTYPES:
        raise TypeError(f"x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if cu_seqlens is None:
        if x.dim() != 3:
            raise ValueError(f"x must be [B, T, K], or packed [M, K] with cu_seqlens, got shape {list(x.shape)}")
        return Segments.of(x, None)
    if x.dim() != 2:
        raise ValueError(f"x must be packed [M, K] where cu_seqlens is given, got shape {list(x.shape)}")
    check_cu_seqlens(cu_seqlens, "x", x)
    segments = Segments.of(x, cu_seqlens)
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        spans(cu_seqlens, segments.rows)  # for its checks of the values
    return segments


def _check_operands(x: Tensor, operands: Operands, autocast: bool, grouped: bool) -> None:
    weights, lora_as, lora_bs, biases, _, segments = operands
    device, width, batch = x.device, x.shape[-1], segments.batch
    base_dtypes = _FACTOR_DTYPES if autocast else (x.dtype,)
    factor_dtypes = (torch.float64,) if x.dtype == torch.float64 else _FACTOR_DTYPES
    for j, a in enumerate(lora_as):
        _check_tensor(a, "lora_a", j, device, factor_dtypes, len(lora_as) > 1)
        if a.dim() not in (2, 3) or a.shape[-2] != width or (a.dim() == 3 and a.shape[0] != batch):
            name = _name("lora_a", j, len(lora_as) > 1)
            raise ValueError(f"{name} must be [{batch}, {width}, r] or [{width}, r] to suit x, got {list(a.shape)}")
        if a.shape[-1] == 0:
            raise ValueError(f"{_name('lora_a', j, len(lora_as) > 1)} must have a rank r >= 1, got {list(a.shape)}")
    for j, (weight, b, bias) in enumerate(zip(weights, lora_bs, biases, strict=True)):
        _check_tensor(weight, "weight", j, device, base_dtypes, grouped)
        if weight.dim() != 2 or weight.shape[1] != width or weight.numel() == 0:
            name = _name("weight", j, grouped)
            raise ValueError(f"{name} must be [N, {width}] to suit x, N and K >= 1, got {list(weight.shape)}")
        if weight.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{_name('weight', j, grouped)} requires grad, but this op is for frozen weights and has no gradient "
                "for them: call requires_grad_(False) on it or pass its detach(). To train it, use F.linear for x·Wᵀ"
            )
        _check_tensor(b, "lora_b", j, device, factor_dtypes, grouped)
        n, rank = weight.shape[0], lora_as[operands.a_of(j)].shape[-1]
        if b.dim() not in (2, 3) or b.shape[-2] != rank or b.shape[-1] != n or (b.dim() == 3 and b.shape[0] != batch):
            raise ValueError(
                f"{_name('lora_b', j, grouped)} must be [{batch}, {rank}, {n}] or [{rank}, {n}] to suit x, lora_a and "
                f"the weight, got {list(b.shape)}"
            )
        if bias is not None:
            _check_tensor(bias, "bias", j, device, base_dtypes, grouped)
            if bias.dim() != 1 or bias.shape[0] != n:
                name = _name("bias", j, grouped)
                raise ValueError(f"{name} must be [{n}] to suit the weight, got {list(bias.shape)}")


def _check_scaling(scaling: float | Tensor, x: Tensor, batch: int) -> None:
    if isinstance(scaling, Tensor):
        if not scaling.is_floating_point():
            raise TypeError(f"scaling must be a floating tensor, got {scaling.dtype}")
        if scaling.dim() != 1 or scaling.shape[0] != batch:
            raise ValueError(f"scaling must be a number or [{batch}], one per sample, got shape {list(scaling.shape)}")
        if scaling.device != x.device:
            raise ValueError(f"scaling must be on the device of x, {x.device}, got {scaling.device}")
    elif not isinstance(scaling, (float, int)) or isinstance(scaling, bool):
        raise TypeError(f"scaling must be a number or a Tensor, got {kind_of(scaling)}")


def _check_tensor(
    t: Tensor, kind: str, j: int, device: torch.device, dtypes: tuple[torch.dtype, ...], grouped: bool
) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{_name(kind, j, grouped)} must be a Tensor, got {kind_of(t)}")
    if t.dtype not in dtypes:
        expected = " or ".join(map(str, dtypes))
        raise TypeError(f"{_name(kind, j, grouped)} must be {expected} to suit x, got {t.dtype}")
    if t.device != device:
        raise ValueError(f"{_name(kind, j, grouped)} must be on the device of x, {device}, got {t.device}")


def _name(kind: str, j: int, grouped: bool) -> str:
    if not grouped:
        return kind
    return {"weight": f"weights[{j}]", "lora_a": f"lora_a[{j}]", "lora_b": f"lora_bs[{j}]", "bias": f"biases[{j}]"}[
        kind
    ]
