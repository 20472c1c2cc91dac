"""A plain LoRA beside the generated part: the ranks side by side, the published form without it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from cora import CoRAConfig, CoRAModel
from cora.collaborative import CollaborativeEmbeddings
from cora.generators import GENERATORS
from cora.methods.samples import Samples
from tests.model.agreement import assert_it_starts_as_the_base_model

USERS, ITEMS = torch.tensor([30, 10, 20, 10, 30]), torch.tensor([7, 5, 5, 6, 7])


def build(base: PreTrainedModel, trained: bool = True, **changes: Any) -> CoRAModel:
    torch.manual_seed(1)
    embeddings = CollaborativeEmbeddings([10, 20, 30], [5, 6, 7], torch.randn(3, 8), torch.randn(3, 8))
    fields: dict[str, Any] = dict(r=3, shared_rank=2, hidden_size=16, answer_ids=(11, 23))
    model = CoRAModel(base, CoRAConfig(**(fields | changes)), embeddings)
    if trained:
        for name, parameter in model.named_parameters():
            if ".p." in name or "matrices" in name:
                nn.init.normal_(parameter)
    return model.eval()


def test_it_starts_as_the_base_model(make_base: Any, prompts: Any, pad: Any) -> None:
    assert_it_starts_as_the_base_model(build(make_base("llama"), trained=False), pad(prompts, "left"), USERS, ITEMS)


@torch.no_grad()
@pytest.mark.parametrize("kind", GENERATORS)
def test_the_delta_is_the_sum_of_both(make_base: Any, kind: str) -> None:
    model = build(make_base("llama"), generator=kind)
    samples, part = Samples(USERS, ITEMS), model.shared_part
    assert part is not None
    both = model.deltas(samples)
    model.shared_part = None
    generated = model.deltas(samples)
    for name, delta in both.items():
        alone = part.lora_as[str(part.widths[name])] @ part.p.matrices[name.replace(".", "/")]
        assert delta.lora_a.shape[-1] == 5 and delta.lora_b.shape[-2] == 5
        expected = generated[name].lora_a @ generated[name].lora_b + alone
        torch.testing.assert_close(delta.lora_a @ delta.lora_b, expected, atol=1e-5, rtol=1e-4)
    first, second = list(both)[:2]  # q and k: one A for both, so that x·A is computed once
    if generated[first].lora_a is generated[second].lora_a:
        assert both[first].lora_a is both[second].lora_a


def test_all_of_it_is_trained_and_saved(make_base: Any, prompts: Any, pad: Any, tmp_path: Path) -> None:
    ids, mask = pad(prompts, "left")
    model = build(make_base("llama")).train()
    model(ids, mask, USERS, ITEMS, torch.tensor([1.0, 0, 0, 1, 1])).loss.backward()
    trained = [name for name, one in model.named_parameters() if one.grad is not None and bool(one.grad.any())]
    assert {name for name, one in model.named_parameters() if one.requires_grad} == set(trained)
    assert sum("shared_part" in name for name in trained) == 1 + 8
    before = model.eval().score(ids, mask, USERS, ITEMS)
    model.save_pretrained(tmp_path)
    again = CoRAModel.from_pretrained(tmp_path, model.unpatch())
    assert again.config.shared_rank == 2 and torch.equal(again.score(ids, mask, USERS, ITEMS), before)


def test_the_published_form_has_none(make_base: Any) -> None:
    model = build(make_base("llama"), shared_rank=0)
    assert model.shared_part is None and not any("shared_part" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="shared_rank: expected a whole number from 0, got -1"):
        CoRAConfig(shared_rank=-1)
