"""Delta: the low-rank change of one linear, and what is checked of it."""

from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Delta(NamedTuple):
    """What is added to a frozen linear: scaling·(x·lora_a)·lora_b.

    lora_a [B, K, r] or shared [K, r]; lora_b [B, r, N] or shared [r, N]; scaling a float or a tensor [B].
    """

    lora_a: Tensor
    lora_b: Tensor
    scaling: float | Tensor = 1.0

    @property
    def batch(self) -> int | None:
        """B, or None where nothing is per sample."""
        if self.lora_a.dim() == 3:
            return self.lora_a.shape[0]
        if self.lora_b.dim() == 3:
            return self.lora_b.shape[0]
        return self.scaling.shape[0] if isinstance(self.scaling, Tensor) else None


class LinearShape(Protocol):
    """What a check needs to know of a linear."""

    name: str

    in_features: int
    out_features: int

    @property
    def weight(self) -> Tensor: ...


def drop_inputs(deltas: dict[str, Delta], inputs: Sequence[Sequence[str]], probability: float) -> dict[str, Delta]:
    """The deltas with dropout of the features of x: some rows of lora_a zero, [..., K, 1] at a time, the others larger.

    That is dropping features of x with one mask for all positions of a sample, at no pass over x, and the same when
    activation checkpointing recomputes the layer. inputs: the names of the linears that share an input, and hence a
    mask.
    """
    dropped = {}
    for names in inputs:
        mask = functional.dropout(torch.ones_like(deltas[names[0]].lora_a[..., :1]), probability)
        masked: dict[int, Tensor] = {}  # One tensor for all that share one: x·lora_a is then computed once.
        for name in names:
            delta = deltas[name]
            if id(delta.lora_a) not in masked:
                masked[id(delta.lora_a)] = delta.lora_a * mask
            dropped[name] = delta._replace(lora_a=masked[id(delta.lora_a)])
    return dropped


def checked(what: str, value: object, layer: LinearShape) -> Delta:
    """The value as a Delta that fits the layer; `what` names it in errors."""
    if not isinstance(value, tuple) or len(value) not in (2, 3):
        raise TypeError(f"{what}: expected (lora_a, lora_b) or (lora_a, lora_b, scaling), got {_kind(value)}")
    lora_a, lora_b, scaling = value if len(value) == 3 else (*value, 1.0)
    lora_a = _factor(f"{what}: lora_a", lora_a, layer)
    lora_b = _factor(f"{what}: lora_b", lora_b, layer)
    width_in, width_out = layer.in_features, layer.out_features
    if lora_a.dim() not in (2, 3) or lora_a.shape[-2] != width_in or lora_a.shape[-1] == 0:
        raise ValueError(
            f"{what}: expected lora_a [B, {width_in}, r] or [{width_in}, r] for {layer.name}, got {list(lora_a.shape)}"
        )
    rank = lora_a.shape[-1]
    if lora_b.dim() not in (2, 3) or tuple(lora_b.shape[-2:]) != (rank, width_out):
        raise ValueError(
            f"{what}: expected lora_b [B, {rank}, {width_out}] or [{rank}, {width_out}] for {layer.name}, "
            f"got {list(lora_b.shape)}"
        )
    if isinstance(scaling, Real) and not isinstance(scaling, bool):
        scaling = float(scaling)
    elif isinstance(scaling, Tensor) and scaling.dim() == 1:
        scaling = _on_layer(f"{what}: scaling", scaling, layer)
    else:
        raise TypeError(f"{what}: scaling: expected a number or a float tensor [B], got {_kind(scaling)}")
    tensors = {"lora_a": lora_a, "lora_b": lora_b, "scaling": scaling}
    shapes = {name: list(t.shape) for name, t in tensors.items() if isinstance(t, Tensor)}
    batches = {shape[0] for name, shape in shapes.items() if len(shape) == (1 if name == "scaling" else 3)}
    if len(batches) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{what}: expected one batch size, got {listed}")
    return Delta(lora_a, lora_b, scaling)


def _factor(what: str, tensor: object, layer: LinearShape) -> Tensor:
    factor = _on_layer(what, tensor, layer)
    if (factor.dtype == torch.float64) != (layer.weight.dtype == torch.float64):
        raise TypeError(f"{what} is {factor.dtype}, {layer.name} {layer.weight.dtype}: float64 goes with float64 alone")
    return factor


def _on_layer(what: str, tensor: object, layer: LinearShape) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS:
        raise TypeError(f"{what}: expected a float tensor, got {_kind(tensor)}")
    if tensor.device != layer.weight.device:
        raise ValueError(f"{what} is on {tensor.device}, {layer.name} on {layer.weight.device}")
    return tensor


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {list(value.shape)}"
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
