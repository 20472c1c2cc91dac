"""Finds the linears to adapt in a causal LM, puts patched ones in their place, reports, and undoes it."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cora.llm.calls import Call, Calls
from cora.llm.concat import excluded_from_concat, make_room_where_it_pays
from cora.llm.deltas import FLOATS, Delta, checked
from cora.llm.linears import is_plain, stacked_weights, takes_rows
from cora.llm.names import fits, layer_index
from cora.llm.patched_linear import LoRALinear, SiblingGroup
from cora.llm.quantised import KNOWN, PackedLinear, QuantisedLinear, is_packed, is_quantised
from cora.llm.resizing import allow_resizing, refuse_resizing

ALL_LINEAR = "all-linear"

# Linears that one parent module applies to the same input, by the names that Hugging Face models give them.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("query", "key", "value"), ("w1", "w3"))


class _Place(NamedTuple):
    """Where a linear stood: parent.child was layer.base, and the patched layer is there now."""

    parent: nn.Module
    child: str
    layer: LoRALinear


class Patch:
    """The handle of a patched model, made by `patch`: y_i = x_i·Wᵀ + scaling·(x_i·A_i)·B_i in every patched linear.

    `layers` maps the full name of every patched linear to its LoRALinear, in the model's order; `groups` holds the
    names of those computed together; `unmatched` the target modules that matched nothing; `frozen` the names of the
    linears whose weight required a gradient; `not_concatenated` says by name why `concat` leaves a weight where it is.
    str(patch) is the report.
    """

    def __init__(
        self,
        model: nn.Module,
        calls: Calls,
        places: list[_Place],
        groups: list[tuple[nn.Module, SiblingGroup]],
        unmatched: list[str],
        concat: bool | None = None,
    ) -> None:
        self.model = model
        self.calls = calls
        self.layers = {place.layer.name: place.layer for place in places}
        self.groups = tuple(tuple(layer.name for layer in group.layers) for _, group in groups)
        self.unmatched = tuple(unmatched)
        self._places = places
        self._handles = []
        for parent, group in groups:
            self._handles.append(parent.register_forward_pre_hook(group.open))
            self._handles.append(parent.register_forward_hook(group.close, always_call=True))
            for layer in group.layers:
                layer.group = group
        self._removed = False
        trainable = {name: layer for name, layer in self.layers.items() if layer.weight.requires_grad}
        self.frozen = tuple(trainable)
        self._frozen_weights = [layer.weight for layer in trainable.values()]
        for weight in self._frozen_weights:
            weight.requires_grad_(False)
        for place in places:
            place.layer.keep_packed()
            setattr(place.parent, place.child, place.layer)
        self.concat = concat
        if any(layer is _output_layer(model) for layer in self.layers.values()):
            refuse_resizing(model)

    @cached_property
    def not_concatenated(self) -> dict[str, str]:
        return excluded_from_concat(self.model, self.layers.values())

    def _asks_for_room(self) -> bool:
        on_gpu = next(iter(self.layers.values())).weight.device.type == "cuda"
        asks = on_gpu if self.concat is None else self.concat
        return asks and not torch.compiler.is_compiling()

    @cached_property
    def inputs(self) -> tuple[tuple[str, ...], ...]:
        """The names of the patched linears, those of one input together."""
        grouped = {name: names for names in self.groups for name in names}
        return tuple(dict.fromkeys(grouped.get(name, (name,)) for name in self.layers))

    def set_deltas(
        self, deltas: Mapping[str, Delta | tuple[Tensor, ...]] | None, cu_seqlens: Tensor | None = None
    ) -> None:
        """Sets what the patched linears add in this thread's forwards, until the next call; None asks for the base
        model's output. Every forward keeps its own: what is set later changes neither its backward nor what activation
        checkpointing (use_reentrant=False) computes again for it. Threads set their own; one that has set none uses
        those of the thread that patched the model.

        deltas: name -> (lora_a, lora_b) or (lora_a, lora_b, scaling). A name is the full name of a patched linear,
        the end of one ("q_proj", "self_attn.q_proj", meaning all that end so), or "*" for all of them; where several
        fit a linear, the longest holds. A linear that none fits gives its frozen output. lora_a [B, K, r] or shared
        [K, r]; lora_b [B, r, N] or shared [r, N], either with gradients; scaling a float (default 1.0) or a tensor
        [B]. All float dtypes, float64 where the linear is. One B throughout. The tensors are kept, not
        copied. cu_seqlens: int32 [B + 1], as flash attention has it, if the samples may come packed, all in one row of
        tokens [1, M].

        Raises KeyError for a name that fits no patched linear, TypeError for a value that is not such a tuple,
        ValueError for an empty mapping and for wrong shapes, dtypes or devices, RuntimeError once removed; nothing is
        set then.
        """
        self.calls.set(self.call(deltas, cu_seqlens))

    def call(self, deltas: Mapping[str, Delta | tuple[Tensor, ...]] | None, cu_seqlens: Tensor | None = None) -> Call:
        """The checked Call that `set_deltas` sets."""
        if self._removed:
            raise RuntimeError("this patch was removed; call cora.patch again")
        chosen = {} if deltas is None else self._choose(deltas)
        if cu_seqlens is not None:
            _check_cu_seqlens(cu_seqlens, chosen)
        if self._asks_for_room():
            for names in self.inputs:
                layers = [self.layers[name] for name in names if name in chosen]
                if not any(layer.name in self.not_concatenated for layer in layers):
                    make_room_where_it_pays(layers, chosen, always=self.concat is True)
        return Call(chosen, cu_seqlens, backward=torch._C._current_graph_task_id())

    def refresh(self) -> None:
        """Has the frozen weights read anew: after a write to a few of their elements that torch does not count (through
        `.data`, NumPy, shared memory).

        For the CPU kernels, which keep packed copies of the weights that were there when the model was patched. Those
        of a weight that was replaced since are freed.
        """
        for layer in self.layers.values():
            layer.refresh_packed()

    def remove(self) -> None:
        """Puts the very same linears back, their requires_grad as it was. A second call does nothing.

        Raises RuntimeError, before anything is changed, if something else replaced a patched linear meanwhile.
        """
        if self._removed:
            return
        for place in self._places:
            if getattr(place.parent, place.child) is not place.layer:
                raise RuntimeError(f"{place.layer.name}: was replaced after the patch; undo that first")
        allow_resizing(self.model)
        for place in self._places:
            setattr(place.parent, place.child, place.layer.base)
            place.layer.give_up_room()
            place.layer.keep_packed(False)
        for handle in self._handles:
            handle.remove()
        for weight in self._frozen_weights:
            weight.requires_grad_(True)
        self._removed = True

    def __str__(self) -> str:
        lines = [f"patched {len(self.layers)} linears of {type(self.model).__name__}"]
        together = {name: names for names in self.groups for name in names}
        rows: dict[tuple[str, int, int, str], list[int]] = {}
        for name, layer in self.layers.items():
            index = layer_index(name)
            shown = _of_any_layer(name)
            siblings = ", ".join(sibling.rpartition(".")[2] for sibling in together.get(name, ()))
            row = rows.setdefault((shown, layer.in_features, layer.out_features, siblings), [])
            row += [] if index is None else [index]
        for (shown, width_in, width_out, siblings), indices in rows.items():
            where = f"  # = {_ranges(indices)}" if indices else ""
            lines.append(
                f"  {shown}  {width_in} -> {width_out}{where}" + (f"  one group: {siblings}" if siblings else "")
            )
        if self.frozen:
            lines.append(f"  frozen until remove(): {len(self.frozen)} weights that required a gradient")
        if self.concat and self.not_concatenated:
            reasons = dict.fromkeys(f"{_of_any_layer(name)} ({why})" for name, why in self.not_concatenated.items())
            lines.append(f"  not concatenated: {', '.join(reasons)}")
        if stacked := dict.fromkeys(_of_any_layer(name) for name in stacked_weights(self.model)):
            lines.append(f"  no linears, so without deltas: {', '.join(stacked)}")
        if self.unmatched:
            lines.append(f"  matched nothing: {', '.join(self.unmatched)}")
        return "\n".join(lines)

    def _choose(self, deltas: Mapping[str, Delta | tuple[Tensor, ...]]) -> dict[str, Delta]:
        """The checked delta of every linear that a name of `deltas` fits."""
        if not deltas:
            raise ValueError("deltas: empty; pass None for the base model's output")
        keys: dict[str, str] = {}
        for key in sorted(deltas, key=lambda key: (key != "*", len(key))):
            fitting = [key] if key in self.layers else [name for name in self.layers if key == "*" or fits(name, key)]
            if not fitting:
                ends = dict.fromkeys(name.rpartition(".")[2] for name in self.layers)
                raise KeyError(f"deltas: no patched linear is named {key!r} or ends so; patched are {', '.join(ends)}")
            keys.update(dict.fromkeys(fitting, key))
        chosen: dict[str, Delta] = {}
        first: str | None = None
        for name, key in keys.items():
            delta = chosen[name] = checked(f"deltas[{key!r}]", deltas[key], self.layers[name])
            if delta.batch is not None:
                first = first or name
                if delta.batch != chosen[first].batch:
                    raise ValueError(
                        f"deltas[{key!r}]: batch size {delta.batch} for {name}, but {chosen[first].batch} for {first}"
                    )
        return chosen


def patch(
    model: nn.Module,
    target_modules: Sequence[str] | str = ("q_proj", "k_proj", "v_proj", "o_proj"),
    layers: Sequence[int] | None = None,
    concat: bool | None = None,
) -> Patch:
    """Makes y_i = x_i·Wᵀ + scaling·(x_i·A_i)·B_i of the chosen linears of `model`, with A and B live tensors per
    sample.

    >>> patch = cora.patch(model, ["q_proj", "v_proj"])
    patched 4 linears of LlamaForCausalLM
    ...
    >>> patch.set_deltas({"q_proj": (lora_a, lora_b, scaling)})  # lora_a [B, K, r], lora_b [B, r, N], with gradients
    >>> model(input_ids).logits.sum().backward()
    >>> lora_a.grad.shape == lora_a.shape
    True
    >>> patch.remove()

    model: a Hugging Face causal LM. target_modules: names of nn.Linear or Conv1D modules, or ends of names ("q_proj",
    "self_attn.q_proj"); or "all-linear", every one of them but the output layer, as in PEFT. Experts whose weights are
    stacked in one parameter are no linears; the report names them. layers: only modules of these layers, by the first
    number in their name. Their weights are frozen while patched (there is no dW). Siblings that share an input (q, k
    and v; gate and up) are computed in one call. The state dict is that of the unpatched model. A deep copy of the
    model has the deltas set at that moment, for good; a deep copy of the handle holds a copied model of its own,
    `handle.model`. Prints the report and returns the handle. Activation checkpointing needs use_reentrant=False.

    On a CPU the kernels keep packed copies of the frozen weights, as large as they are, one for the forward and one for
    the backward. They notice when a weight changes: every write that torch counts, other memory behind it, another
    Parameter in its place (of which nothing is kept, as under FSDP), and a write through `.data`, NumPy or shared
    memory that changes most of it (an average of weights copied in, offloading). After such a write to a few elements
    or rows, call `patch.refresh()`.

    concat: whether x·Wᵀ + S·B is one product, [x | S]·[W | Bᵀ]ᵀ, where the batch shares lora_b (as CoRA's does), on any
    device. True: wherever it can be; False: never; None: on GPUs, where the cost rule finds it faster. While patched,
    those weights lie in buffers with room for Bᵀ, (K + 64) / K times as large up to rank 64, from the first deltas that
    share a lora_b on: set those before other threads run the model, and after sharding, as FSDP takes contiguous
    weights alone. The state dict is contiguous as ever, and remove() puts the weights back bit for bit. Tied and
    quantised weights stay where they are: the report names them if `concat` is True.

    Linears that bitsandbytes (4 and 8 bit), torchao, GPTQModel (GPTQ and AWQ) or transformers' GGUF loader have
    quantised run as they are, and the delta is added to what they give, in place.

    Raises TypeError if a target is no plain nn.Linear or Conv1D and none of those (quantised in another way, an
    embedding, wrapped by PEFT), ValueError if nothing matches, for a layer that does not exist, for a model already
    patched, or for a linear that cannot be wrapped. Nothing is changed then.
    """
    targets, wanted = _check_arguments(model, target_modules, layers)
    if concat not in (True, False, None):
        raise TypeError(f"concat: expected True, False or None, got {concat!r}")
    found, unmatched = _find(model, targets, wanted)
    calls = Calls()
    replaced: dict[int, LoRALinear] = {}
    places = []
    for name, base in found:
        layer = replaced.setdefault(id(base), _patched(name, base, calls, takes_rows(model, name)))
        parent_name, _, child = name.rpartition(".")
        places.append(_Place(model.get_submodule(parent_name), child, layer))
    result = Patch(model, calls, places, _groups(places), unmatched, concat)
    print(result)
    return result


def _patched(name: str, base: nn.Module, calls: Calls, rows: bool) -> LoRALinear:
    if is_quantised(base):
        return (PackedLinear if is_packed(base) else QuantisedLinear)(name, base, calls, rows)
    return LoRALinear(name, base, isinstance(base, Conv1D), calls, rows)


def _output_layer(model: nn.Module) -> nn.Module | None:
    find = getattr(model, "get_output_embeddings", None)
    return None if find is None else find()


def _check_cu_seqlens(cu_seqlens: Tensor, chosen: Mapping[str, Delta]) -> None:
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1:
        got = f"{cu_seqlens.dtype} {list(cu_seqlens.shape)}" if isinstance(cu_seqlens, Tensor) else cu_seqlens
        raise TypeError(f"cu_seqlens: expected an int32 tensor [B + 1], got {got}")
    batch = next((delta.batch for delta in chosen.values() if delta.batch is not None), None)
    if batch is not None and len(cu_seqlens) != batch + 1:
        raise ValueError(f"cu_seqlens: expected [{batch + 1}], deltas of {batch} samples, got {list(cu_seqlens.shape)}")


def _check_arguments(
    model: nn.Module, target_modules: Sequence[str] | str, layers: Sequence[int] | None
) -> tuple[list[str], set[int] | None]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if target_modules == ALL_LINEAR:
        target_modules = [ALL_LINEAR]
    if isinstance(target_modules, str) or not all(isinstance(target, str) for target in target_modules):
        raise TypeError(
            f"target_modules: expected a sequence of module names or {ALL_LINEAR!r}, got {target_modules!r}"
        )
    if not target_modules:
        raise ValueError("target_modules: empty")
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            raise ValueError(f"model: already patched ({name}); call remove() on that patch first")
    if layers is None:
        return list(target_modules), None
    wanted = list(layers)
    if not all(isinstance(index, int) and not isinstance(index, bool) for index in wanted):
        raise TypeError(f"layers: expected whole numbers, got {layers!r}")
    existing = {index for name, _ in model.named_modules() if (index := layer_index(name)) is not None}
    if missing := [index for index in wanted if index not in existing]:
        raise ValueError(f"layers: {missing} not in the model, which has layers {_ranges(sorted(existing)) or 'none'}")
    if not wanted:
        raise ValueError("layers: empty; None means all layers")
    return list(target_modules), set(wanted)


def _find(
    model: nn.Module, targets: list[str], layers: set[int] | None
) -> tuple[list[tuple[str, nn.Module]], list[str]]:
    """The named linears to patch, under every name a shared one has, and the targets that matched none."""
    found = []
    matched = set()
    head = _output_layer(model)
    for name, module in model.named_modules(remove_duplicate=False):
        is_inner = _is_linear(module) and module is not head
        hits = [target for target in targets if fits(name, target) or (target == ALL_LINEAR and is_inner)]
        if not hits or (layers is not None and layer_index(name) not in layers):
            continue
        _check_patchable(name, module)
        matched.update(hits)
        found.append((name, module))
    if not found:
        linears = dict.fromkeys(name.rpartition(".")[2] for name, module in model.named_modules() if _is_linear(module))
        raise ValueError(
            f"target_modules: {', '.join(targets)} match nothing in {type(model).__name__}; its linears are named "
            f"{', '.join(linears) or '(it has none)'}"
        )
    return found, [target for target in targets if target not in matched]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D) or is_quantised(module)


def _check_patchable(name: str, module: nn.Module) -> None:
    # A subclass that computes its forward in its own way holds more than a weight and a bias.
    quantised = is_quantised(module)
    if not quantised and (not is_plain(module) or module.weight.dtype not in FLOATS):
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        raise TypeError(
            f"target_modules: {name} is a {kind}, expected a plain torch.nn.Linear or transformers' Conv1D, "
            f"or a linear quantised by {KNOWN}"
        )
    if "weight" not in module._parameters and not is_packed(module):
        raise TypeError(
            f"target_modules: {name} makes its weight anew (is it pruned or parametrised?); undo that first"
        )
    if not quantised and type(module.weight) is not nn.Parameter:
        kind = f"{type(module.weight).__module__}.{type(module.weight).__qualname__}"
        raise TypeError(f"target_modules: the weight of {name} is a {kind}, expected a plain torch.nn.Parameter")
    if "forward" in vars(module):
        raise ValueError(
            f"target_modules: the forward of {name} was replaced (by offloading?); a patch would bypass it"
        )
    if module._backward_hooks or module._backward_pre_hooks:
        raise ValueError(f"target_modules: {name} has backward hooks, which a patch would bypass; remove them first")


def _groups(places: Iterable[_Place]) -> list[tuple[nn.Module, SiblingGroup]]:
    """Each parent with the patched siblings it applies to one input."""
    groups = []
    children: dict[int, tuple[nn.Module, dict[str, LoRALinear]]] = {}
    for place in places:
        children.setdefault(id(place.parent), (place.parent, {}))[1][place.child] = place.layer
    for parent, layers in children.values():
        for names in _SIBLINGS:
            siblings = [layers[name] for name in names if name in layers]
            siblings = [layer for layer in siblings if not isinstance(layer, QuantisedLinear)]
            if len(siblings) > 1 and len({layer.in_features for layer in siblings}) == 1:
                groups.append((parent, SiblingGroup(siblings)))
    return groups


def _of_any_layer(name: str) -> str:
    index = layer_index(name)
    return name if index is None else name.replace(f".{index}.", ".#.", 1)


def _ranges(indices: list[int]) -> str:
    """0-5, 8 for 0, 1, 2, 3, 4, 5, 8."""
    starts = [i for i in indices if i - 1 not in indices]
    ends = [i for i in indices if i + 1 not in indices]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
