"""The native extension `_C` and calls of ops: whether it is there, how arguments travel, what the ops return.

The ops of every backend take the same arguments in the same order: see `csrc/bindings.cpp`.
"""

import json
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cora_kernels.operands import Operands
from cora_kernels.segments import Segments

OPS = ("shrink", "forward", "backward_input", "outer")

# Without pip's cache, which keeps what was built of an archive, for whatever torch.
_REMEDY = "to build it, pip install --force-reinstall --no-deps --no-cache-dir what it was installed from"


def _recorded() -> tuple[str | None, str]:
    """What setup.py recorded: the torch that `_C` was built for, or None; and why it was not built."""
    try:
        found = json.loads((Path(__file__).parents[1] / "built.json").read_text(encoding="utf-8"))
        # A checkout may hold extensions for several Pythons: the record is of the last one that was built.
        own = found["torch"] is None or found["suffix"] == sysconfig.get_config_var("EXT_SUFFIX")
        return (found["torch"], found["reason"]) if own else (None, "")
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""


def _is_for_another_torch() -> bool:
    """The binary interface of torch is that of a minor version."""
    return built_for is not None and built_for.split(".")[:2] != torch.__version__.split(".")[:2]


def _why_not() -> str | None:
    if _is_for_another_torch():
        return f"the native extension was built for torch {built_for}, this is {torch.__version__}; {_REMEDY}"
    return None if loaded else f"the native extension is not there ({_missing}); {_REMEDY}"


# The torch that `_C` was built for, None if it was not built.
built_for, _missing = _recorded()
loaded = False
if not _is_for_another_torch():  # Loading it would fail on some symbol, or worse, not fail.
    try:
        from cora_kernels import _C
    except ImportError as error:
        # Python calls a module that is not there a circular import.
        _missing = str(error) if find_spec("cora_kernels._C") else _missing or "it was not built"
    else:
        loaded = True
        if built_for is None or not built_for.startswith(_C.torch_version):  # The record is of another file.
            built_for = _C.torch_version

# Why `_C` cannot serve, or None.
unavailable = _why_not()


@cache
def warn_of_fallback() -> None:
    """Warns, once, if torch's operators serve what the extension would, and why: an installer does not show it."""
    if unavailable is not None:
        warnings.warn(f"cora_kernels: on the CPU torch's operators serve, more slowly: {unavailable}", stacklevel=2)


_LIBRARY = torch.library.Library("cora_kernels", "FRAGMENT")


def shrink(op: Callable[..., Any], x: Tensor, a: Tensor, scaling: float | Tensor, segments: Segments) -> Tensor:
    return op(x, a, *_scaling(scaling, x), segments.cu_seqlens, segments.batch)


def forward(
    op: Callable[..., Any], x: Tensor, operands: Operands, s: Sequence[Tensor] | None, *choice: object
) -> tuple[list[Tensor], list[Tensor]]:
    """`choice`: what the op takes beyond the arguments of all."""
    weights, lora_as, lora_bs, biases, scaling, segments = operands
    out = op(
        x,
        list(weights),
        list(lora_as),
        list(lora_bs),
        list(biases),
        *_scaling(scaling, x),
        segments.cu_seqlens,
        segments.batch,
        list(s or ()),
        *choice,
    )
    return out[: len(weights)], out[len(weights) :] if s is None else list(s)


def backward_input(
    op: Callable[..., Any],
    gs: Sequence[Tensor],
    operands: Operands,
    need_dx: bool,
    ds: Sequence[Tensor] | None,
    *choice: object,
) -> tuple[Tensor | None, list[Tensor]]:
    weights, lora_as, lora_bs, _, scaling, segments = operands
    out = op(
        list(gs),
        list(weights) if need_dx else [],
        list(lora_as) if need_dx else [],
        list(lora_bs),
        *_scaling(scaling, gs[0]),
        segments.cu_seqlens,
        segments.batch,
        len(lora_as),
        list(ds or ()),
        *choice,
    )
    dx = out[0] if need_dx else None
    return dx, out[int(need_dx) :] if ds is None else list(ds)


def outer(
    op: Callable[..., Any], u: Tensor, v: Tensor, segments: Segments, per_sample: bool, dtype: torch.dtype
) -> Tensor:
    return op(u, v, segments.cu_seqlens, segments.batch, per_sample, dtype)


def _scaling(scaling: float | Tensor, rows: Tensor) -> tuple[Tensor | None, float]:
    """Scales for each sample, or one for all: a float, as a tensor where torch.compile would bake its value in.

    It lies where the rows are: a tensor of the CPU among those of a GPU would keep a call out of every CUDA graph.
    """
    if not isinstance(scaling, float):
        return scaling, 1.0
    if torch.compiler.is_compiling():
        return torch.ones((), device=rows.device) * scaling, 1.0
    return None, scaling


