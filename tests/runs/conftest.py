"""A tiny random language model with a tokenizer, ratings that depend on the item, and a run trained on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cora.runs.settings import RunConfig
from cora.runs.train import train
from tests.films import write_ratings
from tests.words import word_tokenizer

PROMPT = "Liked {history} . Asked {title} ? Answer :"


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 ratings of 20 users and 30 films, the odd ones liked more."""
    return write_ratings(tmp_path_factory.mktemp("data") / "films.csv", np.arange(400) * 60)


@pytest.fixture(scope="session")
def settings(base_folder: Path, ratings: Path) -> dict[str, Any]:
    return dict(
        data=str(ratings),
        model=str(base_folder),
        dim=8,
        dtype="float32",
        steps=9,
        batch_size=8,
        eval_every=3,
        warmup_steps=2,
        cora=dict(r=2, generator="mlp", hidden_size=16, prompt=PROMPT, max_history=3),
        trainer=dict(logging_steps=1, use_cpu=True, disable_tqdm=True, report_to=[]),
    )


@pytest.fixture(scope="session")
def finished(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    train(RunConfig(**settings), out)
    return out
