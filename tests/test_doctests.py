"""The examples in docstrings run as they stand, with what they take for granted."""

import doctest
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import cora
from cora.export import bank
from cora.export.adapter import Adapter, Factors, save_adapter
from cora.llm import linears


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the examples have: a model, prompts, deltas, a folder of adapters."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    )
    monkeypatch.chdir(tmp_path)
    name = "model.layers.{}.self_attn.o_proj".format
    for user in ("ann", "bo"):
        factors = {name(layer): Factors(torch.randn(16, 2), torch.randn(2, 16), 0.5) for layer in range(2)}
        save_adapter(tmp_path / "adapters" / user, Adapter(factors, None), model)
    leaves = (torch.randn(4, 16, 2, requires_grad=True), torch.randn(4, 2, 16, requires_grad=True))
    names = ("cora", "torch", "model", "input_ids", "lora_a", "lora_b", "scaling")
    return dict(zip(names, (cora, torch, model, torch.ones(4, 3, dtype=torch.long), *leaves, 0.5), strict=True))


@pytest.mark.parametrize(
    "described", [cora.patch, bank.AdapterBank, linears.shortest_names], ids=lambda one: one.__name__
)
def test_the_example_in_the_docstring(described: Any, given: dict[str, Any]) -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(described, described.__name__, globs=given)
    assert example.examples
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    runner.run(example, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)