def register_fakes(prefix: str, names: Iterable[str] = OPS, library: torch.library.Library | None = None) -> None:
    """What the ops `{prefix}_{name}` return, without data."""
    for name in names:
        torch.library.register_fake(f"cora_kernels::{prefix}_{name}", _FAKES[name], lib=library)


def define_ops(prefix: str, calls: Mapping[str, Callable[..., Any]]) -> None:
    """Registers functions of a backend as ops `{prefix}_{name}`: for choices that torch.compile must not trace.

    A scaling that torch.compile has made a tensor arrives as one without dimensions, and is handed on as that.
    """
    shared = "Tensor? scales, float scaling, Tensor? cu_seqlens, SymInt batch"

    def scaling_of(scales: Tensor | None, scaling: float) -> float | Tensor:
        return scaling if scales is None else scales

    def segments_of(rows: Tensor, cu_seqlens: Tensor | None, batch: int) -> Segments:
        length = rows.shape[0] // max(batch, 1) if cu_seqlens is None else None
        return Segments(batch, rows.shape[0], length, cu_seqlens)

    def shrink(x: Tensor, *call: Any) -> Tensor:
        a, scales, scaling, cu_seqlens, batch = call
        return calls["shrink"](x, a, scaling_of(scales, scaling), segments_of(x, cu_seqlens, batch))

    def forward(x: Tensor, *call: Any) -> list[Tensor]:
        weights, lora_as, lora_bs, biases, scales, scaling, cu_seqlens, batch, s = call
        segments = segments_of(x, cu_seqlens, batch)
        operands = Operands(weights, lora_as, lora_bs, biases, scaling_of(scales, scaling), segments)
        ys, ss = calls["forward"](x, operands, s or None)
        return ys if s else ys + ss

    def backward_input(gs: list[Tensor], *call: Any) -> list[Tensor]:
        weights, lora_as, lora_bs, scales, scaling, cu_seqlens, batch, n_a, ds = call
        segments = segments_of(gs[0], cu_seqlens, batch)
        operands = Operands(weights, lora_as or [None] * n_a, lora_bs, [], scaling_of(scales, scaling), segments)
        dx, dss = calls["backward_input"](gs, operands, len(weights) > 0, ds or None)
        return ([dx] if weights else []) + ([] if ds else dss)

    def outer(u: Tensor, *call: Any) -> Tensor:
        v, cu_seqlens, batch, per_sample, dtype = call
        return calls["outer"](u, v, segments_of(u, cu_seqlens, batch), per_sample, dtype)

    for schema, op in (
        (f"shrink(Tensor x, Tensor a, {shared}) -> Tensor", shrink),
        (
            "forward(Tensor x, Tensor[] weights, Tensor[] lora_as, Tensor[] lora_bs, Tensor?[] biases, "
            f"{shared}, Tensor[] s) -> Tensor[]",
            forward,
        ),
        (
            "backward_input(Tensor[] gs, Tensor[] weights, Tensor[] lora_as, Tensor[] lora_bs, "
            f"{shared}, int n_a, Tensor[] ds) -> Tensor[]",
            backward_input,
        ),
        (
            "outer(Tensor u, Tensor v, Tensor? cu_seqlens, SymInt batch, bool per_sample, ScalarType dtype) -> Tensor",
            outer,
        ),
    ):
        if op.__name__ in calls:
            _LIBRARY.define(f"{prefix}_{schema}")
            _LIBRARY.impl(f"{prefix}_{op.__name__}", op, "CompositeExplicitAutograd")
    register_fakes(prefix, calls, _LIBRARY)


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
    *choice: object,
) -> list[Tensor]:
    ys = [x.new_empty(x.shape[0], weight.shape[0]) for weight in weights]
    return ys + ([] if s else [_fake_shrink(x, a) for a in lora_as])


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
    *choice: object,
) -> list[Tensor]:
    dx = [gs[0].new_empty(gs[0].shape[0], weights[0].shape[1])] if weights else []
    return dx + ([] if ds else [_fake_shrink(gs[0], b.transpose(-1, -2)) for b in lora_bs[:n_a]])


def _fake_outer(
    u: Tensor, v: Tensor, cu_seqlens: Tensor | None, batch: int, per_sample: bool, dtype: torch.dtype
) -> Tensor:
    shape = (batch, u.shape[1], v.shape[1]) if per_sample else (u.shape[1], v.shape[1])
    return u.new_empty(shape, dtype=dtype)


_FAKES: dict[str, Callable[..., Any]] = {
    "shrink": _fake_shrink,
    "forward": _fake_forward,
    "backward_input": _fake_backward_input,
    "outer": _fake_outer,
}
