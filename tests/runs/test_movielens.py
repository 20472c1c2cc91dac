"""Every generator, method and collaborative model learns on real ratings: MovieLens-100k, a small random model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cora.collaborative import COLLABORATIVE
from cora.data import load_interactions, split
from cora.generators import GENERATORS
from cora.llm.loading import load_tokenizer
from cora.methods import METHODS
from cora.runs.settings import RunConfig
from cora.runs.train import train

STEPS = 50
FORMS: list[tuple[str, dict[str, Any]]] = [
    *(("cora", {"generator": name}) for name in GENERATORS),
    ("cora", {"offset": True, "shared_prefix": True, "shared_rank": 4, "item_dropout": 0.3}),
    *(
        (name, {})
        for name, method in METHODS.items()
        if name != "cora" and method.fit is None and method.task == "rating"
    ),
]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with the tokenizer of SmolLM2-135M."""
    try:
        tokenizer = load_tokenizer("smollm2-135m")
        load_interactions("movielens-100k")
    except RuntimeError as error:
        pytest.skip(f"SmolLM2-135M or MovieLens-100k could not be fetched: {error}")
    folder = tmp_path_factory.mktemp("small-llama")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method, fields", FORMS, ids=[f"{name}-{'-'.join(map(str, f))}" for name, f in FORMS])
def test_the_loss_falls_in_fifty_steps(small_model: Path, tmp_path: Path, method: str, fields: dict[str, Any]) -> None:
    config = RunConfig(
        data="movielens-100k", model=str(small_model), method=method, collaborative="bayes", dim=8, dtype="float32",
        steps=STEPS, batch_size=16, eval_every=STEPS, valid_rows=60, test_rows=60, learning_rate=2e-3,
        cora={"max_history": 2, **fields},
        trainer=dict(logging_steps=1, use_cpu=True, disable_tqdm=True, report_to=[]),
    )  # fmt: skip
    train(config, tmp_path / "run")
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    losses = [one["loss"] for one in history if "loss" in one]
    assert len(losses) == STEPS and np.isfinite(losses).all()
    assert np.mean(losses[-15:]) < np.mean(losses[:5]) - 0.005, losses


@pytest.mark.parametrize("name", COLLABORATIVE)
def test_every_collaborative_model_ranks_later_rows(name: str) -> None:
    try:
        parts = split(load_interactions("movielens-100k"))
    except RuntimeError as error:
        pytest.skip(f"MovieLens-100k could not be fetched: {error}")
    few = parts.train.tail(12000)
    limits = {"mf-published": {"max_epochs": 60}, "sasrec": {"max_epochs": 1}}.get(name, {})
    _, result = COLLABORATIVE[name](few, parts.valid, 6, seed=0, **limits)
    assert result.valid_auc > (0.5 if name == "mf-published" else 0.6), result.valid_aucs
