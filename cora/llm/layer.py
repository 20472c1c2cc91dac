"""The patched linear: the frozen linear it stands for plus the low-rank path of the deltas set on it."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from cora.llm.deltas import Delta
from cora_kernels import lora_linear, lora_linear_group

# What torch.nn.Module keeps a module's forward hooks in.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class LoRALinear(nn.Module):
    """y = x·Wᵀ + bias + scaling·(x·A)·B, with W and the bias of the frozen linear `base` and the Delta set on it.

    x [B, T, K] -> y [B, T, N]; where the delta was set with `cu_seqlens`, packed [1, M, K] -> [1, M, N] as well. `base`
    is an nn.Linear or, `transposed`, one that stores W as [K, N] (GPT-2's Conv1D). `delta` stays until the next `set`:
    activation checkpointing reads it again in backward. Where it is None the output is that of `base`, for x of any
    shape. Forward hooks are those of `base`, before, during and after the patch.

    Raises RuntimeError in a forward before the first `set`, ValueError for x of another batch size than the delta's.
    """

    def __init__(self, name: str, base: nn.Module, transposed: bool) -> None:
        super().__init__()
        self.name = name
        self.base = base
        self.transposed = transposed
        self.out_features, self.in_features = self.frozen_weight.shape
        self.is_set = False
        self.delta: Delta | None = None
        self.cu_seqlens: Tensor | None = None
        self.group: SiblingGroup | None = None
        self.training = base.training
        for hooks in _HOOKS:
            setattr(self, hooks, getattr(base, hooks))

    @property
    def weight(self) -> Tensor:
        """The frozen weight as `base` stores it."""
        return cast(Tensor, self.base.weight)

    @property
    def bias(self) -> Tensor | None:
        return cast("Tensor | None", self.base.bias)

    @property
    def frozen_weight(self) -> Tensor:
        """W as [N, K], a view where `base` stores it transposed."""
        return self.weight.t() if self.transposed else self.weight

    def set(self, delta: Delta | None, cu_seqlens: Tensor | None = None) -> None:
        self.delta = delta
        self.cu_seqlens = cu_seqlens
        self.is_set = True

    def forward(self, x: Tensor) -> Tensor:
        delta = self.delta
        if delta is None:
            if not self.is_set:
                raise RuntimeError(
                    f"{self.name}: no deltas are set; call set_deltas first, "
                    "set_deltas(None) for the base model's output"
                )
            return cast(Tensor, self.base.forward(x))
        if x.dim() != 3:
            raise ValueError(
                f"{self.name}: expected x of shape [B, T, {self.in_features}], got {list(x.shape)}: a linear that does "
                "not see whole samples (an expert's, say) can have no deltas"
            )
        if delta.batch is not None and x.shape[0] != delta.batch and self.borders(x) is None:
            raise ValueError(
                f"{self.name}: x has batch size {x.shape[0]}, the deltas were set for {delta.batch}; call set_deltas "
                "for every new batch (beam search and num_return_sequences repeat samples: repeat their deltas alike)"
            )
        if self.group is not None:
            return self.group.output(self, x)
        return self.alone(x, delta)

    def borders(self, x: Tensor) -> Tensor | None:
        """cu_seqlens, if the samples of x are packed: a row of them all, where there are several."""
        cu_seqlens = self.cu_seqlens
        return cu_seqlens if cu_seqlens is not None and x.shape[0] == 1 and len(cu_seqlens) != 2 else None

    def alone(self, x: Tensor, delta: Delta) -> Tensor:
        operands = self.frozen_weight, delta.lora_a, delta.lora_b, self.bias
        cu_seqlens = self.borders(x)
        if cu_seqlens is None:
            return lora_linear(x, *operands, scaling=delta.scaling)
        return lora_linear(x[0], *operands, scaling=delta.scaling, cu_seqlens=cu_seqlens)[None]

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}"


class _Held(NamedTuple):
    """Outputs computed for siblings that have not been called yet, and what they were computed from."""

    x: Tensor
    state: tuple[bool, int]
    outputs: dict[str, Tensor]


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
        self._together: list[LoRALinear] = []
        self._open = False
        self._held: _Held | None = None

    def plan(self) -> None:
        """Chooses, for the deltas now set, the siblings that one call of the op can serve: those of one scaling."""
        self._held = None
        with_delta = [(layer, layer.delta) for layer in self.layers if layer.delta is not None]
        self._together = [layer for layer, delta in with_delta if _same(delta.scaling, with_delta[0][1].scaling)]

    def open(self, parent: nn.Module, args: Any) -> None:
        """Forward pre-hook of the parent."""
        self._open = True

    def close(self, parent: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the parent, called on errors too."""
        self._open = False
        self._held = None

    def output(self, layer: LoRALinear, x: Tensor) -> Tensor:
        held = self._held
        if held is not None and held.x is x and held.state == _state(x) and layer.name in held.outputs:
            y = held.outputs.pop(layer.name)
            if not held.outputs:
                self._held = None
            return y
        delta = cast(Delta, layer.delta)
        if not self._open or layer not in self._together:
            return layer.alone(x, delta)
        deltas = [cast(Delta, member.delta) for member in self._together]
        lora_as = [member.lora_a for member in deltas]
        cu_seqlens = layer.borders(x)
        ys = lora_linear_group(
            x if cu_seqlens is None else x[0],
            [member.frozen_weight for member in self._together],
            lora_as[0] if all(a is lora_as[0] for a in lora_as) else lora_as,
            [member.lora_b for member in deltas],
            [member.bias for member in self._together],
            scaling=delta.scaling,
            cu_seqlens=cu_seqlens,
        )
        outputs = {
            member.name: y if cu_seqlens is None else y[None] for member, y in zip(self._together, ys, strict=True)
        }
        y = outputs.pop(layer.name)
        if outputs:
            self._held = _Held(x, _state(x), outputs)
        return y


def _same(left: float | Tensor, right: float | Tensor) -> bool:
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return left is right
    return left == right


def _state(x: Tensor) -> tuple[bool, int]:
    """Whether outputs get gradients, and how often x was written to (uncounted in inference mode and while tracing)."""
    counted = not torch.compiler.is_compiling() and not x.is_inference()
    return torch.is_grad_enabled(), x._version if counted else 0
