"""Linears whose weight a quantisation library keeps in a form of its own: they run as they are, the delta is added."""

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from cora.llm.calls import Call, Calls
from cora.llm.deltas import Delta
from cora.llm.patched_linear import LoRALinear, boundaries

# Modules whose forward gives x·Wᵀ + bias, W in their own form, with a gradient to x.
_LINEARS = (
    "bitsandbytes.nn.modules.Linear4bit",
    "bitsandbytes.nn.modules.LinearFP4",
    "bitsandbytes.nn.modules.LinearNF4",
    "bitsandbytes.nn.modules.Linear8bitLt",
    "transformers.integrations.gguf.utils.GgufLinear",
)
# The libraries whose tensors, in the place of the weight of an nn.Linear, do the same.
_TENSORS = ("torchao.",)
# The base of the linears that keep W in buffers alone, as GPTQ and AWQ do: integers, and what scales them.
_PACKED = "gptqmodel.nn_modules.qlinear.BaseQuantLinear"
_SCALES = "scales"
KNOWN = "bitsandbytes, torchao, GPTQModel or GGUF"


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is a linear with a weight that one of the KNOWN libraries has quantised."""
    if _full_name(type(module)) in _LINEARS or is_packed(module):
        return True
    weight = module._parameters.get("weight") if type(module) is nn.Linear else None
    return weight is not None and _full_name(type(weight)).startswith(_TENSORS)


def is_packed(module: nn.Module) -> bool:
    """Whether a module is a quantised linear that has its W in buffers, and no weight."""
    known = any(_full_name(kind) == _PACKED for kind in type(module).__mro__)
    return known and module._buffers.get(_SCALES) is not None


def told_by(module: nn.Module) -> Tensor:
    """The tensor of a linear that tells its device and dtype: the weight, or what scales one in buffers."""
    return cast(Tensor, module._buffers[_SCALES] if is_packed(module) else module.weight)


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class QuantisedLinear(LoRALinear):
    """y = base(x) + scaling·(x·A)·B, base a linear that `is_quantised`, B added in place: one pass over y.

    Its weight, bias, buffers and state dict are those of `base`. It computes alone: siblings share no x·A.
    """

    def __init__(self, name: str, base: nn.Module, calls: Calls, rows: bool = False) -> None:
        super().__init__(name, base, False, calls, rows)
        self._buffers = base._buffers

    def _hold(self, base: nn.Module) -> None:
        self.weight, self.bias = cast(nn.Parameter, base.weight), cast("nn.Parameter | None", base.bias)
        self.in_features, self.out_features = cast(Any, base).in_features, cast(Any, base).out_features

    def keep_packed(self, keep: bool = True) -> None:
        """Nothing is packed of a weight that is no matrix."""

    def frozen(self, x: Tensor) -> Tensor:
        y: Tensor = self.base.forward(x)
        return y

    def alone(self, x: Tensor, call: Call) -> Tensor:
        y = self.frozen(x)
        delta, cu_seqlens = call.deltas[self.name], boundaries(call, x)
        if cu_seqlens is None:
            return _add(y, x, delta)
        # Sample by sample; written into parts of y each would be a node of its own in the way of y's gradient.
        starts, rows, flat = cu_seqlens.tolist(), y.flatten(0, 1), x.flatten(0, 1)
        added = []
        for sample, (start, stop) in enumerate(pairwise(starts)):
            zeros = torch.zeros_like(rows[None, start:stop])
            added.append(_add(zeros, flat[None, start:stop], _of_sample(delta, sample)))
        return rows.add_(torch.cat(added, 1)[0]).view_as(y)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.base._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        base = self.base
        base._load_from_state_dict(*arguments)
        self._parameters.update(base._parameters)


class PackedLinear(QuantisedLinear):
    """A QuantisedLinear whose base `is_packed`. Its `weight` are the scales, which tell device and dtype."""

    def _hold(self, base: nn.Module) -> None:
        self.in_features, self.out_features = cast(Any, base).in_features, cast(Any, base).out_features

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return cast(Tensor, self._buffers[_SCALES])

    @property
    def base(self) -> nn.Module:
        return self._base[0]

    def frozen(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled() and not cast(Any, self.base).SUPPORTS_TRAINING:
            raise RuntimeError(
                f"{self.name}: {type(self.base).__name__} has no gradient to x; to train, load the model for "
                "GPTQModel's backend `torch`"
            )
        return super().frozen(x)

    def train(self, mode: bool = True) -> "PackedLinear":
        """Of the base too, whose kernels may have no gradient but while it trains."""
        self.base.train(mode)
        return cast(PackedLinear, super().train(mode))


def _of_sample(delta: Delta, sample: int) -> Delta:
    """The delta of one sample, as a batch of it alone."""
    one = slice(sample, sample + 1)
    lora_a, lora_b = (factor[one] if factor.dim() == 3 else factor for factor in delta[:2])
    scaling = delta.scaling
    return Delta(lora_a, lora_b, scaling[one] if isinstance(scaling, Tensor) else scaling)


def _add(y: Tensor, x: Tensor, delta: Delta) -> Tensor:
    """y [B, T, N], with scaling·(x·A)·B of x [B, T, K] added to it in place."""
    low = x.to(y.dtype) @ delta.lora_a.to(y.dtype)
    alpha = 1.0
    if isinstance(delta.scaling, Tensor):
        low = low * delta.scaling.to(low)[:, None, None]
    else:
        alpha = delta.scaling
    lora_b = delta.lora_b.to(y.dtype)
    return y.baddbmm_(low, lora_b.expand(len(y), -1, -1), alpha=alpha)
