"""Which backend serves a call: the ordered table, the reasons against each, the user's choice."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Parameter

from cora_kernels.backends import cpu, extension
from cora_kernels.checks import has_tangent, transform
from cora_kernels.operands import Operands

# Of what the CPU's kernels compute with.
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# Import statements, one function each: the backends that import more than torch, or seldom serve, load on first use,
# and torch.compile traces no other way to import.
def _reference() -> ModuleType:
    from cora_kernels.backends import reference

    return reference


def _chain() -> ModuleType:
    from cora_kernels.backends import chain

    return chain


def _concat() -> ModuleType:
    from cora_kernels.backends import concat

    return concat


def _cpu() -> ModuleType:
    return cpu


def _triton() -> ModuleType:
    from cora_kernels.backends.triton import backend

    return backend


def _cuda() -> ModuleType:
    from cora_kernels.backends import cuda

    return cuda


# name -> (module, the device types it is tried on when no backend is asked for; None: all). The first that can serves.
# By the cost rule Triton's GEMM leads the CUDA C++ one: by a little on sm_80, as its largest tile has twice the area,
# and by more on Hopper, as it has wgmma. So "cuda" serves where Triton is not there or cannot serve. Where its GEMM is
# slower than the vendor's it computes S and S·B alone and calls that one, so it is not behind "chain".
_BACKENDS: dict[str, tuple[Callable[[], ModuleType], tuple[str, ...] | None]] = {
    "cpu": (_cpu, ("cpu",)),
    "triton": (_triton, ("cuda",)),
    "cuda": (_cuda, ("cuda",)),
    "chain": (_chain, None),
    "concat": (_concat, ()),
    "reference": (_reference, ()),
}
# Those that are tried. Compiled code has a guard for each that it walks past.
_TRIED = tuple(row for row in _BACKENDS.values() if row[1] != ())


class _Choice(threading.local):
    """Not a ContextVar: torch.compile guards on this one, so that compiled code sees a later use_backend."""

    def __init__(self) -> None:
        self.name: str | None = None


_choice = _Choice()


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Inside, every call that names no backend uses `name` (None: the automatic choice), for its backward too.

    The choice holds in the current thread. Raises ValueError for a name that `backends()` does not list.
    """
    _check_name(name)
    previous, _choice.name = _choice.name, name
    try:
        yield
    finally:
        _choice.name = previous


def backends() -> dict[str, str | None]:
    """Every backend by name, in order of preference: None if this machine can run it, else the reason why not."""
    return {name: load().availability() for name, (load, _) in _BACKENDS.items()}


def fast_path(name: str | None, *call: object) -> tuple[Tensor, ...] | None:
    """What "cpu" makes of a call that needs neither checks nor a choice; or None: `cpu.fast_path`."""
    return cpu.fast_path(*call) if asked(name) in (None, "cpu") else None


def asked(name: str | None) -> str | None:
    """The backend named, or that of `use_backend`, or None for the best one."""
    return _choice.name if name is None else name


def gpu_backend(name: str | None) -> str:
    """Of the backends for GPUs the one named, or that of `use_backend`, or the first that is usable, or the first."""
    asked_for, names = asked(name), [name for name, (_, devices) in _BACKENDS.items() if devices == ("cuda",)]
    if asked_for in names:
        return str(asked_for)
    if name is not None:
        raise ValueError(f"backend must be one of {', '.join(map(repr, names))}, got {name!r}")
    return next((name for name in names if _BACKENDS[name][0]().availability() is None), names[0])


def select(name: str | None, x: Tensor, operands: Operands) -> ModuleType:
    """The backend that serves this call: the one asked for (an error says why it cannot), else the first that can."""
    name = asked(name)
    wrap = None
    if name is not None:
        _check_name(name)
        backend = _BACKENDS[name][0]()
        reasons = _reasons(backend, x, operands)
        if reasons:
            raise ValueError(f"backend {name!r} cannot serve this call: {'; '.join(reasons)}")
        if name != "concat":
            return backend
        wrap = backend.Concat  # which leaves its factors' products to the first that can
    device = x.device.type
    for load, devices in _TRIED:
        if devices is None or device in devices:
            backend = load()
            if not _reasons(backend, x, operands):
                return backend if wrap is None else wrap(backend)
            if backend is cpu and not is_compiling():
                extension.warn_of_fallback()
    raise AssertionError("the chain serves every call")


def cpu_serves(*tensors: Tensor) -> bool:
    """Whether the CPU's kernels compute with these: plain tensors of one of their dtypes, and nobody watches."""
    if is_compiling() or asked(None) not in (None, "cpu") or cpu.availability() is not None:
        return False
    kinds = all(type(t) in (Tensor, Parameter) and t.device.type == "cpu" for t in tensors)
    dtype = tensors[0].dtype
    if not kinds or dtype not in KERNEL_DTYPES or any(t.dtype != dtype for t in tensors):
        return False
    watched = torch.is_autocast_enabled("cpu") or torch.jit.is_tracing()
    return not watched and transform() is None and not has_tangent(*tensors)


def _reasons(backend: ModuleType, x: Tensor, operands: Operands) -> list[str]:
    unavailable = backend.availability()
    return backend.not_supported_reasons(x, operands) if unavailable is None else [unavailable]


def _check_name(name: str | None) -> None:
    if name is not None and name not in _BACKENDS:
        raise ValueError(f"unknown backend {name!r}, expected one of {', '.join(map(repr, _BACKENDS))}")
