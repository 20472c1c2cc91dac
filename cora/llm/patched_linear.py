"""The patched linear: the frozen linear it stands for plus the low-rank path of the deltas of the call."""

import threading
import weakref
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from cora.llm.calls import Call, Calls
from cora.llm.deltas import Delta
from cora_kernels import lora_linear, lora_linear_group
from cora_kernels.backends.weight_packs import keep_packed, refresh_packed, release_packed
from cora_kernels.backends.wide_weights import give_up_room, make_room, room_of
from cora_kernels.dispatch import asked

# What torch.nn.Module keeps a module's forward hooks in.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class _Kept:
    """The weight of which packed copies are kept for a layer, or none. A copy of this has none."""

    weight: weakref.ref[Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, ()


class LoRALinear(nn.Module):
    """y = x·Wᵀ + bias + scaling·(x·A)·B, with W and the bias of a frozen linear and the Delta of the running call.

    x [B, T, K] -> y [B, T, N]; where the deltas were set with `cu_seqlens`, packed [1, M, K] -> [1, M, N] as well. Of a
    Call whose samples lie within the rows of a batch, several a row, x is [B, T, K] too, B not their number.
    base: an nn.Linear or, `transposed`, one that stores W as [K, N] (GPT-2's Conv1D). `rows`: the model lays out x as
    [B · T, K] here, and y as [B · T, N]. Weight and bias are here by the names that they had there, so that a state
    dict, an optimizer or sharding sees the base model. Where the call has no delta for it the output is that of `base`,
    for x of any shape. Forward hooks are those of `base`, before, during and after the patch.

    Raises RuntimeError in a forward before the first deltas, ValueError for x of another batch size than the deltas'.
    """

    def __init__(self, name: str, base: nn.Module, transposed: bool, calls: Calls, rows: bool = False) -> None:
        super().__init__()
        self.name = name
        self.transposed = transposed
        self.rows = rows
        self.calls = calls
        self._hold(base)
        self.nf = self.out_features  # its name in Conv1D's forward
        self.group: SiblingGroup | None = None
        self.training = base.training
        self._base = (base,)  # in a tuple: it is no part of the model meanwhile
        for hooks in _HOOKS:
            setattr(self, hooks, getattr(base, hooks))
        self._keeps = False
        self._kept = _Kept()
        self.room = 0

    def _hold(self, base: nn.Module) -> None:
        """Takes the tensors and the sizes of the linear."""
        self.weight = cast(nn.Parameter, base.weight)
        self.bias = cast("nn.Parameter | None", base.bias)
        self.out_features, self.in_features = self.frozen_weight.shape

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._keeps:
            self.keep_packed()
        if self.room:
            self.make_room(self.room)

    def keep_packed(self, keep: bool = True) -> None:
        """Has the CPU kernels keep their packed copies of the weight that is here now, or keep none any more.

        Only of a frozen plain Parameter: what others hold may change by writes that cannot be seen.
        """
        before = None if self._kept.weight is None else self._kept.weight()
        if before is not None:
            release_packed(before)
        weight = self.weight
        self._keeps = keep
        self._kept.weight = None
        if keep and type(weight) is nn.Parameter and not weight.requires_grad:
            keep_packed(weight)
            self._kept.weight = weakref.ref(weight)

    def refresh_packed(self) -> None:
        """Has the weight packed anew. If it is another one, which may be gathered anew in every step, keeps none."""
        if self._kept.weight is not None and self._kept.weight() is self.weight:
            refresh_packed(self.weight)
        else:
            self.keep_packed(False)

    def make_room(self, rank: int) -> None:
        """Lays the weight out so that a shared lora_b of up to this rank is multiplied along with it: `wide_weights`.

        `room` then says up to which rank. Only of the weight that was frozen, of which packs are kept as well: another
        one, which FSDP gathers anew, say, must stay where it is.
        """
        if self._kept.weight is not None and self._kept.weight() is self.weight:
            make_room(self.weight, rank, self.transposed)
        self.room = room_of(self.weight)

    def give_up_room(self) -> None:
        give_up_room(self.weight)
        self.room = 0

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.room and not keep_vars:
            destination[f"{prefix}weight"] = destination[f"{prefix}weight"].contiguous()

    @property
    def base(self) -> nn.Module:
        """The linear that this one stands for, with the weight and the bias that are here now."""
        base = self._base[0]
        base._parameters["weight"], base._parameters["bias"] = self.weight, self.bias
        return base

    @property
    def frozen_weight(self) -> Tensor:
        """W as [N, K], a view where it is stored transposed."""
        return self.weight.t() if self.transposed else self.weight

    @property
    def delta(self) -> Delta | None:
        """That of the call, as this thread has set it."""
        call = self.calls.current()
        return None if call is None else call.deltas.get(self.name)

    def forward(self, x: Tensor) -> Tensor:
        call = self.calls.current()
        if call is None:
            raise RuntimeError(
                f"{self.name}: no deltas are set; call set_deltas first, set_deltas(None) for the base model's output"
            )
        delta = call.deltas.get(self.name)
        if delta is None:
            return self.calls.mark(self.frozen(x), call)
        if self.rows and x.dim() == 2:
            batch = (delta.batch or 1) if call.cu_seqlens is None else 1
            if len(x) % batch == 0:
                return self.calls.mark(self.alone(x.unflatten(0, (batch, -1)), call).flatten(0, 1), call)
        if x.dim() != 3:
            raise ValueError(
                f"{self.name}: expected x of shape [B, T, {self.in_features}], got {list(x.shape)}: a linear that does "
                "not see whole samples (an expert's, say) can have no deltas"
            )
        if delta.batch is not None and x.shape[0] != delta.batch and boundaries(call, x) is None:
            raise ValueError(
                f"{self.name}: x has batch size {x.shape[0]}, the deltas were set for {delta.batch}; call set_deltas "
                "for every new batch (beam search and num_return_sequences repeat samples: repeat their deltas alike)"
            )
        y = self.alone(x, call) if self.group is None else self.group.output(self, x, call)
        return self.calls.mark(y, call)

    def frozen(self, x: Tensor) -> Tensor:
        """What `base` gives, by its own forward on the weight and the bias that are here."""
        y: Tensor = type(self._base[0]).forward(self, x)
        return y

    def alone(self, x: Tensor, call: Call) -> Tensor:
        lora_a, lora_b, scaling = call.deltas[self.name]
        operands = self.frozen_weight, lora_a, lora_b, self.bias
        cu_seqlens, backend = boundaries(call, x), _backend([self], call)
        if cu_seqlens is None:
            return lora_linear(x, *operands, scaling=scaling, backend=backend)
        rows = lora_linear(x.flatten(0, 1), *operands, scaling=scaling, cu_seqlens=cu_seqlens, backend=backend)
        return rows.unflatten(0, x.shape[:2])

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}"


