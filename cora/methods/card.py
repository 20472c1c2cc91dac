"""The model card of a saved model: README.md as the Hugging Face hub shows it."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cora.methods.config import AdapterConfig

# What the hub calls a repository. Other names are those of this program, or paths of the machine that trained.
_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_card(config: AdapterConfig, model: type, trained: int) -> str:
    """Markdown with the hub's metadata. model: the class that reads the folder; trained: how many elements its weights
    have."""
    base = config.base_model
    on_hub = base is not None and _ON_HUB.fullmatch(base) is not None and not Path(base).exists()
    metadata = ["library_name: cora-kernels", "pipeline_tag: text-classification"]
    metadata += [f"base_model: {base}"] if on_hub else []
    metadata += ["tags:", "- recommendation", "- lora", f"- {config.method}"]
    shown = None if base is None else base if on_hub else Path(base).name
    lines = [
        "---", *metadata, "---", "",
        f"# {config.method} on {shown or 'a language model of your own'}", "",
        "Recommends by a frozen language model whose linear layers have low-rank updates of their own for each user "
        "and item. This folder holds what was trained and the collaborative vectors that it reads, if any, not the "
        "language model.", "",
        f"{trained:,} trained elements, rank {config.r}, in {_modules(config)}.", "",
        "```python",
        "from huggingface_hub import snapshot_download",
        f"from {model.__module__} import {model.__name__}", "",
        f'model = {model.__name__}.from_pretrained(snapshot_download("owner/name")'
        + (")" if on_hub else ", base_model)  # a model as transformers loads it"),
        "```", "",
        "## Configuration", "",
        "```json", json.dumps(_told(config, shown), indent=2, ensure_ascii=False), "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _modules(config: AdapterConfig) -> str:
    names = config.target_modules
    return f"`{names}`" if isinstance(names, str) else ", ".join(f"`{name}`" for name in names)


def _told(config: AdapterConfig, base: str | None) -> dict[str, Any]:
    return {**asdict(config), "base_model": base}
