"""Scores: the answer is the whole model's, whatever the padding, the neighbours and the batches; and the loss."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.model.cora_models import GENERATORS, ITEMS, NO, USERS, YES, Build, full_logits


@GENERATORS
@torch.no_grad()
def test_left_and_right_padding_score_alike(base: PreTrainedModel, build: Build, prompts: Any, pad: Any) -> None:
    model = build(base)
    left, right = (model(*pad(prompts, side), USERS, ITEMS).logits for side in ("left", "right"))
    assert torch.equal(left, right)


@GENERATORS
@torch.no_grad()
def test_scores_do_not_depend_on_neighbours(base: PreTrainedModel, build: Build, prompts: Any, pad: Any) -> None:
    model = build(base)
    ids, mask = pad(prompts, "left")
    before = model(ids, mask, USERS, ITEMS).logits
    others = ids.clone()
    others[1:] = torch.randint(3, 101, others[1:].shape)
    users, items = USERS.clone(), ITEMS.clone()
    users[1:], items[1:] = 20, 6
    after = model(others, mask, users, items).logits
    torch.testing.assert_close(after[0], before[0], atol=1e-6, rtol=1e-6)
    assert (after[1:] - before[1:]).abs().min() > 1e-4


ALL = ["llama", "qwen2", "gpt2", "mistral", "gemma", "gemma2", "phi", "granite", "cohere", "opt"]


@pytest.mark.parametrize("architecture", ALL)
@torch.no_grad()
def test_the_answer_is_the_whole_models(
    make_base: Any, build: Build, prompts: Any, pad: Any, architecture: str
) -> None:
    """Head biases, soft capping, logit scales and tied embeddings included; dense positions come with the model."""
    base = make_base(architecture)
    changes: dict[str, Any] = dict(target_modules=("q_proj", "v_proj")) if architecture in ("phi", "opt") else {}
    model = build(base, **changes)
    for side, last in (("left", [-1] * 5), ("right", [length - 1 for length in prompts[1]])):
        ids, mask = pad(prompts, side)
        scores = model(ids, mask, USERS, ITEMS).logits
        whole = full_logits(model.base, ids, mask)[torch.arange(5), last]
        torch.testing.assert_close(scores, whole[:, YES] - whole[:, NO], atol=2e-5, rtol=1e-4)
        assert scores.std() > 1e-3


@torch.no_grad()
def test_plain_yes_logit(make_base: Any, build: Build, prompts: Any, pad: Any) -> None:
    ids, mask = pad(prompts, "left")
    model = build(make_base("llama"), answer=(" Yes", None), answer_ids=(YES,))
    scores = model(ids, mask, USERS, ITEMS).logits
    torch.testing.assert_close(scores, full_logits(model.base, ids, mask)[:, -1, YES], atol=2e-5, rtol=1e-4)


def test_loss_is_binary_cross_entropy(make_base: Any, build: Build, prompts: Any, pad: Any) -> None:
    model = build(make_base("llama"))
    ids, mask = pad(prompts, "left")
    labels = torch.tensor([1, 0, 0, 1, 1])
    out = model(ids, mask, USERS, ITEMS, labels)
    likelihood = torch.where(labels == 1, out.logits.sigmoid(), 1 - out.logits.sigmoid())
    torch.testing.assert_close(out.loss, -likelihood.log().mean())
    assert model(ids, mask, USERS, ITEMS).loss is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_score_is_forward_in_batches(make_base: Any, build: Build, prompts: Any, pad: Any, side: str) -> None:
    model = build(make_base("llama")).train()
    ids, mask = pad(prompts, side)
    scores = model.score(ids, mask, USERS, [7, 5, 5, 6, 7], batch_size=2)
    assert model.training and not scores.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(scores, model.eval()(ids, mask, USERS, ITEMS).logits, atol=2e-5, rtol=1e-4)
