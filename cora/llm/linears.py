"""The linears of a model by name: their sizes, and the shortest names that tell some of them from the others."""

from collections.abc import Collection
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from cora.llm.names import fits
from cora.llm.patched_linear import LoRALinear
from cora.llm.quantised import is_quantised, told_by

# Architectures that hand some linears their input as rows, the tokens of one sample after those of another.
_AS_ROWS = {"opt": ("fc1", "fc2"), "qwen2_moe": ("shared_expert_gate", "gate_proj", "up_proj", "down_proj")}

# Subclasses of nn.Linear with a forward of their own, which computes the same.
_SAME_FORMULA = ("transformers.models.falcon.modeling_falcon.FalconLinear",)


class LinearSize(NamedTuple):
    """[in_features] -> [out_features]; `transposed`: the weight is stored as [in_features, out_features]."""

    in_features: int
    out_features: int
    transposed: bool
    device: torch.device
    dtype: torch.dtype


def linear_sizes(model: nn.Module) -> dict[str, LinearSize]:
    """Every linear, Conv1D and patched linear of a model by its full name, in the model's order."""
    sizes = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LoRALinear):
            transposed = module.transposed
        elif isinstance(module, nn.Linear | Conv1D) or is_quantised(module):
            transposed = isinstance(module, Conv1D)
        else:
            continue
        if isinstance(module, Conv1D):
            size_in, size_out = module.weight.shape
        else:
            size_in, size_out = cast(Any, module).in_features, cast(Any, module).out_features
        weight = told_by(module)
        sizes[name] = LinearSize(size_in, size_out, transposed, weight.device, weight.dtype)
    return sizes


def stacked_weights(model: nn.Module) -> list[str]:
    """The names of the weights that hold one matrix for each expert: [experts, …, …], which no linear applies."""
    return [
        f"{name}.{own}"
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "experts"
        for own, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3
    ]


def is_plain(module: nn.Module) -> bool:
    """Whether a module computes x·Wᵀ + bias, as nn.Linear does or Conv1D, and nothing else."""
    kind = type(module)
    if f"{kind.__module__}.{kind.__qualname__}" in _SAME_FORMULA:
        return True
    return any(isinstance(module, plain) and kind.forward is plain.forward for plain in (nn.Linear, Conv1D))


def takes_rows(model: nn.Module, name: str) -> bool:
    """Whether the architecture hands this linear whole samples as rows [B · T, K] rather than as [B, T, K]."""
    kind = getattr(getattr(model, "config", None), "model_type", "")
    return name.rpartition(".")[2] in _AS_ROWS.get(str(kind), ())


def shortest_names(chosen: Collection[str], names: Collection[str]) -> list[str]:
    """The shortest ends of names that fit all the chosen ones and none of the others.

    >>> from cora.llm.linears import shortest_names
    >>> shortest_names(["h.0.attn.c_proj"], ["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_proj"])
    ['attn.c_proj']
    """
    ends: dict[str, None] = {}
    for name in chosen:
        parts = name.split(".")
        for start in reversed(range(len(parts))):
            end = ".".join(parts[start:])
            if all(one in chosen for one in names if fits(one, end)):
                ends[end] = None
                break
    return list(ends)
