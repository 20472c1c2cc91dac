"""Tiny base models of three families, PEFT adapters on them, and a finished run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cora.runs.settings import RunConfig
from cora.runs.train import train
from tests.words import word_tokenizer

SIZES: dict[str, Any] = dict(
    vocab_size=101, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
GPT2: dict[str, Any] = dict(
    vocab_size=101, n_embd=48, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip
_METHOD_FIELDS = {"cora": dict(hidden_size=16)}
BASES = {"llama": SIZES, "gpt2": GPT2, "phi3": SIZES | dict(tie_word_embeddings=True)}
TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "attn.c_proj"], "phi3": ["qkv_proj", "gate_up_proj"]}


def _make_base(family: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **BASES[family] | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model.eval()


@pytest.fixture
def make_base() -> Callable[..., PreTrainedModel]:
    """make_base(family, **changes): a random model in eval mode, the same one every time."""
    return _make_base


@pytest.fixture
def write_peft() -> Callable[..., None]:
    """write_peft(folder, family="llama", seed=1, **fields of LoraConfig): a random adapter as PEFT saves it."""

    def write(folder: Path, family: str = "llama", seed: int = 1, **fields: Any) -> None:
        options: dict[str, Any] = dict(r=3, lora_alpha=6, target_modules=TARGETS[family])
        config = LoraConfig(**options | dict(fan_in_fan_out=family == "gpt2") | fields)
        wrapped = get_peft_model(_make_base(family), config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.2, generator=generator)
        wrapped.save_pretrained(str(folder))

    return write


@pytest.fixture
def logits() -> Callable[[nn.Module], torch.Tensor]:
    """logits(model): of two prompts of random tokens, without gradients."""
    ids = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))

    def of(model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
        return found

    return of


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """run(family, method="cora", **settings): the folder of a finished run with a tiny base model. Made once each."""
    made: dict[str, Path] = {}

    def get(family: str, method: str = "cora", **settings: Any) -> Path:
        key = f"{family} {method} {settings}"
        if key not in made:
            made[key] = _run(family, tmp_path_factory.mktemp(family), dict(method=method, **settings))
        return made[key]

    return get


def _run(family: str, folder: Path, settings: dict[str, Any]) -> Path:
    word_tokenizer().save_pretrained(folder / "base")
    _make_base(family).save_pretrained(folder / "base")
    random = np.random.default_rng(0)
    items = random.integers(0, 30, 300)
    users = [f"u/{user}" for user in random.integers(0, 12, 300)]
    frame = pd.DataFrame({"user_id": users, "item_id": items, "rating": np.where(items % 2, 5, 2)})
    frame = frame.assign(timestamp=np.arange(300) * 60, title=[f"film {item}" for item in items])
    frame.to_csv(folder / "films.csv", index=False)
    config = RunConfig(
        data=str(folder / "films.csv"),
        model=str(folder / "base"),
        dim=8,
        dtype="float32",
        steps=4,
        batch_size=8,
        eval_every=4,
        learning_rate=0.05,
        cora=_METHOD_FIELDS.get(settings["method"], {}) | dict(
            r=2, alpha=3, prompt="Liked {history} . Asked {title} ? Answer :", max_history=3,
            target_modules=TARGETS[family],
        ),
        trainer=dict(use_cpu=True, disable_tqdm=True, report_to=[]),
        **settings,
    )  # fmt: skip
    train(config, folder / "run")
    return folder / "run"
