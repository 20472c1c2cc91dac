"""The CUDA C++ kernels: the backend "cuda", csrc/cuda. bf16 and fp16 on NVIDIA GPUs since Ampere.

Usable where the extension `_C` was built with nvcc beside a CUDA build of torch. One pass, two kernels or decode: the
way is chosen in csrc/cuda/ops.cpp, by the rates of the GPU that `cora_kernels.planning.cost` knows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cora_kernels.planning import cost
from cora_kernels.segments import Segments

try:
    from cora_kernels import _C
except ImportError as error:
    _missing: str | None = f"the native extension is not there ({error})"
else:
    _missing = None
    if not hasattr(torch.ops.cora_kernels, "cuda_forward"):
        _missing = "the native extension was built without CUDA: install with nvcc, beside a CUDA build of torch"
    elif _C.torch_version.split(".")[:2] != torch.__version__.split(".")[:2]:
        _missing = f"the native extension was built for torch {_C.torch_version}, this is {torch.__version__}"

KERNELS = ("lowrank_gemm", "shrink", "outer", "decode")
_DEVICE = "cuda"
_OLDEST = (8, 0)
_DTYPES = (torch.bfloat16, torch.float16)


def architectures() -> str | None:
    """Those that the kernels were built for, or None where they were not built."""
    return torch.ops.cora_kernels.cuda_architectures() if _missing is None else None


def availability() -> str | None:
    if _missing is not None:
        return _missing
    return None if torch.cuda.is_available() else "no NVIDIA GPU is there"


def not_supported_reasons(
    x: Tensor, weights: Sequence[Tensor], lora_as: Sequence[Tensor], lora_bs: Sequence[Tensor], segments: Segments
) -> list[str]:
    reasons = []
    if x.device.type != _DEVICE:
        reasons.append(f"it runs on NVIDIA GPUs, x is on {x.device}")
    elif _capability(x.device) < _OLDEST:
        reasons.append("it needs compute capability 8.0 (Ampere) or later")
    if x.dtype not in _DTYPES:
        reasons.append(f"x must be bfloat16 or float16, got {x.dtype}")
    if not _aligned(x):
        reasons.append(f"the rows of x must be 16-byte aligned, got strides {tuple(x.stride())}")
    for weight in weights:
        if any(size % 8 for size in weight.shape):
            reasons.append(f"the widths of weight must be multiples of 8, got {tuple(weight.shape)}")
        elif not _aligned(weight if weight.stride(1) == 1 else weight.t()):
            reasons.append(f"the rows of weight must be 16-byte aligned, got strides {tuple(weight.stride())}")
    for factor in (*lora_as, *lora_bs):
        if factor.dtype not in (x.dtype, torch.float32):
            reasons.append(f"lora_a and lora_b must be float32 or, like x, {x.dtype}, got {factor.dtype}")
    return reasons


def shrink(x: Tensor, a: Tensor, scaling: float | Tensor, segments: Segments) -> Tensor:
    return torch.ops.cora_kernels.cuda_shrink(x, a, *_scaling(scaling), segments.cu_seqlens, segments.batch)


def forward(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_as: Sequence[Tensor],
    lora_bs: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    scaling: float | Tensor,
    segments: Segments,
    s: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    out = torch.ops.cora_kernels.cuda_forward(
        x,
        list(weights),
        list(lora_as),
        list(lora_bs),
        list(biases),
        *_scaling(scaling),
        segments.cu_seqlens,
        segments.batch,
        list(s or ()),
        _balance(x.device),
    )
    return out[: len(weights)], out[len(weights) :] if s is None else list(s)


def backward_input(
    gs: Sequence[Tensor],
    weights: Sequence[Tensor],
    lora_as: Sequence[Tensor],
    lora_bs: Sequence[Tensor],
    scaling: float | Tensor,
    segments: Segments,
    need_dx: bool,
    ds: Sequence[Tensor] | None = None,
) -> tuple[Tensor | None, list[Tensor]]:
    out = torch.ops.cora_kernels.cuda_backward_input(
        list(gs),
        list(weights) if need_dx else [],
        list(lora_as) if need_dx else [],
        list(lora_bs),
        *_scaling(scaling),
        segments.cu_seqlens,
        segments.batch,
        len(lora_as),
        list(ds or ()),
        _balance(gs[0].device),
    )
    dx = out[0] if need_dx else None
    return dx, out[int(need_dx) :] if ds is None else list(ds)


def outer(u: Tensor, v: Tensor, segments: Segments, per_sample: bool, dtype: torch.dtype) -> Tensor:
    return torch.ops.cora_kernels.cuda_outer(u, v, segments.cu_seqlens, segments.batch, per_sample, dtype)


def _aligned(t: Tensor) -> bool:
    """By its place in its storage, which itself starts at a multiple of 512 bytes.

    torch.compile traces no storage_offset: there the drivers copy what the place alone rules out.
    """
    placed = torch.compiler.is_compiling() or t.storage_offset() % 8 == 0
    return placed and t.stride(-1) == 1 and all(stride % 8 == 0 for stride in t.stride()[:-1])


@torch.compiler.assume_constant_result
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else _OLDEST


@torch.compiler.assume_constant_result
def _balance(device: torch.device) -> float:
    """FLOP/s over bytes/s: what one pass computes again against what two kernels read again."""
    gpu = cost.gpu_of(device)
    return gpu.matrix / gpu.bandwidth


def _scaling(scaling: float | Tensor) -> tuple[Tensor | None, float]:
    """Scales for each sample, or one for all: a float, as a tensor where torch.compile would bake its value in."""
    if isinstance(scaling, Tensor):
        return scaling, 1.0
    if torch.compiler.is_compiling():
        return torch.ones(()) * scaling, 1.0
    return None, scaling


def _fake_shrink(x: Tensor, a: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape[0], a.shape[-1], dtype=torch.float32)


def _fake_forward(
    x: Tensor,
    weights: Sequence[Tensor],
    lora_as: Sequence[Tensor],
    lora_bs: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    scales: Tensor | None,
    scaling: float,
    cu_seqlens: Tensor | None,
    batch: int,
    s: Sequence[Tensor],
    balance: float,
) -> list[Tensor]:
    ys = [x.new_empty(x.shape[0], weight.shape[0]) for weight in weights]
    ss = [] if s else [x.new_empty(x.shape[0], a.shape[-1], dtype=torch.float32) for a in lora_as]
    return ys + ss


def _fake_backward_input(
    gs: Sequence[Tensor],
    weights: Sequence[Tensor],
    lora_as: Sequence[Tensor],
    lora_bs: Sequence[Tensor],
    scales: Tensor | None,
    scaling: float,
    cu_seqlens: Tensor | None,
    batch: int,
    n_a: int,
    ds: Sequence[Tensor],
    balance: float,
) -> list[Tensor]:
    g = gs[0]
    dx = [g.new_empty(g.shape[0], weights[0].shape[1])] if weights else []
    dss = [] if ds else [g.new_empty(g.shape[0], b.shape[-2], dtype=torch.float32) for b in lora_bs[:n_a]]
    return dx + dss


def _fake_outer(
    u: Tensor, v: Tensor, cu_seqlens: Tensor | None, batch: int, per_sample: bool, dtype: torch.dtype
) -> Tensor:
    shape = (batch, u.shape[1], v.shape[1]) if per_sample else (u.shape[1], v.shape[1])
    return u.new_empty(shape, dtype=dtype)


def _register_fakes() -> None:
    torch.library.register_fake("cora_kernels::cuda_shrink", _fake_shrink)
    torch.library.register_fake("cora_kernels::cuda_forward", _fake_forward)
    torch.library.register_fake("cora_kernels::cuda_backward_input", _fake_backward_input)
    torch.library.register_fake("cora_kernels::cuda_outer", _fake_outer)


if _missing is None:
    _register_fakes()
