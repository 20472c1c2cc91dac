"""Checks of arguments that more than one op takes, and the tensors that pass them."""

from numbers import Real

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn.parameter import Parameter, is_lazy

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Subclasses with a dispatch of their own that our ops see through: those that trace, and a collective's result, which
# waits for itself when it is used.
_TRANSPARENT = (
    "torch._subclasses.fake_tensor.FakeTensor",
    "torch._subclasses.functional_tensor.FunctionalTensor",
    "torch.distributed._functional_collectives.AsyncCollectiveTensor",
)


def kind_of(value: object) -> str:
    """What an error says of a value that is no Tensor."""
    return "None" if value is None else f"a {type(value).__name__}"


def plain(t: object, name: str) -> Tensor:
    """t itself where its values are the numbers in its memory, else a differentiable copy that has them there: of a
    view with a negative bit, of zeros without memory.

    Raises TypeError or ValueError for what is no Tensor, has no strides or no memory yet, and for a subclass whose
    memory is not its values. Subclasses without a `__torch_dispatch__` of their own are taken for what they hold.
    """
    if is_compiling():  # It refuses most of the others itself, and traces none of these questions.
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {kind_of(t)}")
        return t.resolve_neg()
    kind = type(t)
    if kind is not Tensor and kind is not Parameter:
        t = _of_class(t, name)
    assert isinstance(t, Tensor)
    if t.layout is not torch.strided or t.is_nested:
        raise TypeError(f"{name} must be a strided Tensor, got {'a nested one' if t.is_nested else t.layout}")
    return t.clone() if t.is_neg() or t._is_zerotensor() else t


def _of_class(t: object, name: str) -> Tensor:
    """A tensor of a class of its own, without it where the class computes nothing: unlike ones do not mix in torch."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {kind_of(t)}")
    if is_lazy(t):
        raise ValueError(f"{name} must be initialised, got {kind_of(t)}")
    kind = type(t)
    if kind.__torch_dispatch__ is Tensor.__torch_dispatch__:
        return t.as_subclass(Tensor)
    if f"{kind.__module__}.{kind.__qualname__}" in _TRANSPARENT:
        return t
    raise TypeError(f"{name} must be a plain Tensor, got {kind_of(t)}, a subclass that computes in its own way")


def number(value: object, name: str, expected: str = "a number") -> float:
    """A real number of any type, NumPy's among them, as a float. `expected`: what may stand there in words."""
    if type(value) is float:
        return value
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be {expected}, got {kind_of(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name} must be a number that a float can hold, got {value}") from error


def floating(t: Tensor, name: str) -> Tensor:
    """As `plain`, of one of the dtypes that torch computes with."""
    if not t.is_floating_point():
        raise TypeError(f"{name} must be a floating tensor, got {t.dtype}")
    if t.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {t.dtype}")
    return plain(t, name)


def boundaries(cu_seqlens: object, name: str, rows: Tensor) -> Tensor:
    """cu_seqlens, or a copy, as the kernels read it: plain, contiguous, and such that autograd can save it.

    Raises TypeError or ValueError unless it is an int32 tensor [B + 1] on the device of `rows`, the argument `name`,
    with a sample if there are rows. Its values are not read.
    """
    cu_seqlens = _int32(cu_seqlens, "cu_seqlens")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens must be [B + 1], got shape {list(cu_seqlens.shape)}")
    if cu_seqlens.device != rows.device:
        raise ValueError(f"cu_seqlens must be on the device of {name}, {rows.device}, got {cu_seqlens.device}")
    if cu_seqlens.shape[0] == 1 and rows.shape[0] > 0:
        raise ValueError(f"cu_seqlens must end at the number of rows of {name}, {rows.shape[0]}, got [1], no samples")
    return _saveable(cu_seqlens)


def parents_of(parents: object, cu_seqlens: Tensor) -> Tensor:
    """parents, or a copy, as `boundaries` gives cu_seqlens.

    Raises TypeError or ValueError unless it is an int32 tensor [B] on the device of cu_seqlens [B + 1]. Its values are
    not read.
    """
    parents = _int32(parents, "parents")
    batch = cu_seqlens.shape[0] - 1
    if parents.dim() != 1 or parents.shape[0] != batch:
        raise ValueError(f"parents must be [{batch}], one for each sample of cu_seqlens, got {list(parents.shape)}")
    if parents.device != cu_seqlens.device:
        raise ValueError(f"parents must be on the device of cu_seqlens, {cu_seqlens.device}, got {parents.device}")
    return _saveable(parents)


def _int32(value: object, name: str) -> Tensor:
    t = plain(value, name)
    if t.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, got {t.dtype}")
    return t


def _saveable(t: Tensor) -> Tensor:
    if torch.is_grad_enabled() and (is_compiling() or t.is_inference()):
        return t.clone(memory_format=torch.contiguous_format)
    return t.contiguous()


def check_saved(t: Tensor, name: str) -> None:
    """Raises ValueError where autograd cannot save t for the backward."""
    if t.is_inference():
        raise ValueError(f"{name} must not be an inference tensor where the backward needs it: pass its clone()")


def transform() -> str | None:
    """The transforms of torch.func around this call, "Vmap" where there is no other. Not for torch.compile."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return None
    keys = {level.key().name for level in torch._C._functorch.get_interpreter_stack() or ()}
    return "Vmap" if keys == {"Vmap"} else ", ".join(sorted(keys - {"Vmap"}))


def has_tangent(*tensors: object) -> bool:
    """Whether forward-mode differentiation follows one of them. Not for torch.compile."""
    if forward_ad._current_level < 0:
        return False
    return any(isinstance(t, Tensor) and forward_ad.unpack_dual(t).tangent is not None for t in tensors)