def boundaries(call: Call, x: Tensor) -> Tensor | None:
    """cu_seqlens, if the samples of x are not its rows: one row of them all, where there are several, or rows of
    several."""
    cu_seqlens = call.cu_seqlens
    if cu_seqlens is None or call.within:
        return cu_seqlens
    return cu_seqlens if x.shape[0] == 1 and len(cu_seqlens) != 2 else None


class _Held(NamedTuple):
    """Outputs computed for siblings that have not been called yet, and what they were computed from."""

    x: Tensor
    call: Call
    state: tuple[bool, int]
    outputs: dict[str, Tensor]


class _Forward(threading.local):
    """Of a parent's forward in this thread: whether one runs, and the outputs that it holds. A copy starts anew."""

    # In every thread from the start: an attribute that appears later would be a reason for torch.compile to recompile.
    def __init__(self) -> None:
        self.running = False
        self.held: _Held | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Forward, ()


class SiblingGroup:
    """Patched linears which their parent module applies to one x: q, k and v, or gate and up.

    The first one called computes the outputs of all by one lora_linear_group, so that x·A is computed once where A is
    one tensor; each sibling then called with that very tensor, unchanged, takes its own. Only inside the parent's
    forward: what nobody has taken when that ends, by an error too, is dropped. So nothing outlives a forward, and the
    recomputation of activation checkpointing, being another forward of the parent, computes anew. Called otherwise,
    each computes alone.
    """

    def __init__(self, layers: list[LoRALinear]) -> None:
        self.layers = layers
        self._forward = _Forward()

    def open(self, parent: nn.Module, args: Any) -> None:
        """Forward pre-hook of the parent."""
        self._forward.running = True

    def close(self, parent: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the parent, called on errors too."""
        self._forward.running = False
        self._forward.held = None

    def output(self, layer: LoRALinear, x: Tensor, call: Call) -> Tensor:
        forward = self._forward
        held = forward.held
        if held is not None and _holds(held, x, call) and layer.name in held.outputs:
            y = held.outputs.pop(layer.name)
            if not held.outputs:
                forward.held = None
            return y
        together = self._together(layer, call) if forward.running else []
        if len(together) < 2:
            return layer.alone(x, call)
        outputs = _outputs(together, x, call)
        y = outputs.pop(layer.name)
        forward.held = _Held(x, call, _state(x), outputs)
        return y

    def _together(self, layer: LoRALinear, call: Call) -> list[LoRALinear]:
        """The siblings that one call of the op can serve: those with a delta of the layer's scaling."""
        scaling = call.deltas[layer.name].scaling
        deltas = [(member, call.deltas.get(member.name)) for member in self.layers]
        return [member for member, delta in deltas if delta is not None and _same(delta.scaling, scaling)]


def _outputs(layers: list[LoRALinear], x: Tensor, call: Call) -> dict[str, Tensor]:
    deltas = [call.deltas[layer.name] for layer in layers]
    lora_as = [delta.lora_a for delta in deltas]
    cu_seqlens = boundaries(call, x)
    ys = lora_linear_group(
        x if cu_seqlens is None else x.flatten(0, 1),
        [layer.frozen_weight for layer in layers],
        lora_as[0] if all(a is lora_as[0] for a in lora_as) else lora_as,
        [delta.lora_b for delta in deltas],
        [layer.bias for layer in layers],
        scaling=deltas[0].scaling,
        cu_seqlens=cu_seqlens,
        backend=_backend(layers, call),
    )
    if cu_seqlens is not None:
        ys = tuple(y.unflatten(0, x.shape[:2]) for y in ys)
    return {layer.name: y for layer, y in zip(layers, ys, strict=True)}


def _backend(layers: list[LoRALinear], call: Call) -> str | None:
    """ "concat" where every weight has room for a lora_b that the batch shares, and `use_backend` names no other."""
    lora_bs = [call.deltas[layer.name].lora_b for layer in layers]
    fits = all(b.dim() == 2 and b.shape[0] <= layer.room for layer, b in zip(layers, lora_bs, strict=True))
    return "concat" if fits and asked(None) is None else None


def _holds(held: _Held, x: Tensor, call: Call) -> bool:
    """Whether the outputs held are those of this x, unchanged, in this call."""
    return held.x is x and held.call is call and held.state == _state(x)


def _same(left: float | Tensor, right: float | Tensor) -> bool:
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return left is right
    return left == right


def _state(x: Tensor) -> tuple[bool, int]:
    """Whether outputs get gradients, and how often x was written to (uncounted in inference mode and while tracing)."""
    counted = not torch.compiler.is_compiling() and not x.is_inference()
    return torch.is_grad_enabled(), x._version if counted else 0
