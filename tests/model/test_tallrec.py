"""The baseline of plain LoRA: the same patched layer, text alone, one delta for all samples."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from cora.methods import METHODS, load_method
from cora.methods.tallrec.config import TALLRecConfig
from cora.methods.tallrec.model import TALLRecModel
from tests.model.agreement import assert_it_starts_as_the_base_model

USERS, ITEMS = torch.tensor([30, 10, 20, 10, 40]), torch.tensor([7, 5, 5, 6, 7])


def build(base: PreTrainedModel, trained: bool = True, **changes: Any) -> TALLRecModel:
    model = TALLRecModel(base, TALLRecConfig(**(dict(r=3, answer_ids=(11, 23)) | changes)))
    if trained:
        for matrix in model.lora_bs:
            nn.init.normal_(matrix)
    return model.eval()


def test_published_settings() -> None:
    config = TALLRecConfig()
    assert (config.r, config.scaling, config.dropout, config.target_modules) == (8, 2.0, 0.05, ("q_proj", "v_proj"))


def test_it_starts_as_the_base_model(make_base: Any, prompts: Any, pad: Any) -> None:
    assert_it_starts_as_the_base_model(build(make_base("llama"), trained=False), pad(prompts, "left"), USERS, ITEMS)


@torch.no_grad()
def test_the_bypass_is_the_merged_weight(make_base: Any, prompts: Any, pad: Any) -> None:
    ids, mask = pad(prompts, "right")
    model = build(make_base("llama"))
    ours = model(ids, mask, USERS, ITEMS).logits
    factors = zip(model.patch.layers, model.lora_as, model.lora_bs, strict=True)
    changes = {name: model.config.scaling * (a @ b) for name, a, b in factors}
    base = model.unpatch()
    for name, change in changes.items():
        base.get_submodule(name).weight += change.t()
    last = base(input_ids=ids, attention_mask=mask).logits[torch.arange(5), mask.sum(1) - 1]
    torch.testing.assert_close(ours, last[:, 11] - last[:, 23], atol=3e-5, rtol=1e-4)


@torch.no_grad()
def test_only_the_text_counts(make_base: Any, prompts: Any, pad: Any) -> None:
    ids, mask = pad(prompts, "left")
    model = build(make_base("llama"))
    scores = model.score(ids, mask, USERS, ITEMS)
    others = model.score(ids, mask, ["ann"] * 5, ["x"] * 5, user_vectors=torch.randn(5, 7))
    assert torch.equal(scores, others)
    right = model.score(*pad(prompts, "right"), USERS, ITEMS, batch_size=2)
    torch.testing.assert_close(right, scores, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_and_b_alone_get_gradients_and_all_of_them_do(
    make_base: Any, prompts: Any, pad: Any, checkpointed: bool
) -> None:
    model = build(make_base("llama"), target_modules=("q_proj", "k_proj", "down_proj")).train()
    if checkpointed:
        model.gradient_checkpointing_enable()
    model(*pad(prompts, "left"), USERS, ITEMS, torch.ones(5)).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("lora_"):
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None and not parameter.requires_grad, name


def test_round_trip(make_base: Any, prompts: Any, pad: Any, tmp_path: Path) -> None:
    model = build(make_base("llama"))
    expected = model.score(*pad(prompts, "left"), USERS, ITEMS)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = TALLRecModel.from_pretrained(tmp_path, model.unpatch())
    assert torch.equal(again.score(*pad(prompts, "left"), USERS, ITEMS), expected)


def test_settings_that_make_more_than_was_saved(make_base: Any, tmp_path: Path) -> None:
    build(make_base("llama")).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"r": 3', '"r": 3000000000'))
    base = make_base("llama")
    objects = dict(base.named_modules())
    with pytest.raises(ValueError, match="config.json does not fit model.safetensors: more than .* values"):
        TALLRecModel.from_pretrained(tmp_path, base)
    assert dict(base.named_modules()) == objects


def test_every_method_has_the_face_of_the_table(make_base: Any) -> None:
    for name in METHODS:
        method = load_method(name)
        if method.task != "rating" or method.fit is not None:
            continue
        assert method.Config.method == name and method.Model.Config is method.Config
        with pytest.raises(ValueError, match=f"answer_ids is not set; use {method.Config.__name__}.with_answer_ids"):
            method.Model(make_base("llama"), method.Config(), None)
    with pytest.raises(ValueError, match=f"method: expected one of {', '.join(METHODS)}, got 'nmf'"):
        load_method("nmf")
