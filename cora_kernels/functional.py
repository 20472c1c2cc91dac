"""lora_linear and lora_linear_group: the formula, the shapes, and every check of the arguments."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cora_kernels import dispatch
from cora_kernels.autograd import LoraLinearGroup, autocasts, run, without_autocast
from cora_kernels.checks import boundaries, check_saved, floating, has_tangent, kind_of, number, plain, transform
from cora_kernels.operands import Operands
from cora_kernels.segments import Segments, spans

_FACTOR_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_IN_GROUPS = {"weight": "weights", "lora_a": "lora_a", "lora_b": "lora_bs", "bias": "biases"}


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
        scaling: a real number of any type, NumPy's too, or a tensor [B] of float32, bfloat16, float16 or float64.
        cu_seqlens: int32 [B + 1] of any stride, on x's device: sample i owns the rows cu_seqlens[i]:cu_seqlens[i + 1]
            of x, which may be none. It starts at 0, never decreases and ends at M: checked on the CPU only, where it
            costs no wait.
        backend: a name from `backends()`; None takes that of `use_backend`, else the best one for these tensors.

    Returns y, [B, T, N] or [M, N], in x's dtype. Differentiable once, in x, lora_a, lora_b, bias and a tensor scaling,
    each gradient in the dtype of its input; the same inputs always give the same bits. Products are summed in float32
    (float64 for float64). Under autocast x, weight and bias are cast as for F.linear.

    Tensors may be views of any strides, overlapping ones and views with a negative bit included; gradients may come so,
    too. Sparse, nested and other layouts are refused, and subclasses that compute in their own way (DTensor, quantised
    weights); those that only add to Tensor are taken for what they hold. There is no forward-mode derivative and none
    inside torch.func.

    Raises TypeError for a wrong type, layout or dtype and ValueError for a wrong shape, rank, device or value, for a
    weight that requires grad, and for a backend that cannot serve the call.

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
    compiling = torch.compiler.is_compiling()
    if cu_seqlens is None and not compiling:
        ys = dispatch.fast_path(backend, x, weights, lora_as, lora_bs, biases, scaling)
        if ys is not None:
            return ys
    x, segments = _check_x(x, cu_seqlens)
    autocast = autocasts(x)
    scaling = _check_scaling(scaling, x, segments.batch)
    operands = _check_operands(x, Operands(weights, lora_as, lora_bs, biases, scaling, segments), autocast, grouped)
    tensors = (x, scaling, *operands.lora_as, *operands.lora_bs, *operands.biases)
    needs_grad = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors)
    if not compiling:
        _check_derivatives(x, operands, needs_grad, grouped)
    if autocast:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    kernels = dispatch.select(backend, x, operands)
    if needs_grad:
        weights, lora_as, lora_bs, biases, scaling, segments = operands
        tensors = (*weights, *lora_as, *lora_bs, *biases)
        return LoraLinearGroup.apply(kernels, len(weights), len(lora_as), segments, scaling, x, *tensors)
    with without_autocast(x):
        return tuple(run(kernels, x, operands, None)[0])


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


def _check_x(x: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Segments]:
    x = plain(x, "x")
    if x.dtype not in _FACTOR_DTYPES and x.dtype != torch.float64:
        raise TypeError(f"x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if cu_seqlens is None:
        if x.dim() != 3:
            raise ValueError(f"x must be [B, T, K], or packed [M, K] with cu_seqlens, got shape {list(x.shape)}")
        return x, Segments.of(x, None)
    if x.dim() != 2:
        raise ValueError(f"x must be packed [M, K] where cu_seqlens is given, got shape {list(x.shape)}")
    cu_seqlens = boundaries(cu_seqlens, "x", x)
    segments = Segments.of(x, cu_seqlens)
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        spans(cu_seqlens, segments.rows)  # for its checks of the values
    return x, segments


def _check_operands(x: Tensor, given: Operands, autocast: bool, grouped: bool) -> Operands:
    device, width, batch, n_a = x.device, x.shape[-1], given.segments.batch, len(given.lora_as)
    base_dtypes = _FACTOR_DTYPES if autocast else (x.dtype,)
    factor_dtypes = (torch.float64,) if x.dtype == torch.float64 else _FACTOR_DTYPES
    lora_as: list[Tensor] = []
    for j, a in enumerate(given.lora_as):
        a = _check_tensor(a, "lora_a", j, device, factor_dtypes, n_a > 1)
        if a.dim() not in (2, 3) or a.shape[-2] != width or (a.dim() == 3 and a.shape[0] != batch):
            name = _name("lora_a", j, n_a > 1)
            raise ValueError(f"{name} must be [{batch}, {width}, r] or [{width}, r] to suit x, got {list(a.shape)}")
        if a.shape[-1] == 0:
            raise ValueError(f"{_name('lora_a', j, n_a > 1)} must have a rank r >= 1, got {list(a.shape)}")
        lora_as.append(a)
    weights: list[Tensor] = []
    lora_bs: list[Tensor] = []
    biases: list[Tensor | None] = []
    for j, (weight, b, bias) in enumerate(zip(given.weights, given.lora_bs, given.biases, strict=True)):
        weight = _check_tensor(weight, "weight", j, device, base_dtypes, grouped)
        if weight.dim() != 2 or weight.shape[1] != width or weight.numel() == 0:
            name = _name("weight", j, grouped)
            raise ValueError(f"{name} must be [N, {width}] to suit x, N and K >= 1, got {list(weight.shape)}")
        if weight.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{_name('weight', j, grouped)} requires grad, but this op is for frozen weights and has no gradient "
                "for them: call requires_grad_(False) on it or pass its detach(). To train it, use F.linear for x·Wᵀ"
            )
        b = _check_tensor(b, "lora_b", j, device, factor_dtypes, grouped)
        n, rank = weight.shape[0], lora_as[j % n_a].shape[-1]
        if b.dim() not in (2, 3) or b.shape[-2] != rank or b.shape[-1] != n or (b.dim() == 3 and b.shape[0] != batch):
            raise ValueError(
                f"{_name('lora_b', j, grouped)} must be [{batch}, {rank}, {n}] or [{rank}, {n}] to suit x, lora_a and "
                f"the weight, got {list(b.shape)}"
            )
        if bias is not None:
            bias = _check_tensor(bias, "bias", j, device, base_dtypes, grouped)
            if bias.dim() != 1 or bias.shape[0] != n:
                name = _name("bias", j, grouped)
                raise ValueError(f"{name} must be [{n}] to suit the weight, got {list(bias.shape)}")
        weights.append(weight)
        lora_bs.append(b)
        biases.append(bias)
    return Operands(weights, lora_as, lora_bs, biases, given.scaling, given.segments)


def _check_scaling(scaling: object, x: Tensor, batch: int) -> float | Tensor:
    if not isinstance(scaling, Tensor):
        return number(scaling, "scaling", "a number or a Tensor")
    scaling = floating(scaling, "scaling")
    if scaling.dim() != 1 or scaling.shape[0] != batch:
        raise ValueError(f"scaling must be a number or [{batch}], one per sample, got shape {list(scaling.shape)}")
    if scaling.device != x.device:
        raise ValueError(f"scaling must be on the device of x, {x.device}, got {scaling.device}")
    return scaling


def _check_derivatives(x: Tensor, operands: Operands, needs_grad: bool, grouped: bool) -> None:
    """Raises ValueError where a derivative is asked for that is not torch.autograd's, or that it cannot save for."""
    transforms = transform()
    if transforms is not None and (needs_grad or transforms != "Vmap"):
        raise ValueError(f"x and the other tensors must not be differentiated inside torch.func, got {transforms}")
    weights, lora_as, lora_bs, biases, scaling, _ = operands
    if has_tangent(x, scaling, *weights, *lora_as, *lora_bs, *biases):
        raise ValueError("x and the other tensors must have no forward-mode tangents: the op has only a backward")
    if not needs_grad:
        return
    needs_a, needs_scaling = any(a.requires_grad for a in lora_as), False
    if needs_a:
        check_saved(x, "x")
    if isinstance(scaling, Tensor):
        check_saved(scaling, "scaling")
        needs_scaling = scaling.requires_grad
    saved = {"weight": weights, "lora_a": lora_as} if x.requires_grad else {}
    saved |= {"lora_b": lora_bs} if x.requires_grad or needs_a or needs_scaling else {}
    for kind, tensors in saved.items():
        for j, t in enumerate(tensors):
            check_saved(t, _name(kind, j, len(tensors) > 1 if kind == "lora_a" else grouped))


def _check_tensor(
    t: Tensor, kind: str, j: int, device: torch.device, dtypes: tuple[torch.dtype, ...], grouped: bool
) -> Tensor:
    t = plain(t, _name(kind, j, grouped))
    if t.dtype not in dtypes:
        expected = " or ".join(map(str, dtypes))
        raise TypeError(f"{_name(kind, j, grouped)} must be {expected} to suit x, got {t.dtype}")
    if t.device != device:
        raise ValueError(f"{_name(kind, j, grouped)} must be on the device of x, {device}, got {t.device}")
    return t


def _name(kind: str, j: int, grouped: bool) -> str:
    return f"{_IN_GROUPS[kind]}[{j}]" if grouped else kind
