"""The frozen language model by name: weights, tokenizer, dtype."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cora.data.sources import smollm2_135m

NAMED_MODELS: dict[str, Callable[[], Path]] = {"smollm2-135m": smollm2_135m}


def load_base(name: str, **kwargs: Any) -> PreTrainedModel:
    """A named model, fetched on first use, or what from_pretrained takes; kwargs go to from_pretrained."""
    return cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(_resolved(name), **kwargs))


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(_resolved(name)))


def chosen_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; for "auto" bfloat16 where the device multiplies it natively, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        native = device.type == "cpu" and (found.get("avx512_bf16", False) or found.get("amx_bf16", False))
    return torch.bfloat16 if native else torch.float32


def _resolved(name: str) -> str:
    return str(NAMED_MODELS[name]()) if name in NAMED_MODELS else name
