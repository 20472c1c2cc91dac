"""Packed attention on NVIDIA GPUs by torch.nn.attention.varlen (torch >= 2.10): FlashAttention, with its backward.

It wants to know the longest sample on the host, and a parent's keys before those of each child: both are read and laid
out once for a batch, whose layers all come with the same boundaries.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from cora_kernels.segments import prefixes, spans

DEVICE = "cuda"
_OLDEST = (8, 0)
_WIDEST = 256


@cache
def _varlen() -> tuple[Callable[..., Any], frozenset[str]] | None:
    """torch's function and the names of its parameters, of which each version of torch has others; None before 2.10."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def not_supported_reason(dtype: torch.dtype, device: torch.device, width: int) -> str | None:
    if torch.version.hip:
        return f"torch's variable-length attention runs on NVIDIA GPUs, the tensors are on {device}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"torch's variable-length attention takes bfloat16 and float16, got {dtype}"
    if _varlen() is None:
        return f"torch has its variable-length attention since 2.10, this is {torch.__version__}"
    if width % 8 or width > _WIDEST:
        return f"FlashAttention has heads of a multiple of 8 up to {_WIDEST} elements, got {width}"
    return None if _is_new_enough(device) else "FlashAttention needs compute capability 8.0 (Ampere) or later"


@cache
def _is_new_enough(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= _OLDEST


class _Plan(NamedTuple):
    """longest: of the queries and of the keys of a sample. rows: of k that are its keys, one sample after another;
    cu_seqlens: where each sample's keys lie among them. Both None where samples read their own alone."""

    longest: tuple[int, int]
    rows: Tensor | None
    cu_seqlens: Tensor | None


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, parents: Tensor | None, scale: float) -> Tensor:
    """o [M, H, D] of checked q [M, H, D], k and v [M, G, D], differentiable."""
    found = _varlen()
    assert found is not None
    varlen_attn, parameters = found
    plan = _planned(cu_seqlens, parents, q.shape[0])
    if plan.rows is not None:
        k, v = k.index_select(0, plan.rows), v.index_select(0, plan.rows)
    options: dict[str, Any] = {}
    if "enable_gqa" in parameters:
        options["enable_gqa"] = True
    elif k.shape[1] < q.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    if "scale" in parameters:
        options["scale"] = scale
    elif scale != q.shape[2] ** -0.5:
        q = q * (scale * q.shape[2] ** 0.5)
    # Either way the last query sees the last key: all of a parent, and the sample's own up to the query.
    options |= {"window_size": (-1, 0)} if "window_size" in parameters else {"is_causal": True}
    q, k, v = _aligned(q), _aligned(k), _aligned(v)
    own = cu_seqlens if plan.cu_seqlens is None else plan.cu_seqlens
    out: Tensor = varlen_attn(q, k, v, cu_seqlens, own, *plan.longest, **options)
    return out


_plans = WeakTensorKeyDictionary()


def _planned(cu_seqlens: Tensor, parents: Tensor | None, rows: int) -> _Plan:
    """The plan of these boundaries: kept as long as they live, made anew if they were written to."""
    if cu_seqlens.is_inference() or (parents is not None and parents.is_inference()):  # they count no writes
        return _plan(cu_seqlens, parents, rows)
    state = rows, cu_seqlens._version, id(parents), None if parents is None else parents._version
    kept = _plans.get(cu_seqlens)
    if kept is None or kept[0] != state:
        # With the parents: another tensor must not come by their id.
        kept = _plans[cu_seqlens] = state, parents, _plan(cu_seqlens, parents, rows)
    plan: _Plan = kept[2]
    return plan


def _plan(cu_seqlens: Tensor, parents: Tensor | None, rows: int) -> _Plan:
    samples = spans(cu_seqlens, rows)
    longest = max((own.stop - own.start for own in samples), default=0)
    befores = [None] if parents is None else prefixes(parents, samples)
    if not any(befores):
        return _Plan((longest, longest), None, None)
    keys, ends = [], [0]
    for own, before in zip(samples, befores, strict=True):
        keys += [torch.arange(part.start, part.stop) for part in (before, own) if part is not None]
        ends.append(ends[-1] + sum(part.stop - part.start for part in (before, own) if part is not None))
    longest_keys = max(stop - start for start, stop in zip(ends, ends[1:], strict=False))
    on_host = torch.cat(keys), torch.tensor(ends, dtype=torch.int32)
    index, boundaries = (t.to(cu_seqlens.device) for t in on_host)
    return _Plan((longest, longest_keys), index, boundaries)


def _aligned(t: Tensor) -> Tensor:
    """As FlashAttention reads it, 16 bytes at a time."""
    fits = t.stride(2) == 1 and t.stride(0) % 8 == t.stride(1) % 8 == 0 and t.data_ptr() % 16 == 0
    return t if fits else t.clone(memory_format=torch.contiguous_format)
