"""What a PEFT adapter can ask for that is more than LoRA on linears: refused by the name of its field."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Fields that change nothing of what an adapter computes, or that are read elsewhere.
_SERVED = {
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "fan_in_fan_out", "lora_dropout", "inference_mode", "task_type",
    "base_model_name_or_path", "revision", "auto_mapping", "peft_version", "runtime_config", "ensure_weight_tying",
    "megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
}  # fmt: skip
# Fields that have one value that is served, besides none.
_ONLY = {"peft_type": "LORA", "bias": "none"}
# Starts of A and B. Others, such as PiSSA, start from a base model that they have changed.
_STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
_CALLED = {"use_dora": "DoRA", "use_qalora": "QALoRA", "alora_invocation_tokens": "activated LoRA"}


def refuse_what_is_not_served(path: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError that names the first field of an adapter's configuration that asks for more."""
    for field, value in config.items():
        if field in _ONLY:
            if value not in (None, _ONLY[field]):
                raise ValueError(f"{path}: {field}: expected {_ONLY[field]!r}, got {value!r:.80}")
        elif field == "init_lora_weights":
            if not any(value is start or (isinstance(value, str) and value == start) for start in _STARTS):
                raise ValueError(f"{path}: {field}: {value!r:.80} is not served, it starts from a changed base model")
        elif field not in _SERVED and value:
            called = f" ({_CALLED[field]})" if field in _CALLED else ""
            raise ValueError(f"{path}: {field}{called} is not served, got {value!r:.80}")
    if config.get("peft_type") is None:
        raise ValueError(f"{path}: peft_type: expected 'LORA', got nothing: not the configuration of an adapter")
