"""Which backend serves a call: the ordered table, the reasons against each, the user's choice."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from types import ModuleType

from torch import Tensor

from cora_kernels.segments import Segments

# name -> (module, the device types it is tried on, in this order, when no backend is asked for; None: on every device)
_BACKENDS: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "chain": ("cora_kernels.chain", None),
    "reference": ("cora_kernels.reference", ()),
}

_asked_for: ContextVar[str | None] = ContextVar("cora_kernels_backend", default=None)


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Calls inside use the backend `name` (None: the automatic choice), in backward too, unless they name one themselves.

    The choice holds for the current thread or async task. Raises ValueError for a name that is not in `backends()`.
    """
    _check_name(name)
    token = _asked_for.set(name)
    try:
        yield
    finally:
        _asked_for.reset(token)


def backends() -> dict[str, str | None]:
    """Every backend by name, in order of preference: None if it can be used on this machine, else the reason why not."""
    return {name: load(name).availability() for name in _BACKENDS}


def select(
    name: str | None,
    x: Tensor,
    weights: Sequence[Tensor],
    lora_as: Sequence[Tensor],
    lora_bs: Sequence[Tensor],
    segments: Segments,
) -> str:
    """The name of the backend that serves this call. A backend asked for by name serves it or an error says why not."""
    if name is None:
        name = _asked_for.get()
    if name is not None:
        _check_name(name)
        reasons = _reasons(name, x, weights, lora_as, lora_bs, segments)
        if reasons:
            raise ValueError(f"backend {name!r} cannot serve this call: {'; '.join(reasons)}")
        return name
    device = x.device.type
    for candidate, (_, devices) in _BACKENDS.items():
        if devices is None or device in devices:
            if not _reasons(candidate, x, weights, lora_as, lora_bs, segments):
                return candidate
    raise AssertionError("the chain serves every call")


@cache
def load(name: str) -> ModuleType:
    """The module of a backend, imported on first use."""
    return import_module(_BACKENDS[name][0])


@cache
def _availability(name: str) -> str | None:
    return load(name).availability()


def _reasons(name: str, *call: object) -> list[str]:
    reason = _availability(name)
    return [reason] if reason is not None else load(name).not_supported_reasons(*call)


def _check_name(name: str | None) -> None:
    if name is not None and name not in _BACKENDS:
        raise ValueError(f"unknown backend {name!r}, expected one of {', '.join(map(repr, _BACKENDS))}")
