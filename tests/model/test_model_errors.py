"""Everything that CoRAModel refuses, each with its own clear error."""

from typing import Any

import pytest
import torch
from torch import nn

from cora import CoRAConfig, CoRAModel
from cora.collaborative import CollaborativeEmbeddings


def embeddings() -> CollaborativeEmbeddings:
    return CollaborativeEmbeddings([1, 2], [3, 4], torch.randn(2, 8), torch.randn(2, 8))


def config(**changes: Any) -> CoRAConfig:
    return CoRAConfig(**(dict(r=2, generator="mlp", hidden_size=8, answer_ids=(11, 23)) | changes))


BUILD_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("no-ids", dict(answer_ids=None), r"config: answer_ids is not set; use CoRAConfig.with_answer_ids\(tokenizer\)"),
    ("vocabulary", dict(answer_ids=(5, 101)), "answer_ids: 101 is outside the model's vocabulary of 101"),
    ("targets", dict(target_modules=("c_attn",)), "c_attn match nothing in LlamaForCausalLM"),
    ("layers", dict(layers=(4,)), r"layers: \[4\] not in the model"),
    ("head", dict(target_modules=("lm_head",)), "lm_head is the output layer, which CoRA cannot adapt"),
    ("heads", dict(generator="qformer", num_heads=3), "num_heads: expected a divisor of the generator's width 16"),
]


@pytest.mark.parametrize(
    ("changes", "message"), [row[1:] for row in BUILD_ERRORS], ids=[row[0] for row in BUILD_ERRORS]
)
def test_build_refuses_and_leaves_the_base_model(make_base: Any, changes: Any, message: str) -> None:
    base = make_base("llama")
    objects = dict(base.named_modules())
    with pytest.raises(ValueError, match=message):
        CoRAModel(base, config(**changes), embeddings())
    assert dict(base.named_modules()) == objects
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_base_models_that_cannot_be(make_base: Any) -> None:
    with pytest.raises(TypeError, match="base_model: expected a transformers causal LM, got Linear"):
        CoRAModel(nn.Linear(2, 2), config(), embeddings())  # type: ignore[arg-type]
    base = make_base("llama")
    with pytest.raises(ValueError, match="LlamaModel has no plain linear output layer"):
        CoRAModel(base.model, config(), embeddings())
    CoRAModel(base, config(), embeddings())
    with pytest.raises(ValueError, match="already patched"):
        CoRAModel(base, config(), embeddings())


GOOD: dict[str, Any] = dict(
    input_ids=torch.tensor([[5, 6, 7], [0, 8, 9]]),
    attention_mask=torch.tensor([[1, 1, 1], [0, 1, 1]]),
    user_ids=[1, 2],
    item_ids=[3, 4],
    labels=torch.tensor([0.0, 1.0]),
)
FORWARD_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("ids-1d", dict(input_ids=torch.tensor([5, 6])), r"input_ids: expected \[B, T\], got \[2\]"),
    ("mask-shape", dict(attention_mask=torch.ones(2, 4)), r"attention_mask: .* input_ids \[2, 3\], got \[2, 4\]"),
    ("mask-4d", dict(attention_mask=torch.ones(2, 1, 3, 3)), r"attention_mask: .* got \[2, 1, 3, 3\]"),
    ("mask-values", dict(attention_mask=torch.tensor([[1, 2, 1], [1, 1, 1]])), "attention_mask: expected 0 and 1 only"),
    ("empty-prompt", dict(attention_mask=torch.tensor([[1, 1, 1], [0, 0, 0]])), "attention_mask: row 1 is all zero"),
    ("vectors", dict(user_vectors=torch.zeros(2, 7)), r"user_vectors: expected float \[2, 8\], .*float32 \[2, 7\]"),
    ("vectors-dtype", dict(user_vectors=torch.zeros(2, 8).int()), r"user_vectors: expected float \[2, 8\], .*int32"),
    ("users", dict(user_ids=[1]), r"user_ids: expected \[2\], one per row of input_ids, got \[1\]"),
    ("items", dict(item_ids=torch.ones(3, dtype=torch.long)), r"item_ids: expected \[2\], .* got \[3\]"),
    ("items-2d", dict(item_ids=torch.ones(2, 1, dtype=torch.long)), r"item_ids: expected \[2\], .* got \[2, 1\]"),
    ("labels-shape", dict(labels=torch.ones(2, 1)), r"labels: expected \[2\], .* got \[2, 1\]"),
    ("labels-values", dict(labels=torch.tensor([0.0, 0.5])), "labels: expected 0 and 1 only, got 0.5"),
    ("labels-nan", dict(labels=torch.tensor([0.0, float("nan")])), "labels: expected 0 and 1 only, got nan"),
]


@pytest.mark.parametrize(("changes", "message"), [r[1:] for r in FORWARD_ERRORS], ids=[r[0] for r in FORWARD_ERRORS])
def test_forward_refuses(make_base: Any, changes: Any, message: str) -> None:
    model = CoRAModel(make_base("llama"), config(), embeddings())
    model(**GOOD)
    with pytest.raises(ValueError, match=message):
        model(**(GOOD | changes))


def test_generation_after_right_padding(make_base: Any) -> None:
    model = CoRAModel(make_base("llama"), config(), embeddings())
    with pytest.raises(ValueError, match="attention_mask: expected padding on the left"):
        model.generate(GOOD["input_ids"], torch.tensor([[1, 1, 1], [1, 1, 0]]), user_ids=[1, 2], item_ids=[3, 4])


def test_forward_after_unpatch(make_base: Any) -> None:
    model = CoRAModel(make_base("llama"), config(), embeddings())
    model.unpatch()
    with pytest.raises(RuntimeError, match="this patch was removed"):
        model(**GOOD)
