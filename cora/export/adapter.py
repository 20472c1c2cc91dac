"""One LoRA adapter in PEFT's format: its two files written, and read with every field and tensor checked."""

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cora.export.patterns import Patterns, number
from cora.export.refusals import refuse_what_is_not_served
from cora.files import write_files
from cora.llm.linears import LinearSize, linear_sizes, shortest_names
from cora.tensors import FLOATS, Described, described, read_json, read_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<linear>.+)\.lora_(?P<factor>[AB])\.weight")


class Factors(NamedTuple):
    """What an adapter adds to one linear: scaling·(x·lora_a)·lora_b, lora_a [K, r], lora_b [r, N]."""

    lora_a: Tensor
    lora_b: Tensor
    scaling: float


class Adapter(NamedTuple):
    """The factors by the full name of their linear, and the base model's name, if it is known."""

    factors: Mapping[str, Factors]
    base_model: str | None


class _Place(NamedTuple):
    """Where the factors of one linear are in a file, and their scaling."""

    lora_a: str
    lora_b: str
    scaling: float


def save_adapter(folder: str | Path, adapter: Adapter, model: nn.Module) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, as PEFT's LoraConfig and save_pretrained do.

    y += (lora_alpha / r)·(x·Aᵀ)·Bᵀ, with lora_A.weight = A [r, K], lora_B.weight = B [N, r] of every linear. r and
    lora_alpha are those of most linears; rank_pattern and alpha_pattern name the others. target_modules are the
    shortest names that fit these linears of `model` and no others. Both files appear whole or not at all.
    """
    sizes = linear_sizes(model)
    ranks = {name: one.lora_a.shape[1] for name, one in adapter.factors.items()}
    alphas = {name: _number(one.scaling * ranks[name]) for name, one in adapter.factors.items()}
    r, alpha = _usual(ranks.values()), _usual(alphas.values())
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_model,
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": shortest_names(adapter.factors.keys(), sizes),
        "fan_in_fan_out": any(sizes[name].transposed for name in adapter.factors),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != r},
        "alpha_pattern": {name: one for name, one in alphas.items() if one != alpha},
    }
    tensors = {}
    for name, one in adapter.factors.items():
        for factor, matrix in (("A", one.lora_a), ("B", one.lora_b)):
            tensors[f"base_model.model.{name}.lora_{factor}.weight"] = matrix.detach().t().contiguous().cpu()
    write_files(
        Path(folder),
        {
            WEIGHTS: lambda path: save_file(tensors, path, metadata={"format": "pt"}),
            CONFIG: lambda path: path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8"),
        },
    )


def load_adapter(folder: str | Path, sizes: Mapping[str, LinearSize]) -> Adapter:
    """Reads what PEFT's save_pretrained wrote, for the linears of those sizes: lora_alpha / r or, with use_rslora,
    lora_alpha / √r, rank_pattern and alpha_pattern. The factors are float32, or float64 where the linear is.

    Raises FileNotFoundError for a missing file; ValueError, naming file and field or tensor, for what is more than
    LoRA on linears (DoRA, modules_to_save, biases, …), and for tensors that do not fit: before any of them is read.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    refuse_what_is_not_served(folder / CONFIG, config)
    if not (folder / WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise ValueError(f"{folder / 'adapter_model.bin'}: a pickle, which is not read; save it as {WEIGHTS}")
    tensors = described(folder / WEIGHTS)
    try:
        places = _places(tensors, config, sizes)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    read = read_tensors(folder / WEIGHTS)
    factors = {}
    for name, (key_a, key_b, scaling) in places.items():
        lora_a, lora_b = (read[key].t().to(sizes[name].device, _trained(sizes[name].dtype)) for key in (key_a, key_b))
        factors[name] = Factors(lora_a, lora_b, scaling)
    base_model = config.get("base_model_name_or_path")
    return Adapter(factors, base_model if isinstance(base_model, str) else None)


def _places(
    tensors: Mapping[str, Described], config: Mapping[str, Any], sizes: Mapping[str, LinearSize]
) -> dict[str, _Place]:
    """The factors of each linear, checked against its size and the configuration's rank."""
    keys: dict[str, dict[str, str]] = {}
    for key in tensors:
        if (found := _KEY.fullmatch(key)) is None:
            raise ValueError(f"expected base_model.model.NAME.lora_A.weight and lora_B.weight alone, got {key[:150]}")
        keys.setdefault(found["linear"], {})[found["factor"]] = key
    if not keys:
        raise ValueError("no tensors, so nothing to add")
    scalings = _Scalings(config)
    return {name: _place(name, keys[name], tensors, scalings, sizes) for name in sorted(keys)}


class _Scalings:
    """The rank of each linear, and its scaling: alpha / r, or alpha / √r."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._r = number("r", config.get("r", 8))
        self._alpha = number("lora_alpha", config.get("lora_alpha", 8))
        self._ranks = Patterns("rank_pattern", config.get("rank_pattern"))
        self._alphas = Patterns("alpha_pattern", config.get("alpha_pattern"))
        self._of_root = bool(config.get("use_rslora"))

    def of(self, name: str) -> tuple[float, float]:
        r = self._ranks.value(name, self._r)
        return r, self._alphas.value(name, self._alpha) / (math.sqrt(r) if self._of_root else r)


def _place(
    name: str,
    keys: Mapping[str, str],
    tensors: Mapping[str, Described],
    scalings: _Scalings,
    sizes: Mapping[str, LinearSize],
) -> _Place:
    if name not in sizes:
        raise ValueError(f"the model has no linear {name[:100]}; it has {', '.join(list(sizes)[:2])}, …")
    if missing := [factor for factor in "AB" if factor not in keys]:
        raise ValueError(f"{name} has no lora_{missing[0]}")
    r, scaling = scalings.of(name)
    size = sizes[name]
    for factor, shape in (("A", (r, size.in_features)), ("B", (size.out_features, r))):
        found = tensors[keys[factor]]
        if found.shape != shape or found.dtype not in FLOATS:
            raise ValueError(
                f"lora_{factor} of {name}: expected float {list(shape)}, got {found.dtype} {list(found.shape)}"
            )
    return _Place(keys["A"], keys["B"], scaling)


def _trained(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _number(value: float) -> int | float:
    """A whole number as one: what reads lora_alpha may expect that."""
    rounded = round(value, 9)
    return int(rounded) if rounded == int(rounded) else value


def _usual(values: Collection[Any]) -> Any:
    listed = list(values)
    return max(listed, key=listed.count)
