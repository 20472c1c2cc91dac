"""The norms and MLPs of Llama's kind, by kernels that read a row once where operators of torch read it often."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from cora.llm.calls import Calls
from cora_kernels.pointwise import rms_norm, silu_gate

# Architectures whose norm is weight · x / sqrt(mean(x²) + eps) and whose MLP is down(silu(gate(x)) · up(x)): those that
# the tests compare.
_ARCHITECTURES = ("granite", "llama", "mistral", "qwen2", "qwen3", "smollm3")


class Pointwise:
    """The norms and MLPs of a patched `base`, until `remove`: the same modules, of a subclass with another forward.

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
            ours = next((one for end, one in _FORWARDS.items() if kind.__name__.endswith(end)), None)
            # A forward that was replaced for this module, by offloading say, is not bypassed.
            if ours is None or "forward" in vars(module):
                continue
            if kind not in made:
                made[kind] = _with_forward(kind, ours)
            self._replaced.append((module, kind))
            module.__class__ = made[kind]
            # Where a copy of the model finds its own calls, as the patched linears do.
            module.cora_calls = calls

    def remove(self) -> None:
        for module, kind in self._replaced:
            module.__class__ = kind
            del module.cora_calls
        self._replaced = []


def _with_forward(kind: Any, ours: Callable[[Any, Tensor], Tensor]) -> type[nn.Module]:
    def forward(module: Any, x: Tensor) -> Tensor:
        call = module.cora_calls.current()
        out: Tensor = ours(module, x) if call is not None and call.deltas else kind.forward(module, x)
        return out

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _norm(module: Any, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight, module.variance_epsilon)


def _mlp(module: Any, x: Tensor) -> Tensor:
    out: Tensor = module.down_proj(silu_gate(module.gate_proj(x), module.up_proj(x)))
    return out


_FORWARDS = {"RMSNorm": _norm, "MLP": _mlp}
