"""The norms and MLPs of Llama's kind, by kernels that read a row once where operators of torch read it often."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from cora_kernels.pointwise import rms_norm, silu_gate

# Architectures whose norm is weight · x / sqrt(mean(x²) + eps) and whose MLP is down(silu(gate(x)) · up(x)): those that
# the tests compare.
_ARCHITECTURES = ("granite", "llama", "mistral", "qwen2", "qwen3", "smollm3")


class Pointwise:
    """The norms and MLPs of `base`, until `remove`: the very same modules, of a subclass with another forward.

    Models of other architectures are left as they are.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self._replaced: list[tuple[nn.Module, type[nn.Module]]] = []
        config = base.config
        if config.model_type not in _ARCHITECTURES or config.hidden_act not in ("silu", "swish"):
            return
        made: dict[type[nn.Module], type[nn.Module]] = {}
        for module in base.modules():
            kind = type(module)
            forward = next((one for end, one in _FORWARDS.items() if kind.__name__.endswith(end)), None)
            # A forward that was replaced for this module, by offloading say, is not bypassed.
            if forward is not None and "forward" not in vars(module):
                self._replaced.append((module, kind))
                if kind not in made:
                    made[kind] = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
                module.__class__ = made[kind]

    def remove(self) -> None:
        for module, kind in self._replaced:
            module.__class__ = kind
        self._replaced = []


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, module.weight, module.variance_epsilon)


def _mlp(module: Any, x: Tensor) -> Tensor:
    out: Tensor = module.down_proj(silu_gate(module.gate_proj(x), module.up_proj(x)))
    return out


_FORWARDS = {"RMSNorm": _norm, "MLP": _mlp}
