"""What a patched model has beside its adapted linears, by kernels: the norms, MLPs and position embeddings of Llama's
kind, which read a row once where torch's operators read it often, and the other linears."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from cora.llm.calls import Calls
from cora_kernels.frozen_linear import frozen_linear
from cora_kernels.pointwise import rms_norm, rotary, silu_gate

# Architectures whose norm is weight · x / sqrt(mean(x²) + eps), whose MLP is down(silu(gate(x)) · up(x)) and whose
# attention turns whole heads, half by half: those that the tests compare.
_ARCHITECTURES = ("granite", "llama", "mistral", "qwen2", "qwen3", "smollm3")
# What their attention calls to turn queries and keys: a function of the module that defines it.
_ROTARY = "apply_rotary_pos_emb"


class Pointwise:
    """The norms, MLPs, attentions and linears of a patched `base`, until `remove`: the same modules, of a subclass with
    another forward.

    A forward without deltas is the base model's own, bit for bit; so are models of other architectures.
    """

    def __init__(self, base: PreTrainedModel, calls: Calls) -> None:
        self._replaced: list[tuple[nn.Module, type[nn.Module]]] = []
        config = base.config
        if config.model_type not in _ARCHITECTURES or config.hidden_act not in ("silu", "swish"):
            return
        made: dict[type[nn.Module], type[nn.Module]] = {}
        module: Any
        for module in base.modules():
            kind: type[nn.Module] = type(module)
            # A forward that was replaced for this module, by offloading say, is not bypassed.
            if "forward" in vars(module):
                continue
            if kind not in made:
                ours = next((one(kind) for end, one in _FORWARDS.items() if kind.__name__.endswith(end)), None)
                made[kind] = kind if ours is None else _with_forward(kind, ours)
            if made[kind] is kind:
                continue
            self._replaced.append((module, kind))
            module.__class__ = made[kind]
            # Where a copy of the model finds its own calls, as the patched linears do.
            module.cora_calls = calls

    def remove(self) -> None:
        for module, kind in self._replaced:
            module.__class__ = kind
            del module.cora_calls
        self._replaced = []


def _with_forward(kind: Any, ours: Callable[..., Any]) -> type[nn.Module]:
    def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
        call = module.cora_calls.current()
        own = ours if call is not None and call.deltas else kind.forward
        return own(module, *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, module.weight, module.variance_epsilon)


def _linear(module: Any, input: Tensor) -> Tensor:
    return frozen_linear(input, module.weight, module.bias)


def _mlp(module: Any, x: Tensor) -> Tensor:
    out: Tensor = module.down_proj(silu_gate(module.gate_proj(x), module.up_proj(x)))
    return out


def _attention(kind: Any) -> Callable[..., Any] | None:
    """The forward of this attention, with another function by the name of the one that turns queries and keys; None
    where it calls none by that name."""
    forward = kind.forward
    if not isinstance(forward, FunctionType) or _ROTARY not in forward.__code__.co_names:
        return None
    names = forward.__globals__ | {_ROTARY: rotary}
    ours = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    ours.__kwdefaults__ = forward.__kwdefaults__
    return ours


# From the end of a class's name and the class to another forward, if there is one.
_FORWARDS: dict[str, Callable[[Any], Callable[..., Any] | None]] = {
    "RMSNorm": lambda kind: _norm,
    "MLP": lambda kind: _mlp,
    "Attention": _attention,
    "Linear": lambda kind: _linear if kind is nn.Linear else None,
}
