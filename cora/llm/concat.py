"""Which patched linears compute x·Wᵀ + S·B as one product [x | S]·[W | Bᵀ]ᵀ: where lora_b is shared, and it pays."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from cora.llm.deltas import Delta
from cora.llm.patched_linear import LoRALinear
from cora.llm.quantised import QuantisedLinear
from cora_kernels import dispatch
from cora_kernels.backends.wide_weights import room_of
from cora_kernels.planning import choose
from cora_kernels.planning.cost import Problem
from cora_kernels.planning.gpus import gpu_of

# Rows of a batch that the rule is asked about, once, before any is there: what it says changes little with them.
_ROWS = 8192


def excluded_from_concat(model: nn.Module, layers: Iterable[LoRALinear]) -> dict[str, str]:
    """The layers whose weight must stay where it is, by name, and why: others hold it, or it is no matrix."""
    holders: Counter[int] = Counter()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if type(parameter) is nn.Parameter:
                holders[parameter.untyped_storage().data_ptr()] += 1
    excluded = {}
    for layer in layers:
        if isinstance(layer, QuantisedLinear):
            excluded[layer.name] = "quantised"
        elif type(layer.weight) is not nn.Parameter:
            excluded[layer.name] = f"a {type(layer.weight).__name__}"
        elif layer.weight.is_meta:
            excluded[layer.name] = "without data"
        elif holders[layer.weight.untyped_storage().data_ptr()] > 1:
            excluded[layer.name] = "tied"
    return excluded


def make_room_where_it_pays(layers: Sequence[LoRALinear], deltas: Mapping[str, Delta], always: bool) -> None:
    """Makes room in the weights of all linears of one input, if the batch shares the lora_b of each, and `always` or
    the cost rule says so."""
    lora_bs = [deltas[layer.name].lora_b for layer in layers]
    if any(b.dim() == 3 for b in lora_bs):
        return
    lacking = [(layer, b) for layer, b in zip(layers, lora_bs, strict=True) if room_of(layer.weight) < b.shape[0]]
    if lacking and (always or _pays(layers, deltas)):
        for layer, b in lacking:
            layer.make_room(b.shape[0])


def _pays(layers: Sequence[LoRALinear], deltas: Mapping[str, Delta]) -> bool:
    weight = layers[0].weight
    backend = dispatch.gpu_backend(None)
    if weight.dtype not in choose.DTYPES[backend]:
        return False
    first = deltas[layers[0].name]
    problems = tuple(
        Problem(
            rows=_ROWS,
            inputs=layer.in_features,
            outputs=layer.out_features,
            rank=deltas[layer.name].lora_b.shape[0],
            samples=first.batch or 1,
            length=None,
            dtype=weight.dtype,
            sample_a=first.batch is not None,
            s_given=j > 0 and deltas[layer.name].lora_a is first.lora_a,
        )
        for j, layer in enumerate(layers)
    )
    return choose.concatenates(problems, gpu_of(weight.device), backend)
