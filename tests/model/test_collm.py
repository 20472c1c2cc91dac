"""The baseline of soft tokens: vectors in the prompt, one LoRA for all, two stages."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cora.collaborative import CollaborativeEmbeddings
from cora.methods.collm.config import CoLLMConfig
from cora.methods.collm.model import CoLLMModel
from cora.prompts import PromptEncoder
from tests.model.agreement import assert_users_and_items_count

USERS, ITEMS = torch.tensor([30, 10, 20, 10, 30]), torch.tensor([7, 5, 5, 6, 7])
SLOT = 3


def build(base: PreTrainedModel, trained: bool = True, **changes: Any) -> CoLLMModel:
    torch.manual_seed(1)
    embeddings = CollaborativeEmbeddings([10, 20, 30], [5, 6, 7], torch.randn(3, 8), torch.randn(3, 8))
    fields: dict[str, Any] = dict(r=3, answer_ids=(11, 23), slot_id=SLOT, slot_token="<unk>")
    model = CoLLMModel(base, CoLLMConfig(**(fields | changes)), embeddings)
    if trained:
        for matrix in model.lora_bs:
            nn.init.normal_(matrix)
    return model.eval()


@pytest.fixture
def slotted(prompts: Any, pad: Any) -> tuple[Tensor, Tensor]:
    """Prompts [5, 11] whose second and fifth token are slots, padded left; and their mask."""
    tokens, lengths = prompts
    tokens, slot = tokens.clamp(min=4), torch.full((5, 1), SLOT)
    tokens = torch.cat([tokens[:, :1], slot, tokens[:, 1:3], slot, tokens[:, 3:]], 1)
    return pad((tokens, [max(6, one + 2) for one in lengths]), "left")


def test_published_settings() -> None:
    config = CoLLMConfig()
    assert (config.r, config.scaling, config.dropout, config.target_modules) == (8, 2.0, 0.05, ("q_proj", "v_proj"))
    assert config.mid_factor == 10 and config.prompt.count("<slot>") == 2


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_slots_hold_the_projected_vectors(make_base: Any, slotted: Any, architecture: str) -> None:
    ids, mask = slotted
    names = ("c_attn",) if architecture == "gpt2" else ("q_proj", "v_proj")
    model = build(make_base(architecture), trained=False, target_modules=names)
    ours = model(ids, mask, USERS, ITEMS).logits
    torch.testing.assert_close(ours, model.score(ids, mask, USERS, ITEMS, batch_size=2), atol=3e-5, rtol=1e-4)
    e_u, e_i, _ = model.pairs(model.embeddings.lookup_users(USERS), model.embeddings.lookup_items(ITEMS))
    soft = model.token_size * torch.stack([model.projection(e_u), model.projection(e_i)], 1)
    base = model.unpatch()
    for row in range(5):
        tokens = ids[row][mask[row].bool()]
        embedded = base.get_input_embeddings()(tokens).clone()
        embedded[tokens == SLOT] = soft[row]
        last = base(inputs_embeds=embedded[None]).logits[0, -1]
        torch.testing.assert_close(ours[row], last[11] - last[23], atol=3e-5, rtol=1e-4)


@torch.no_grad()
def test_users_and_items_count(make_base: Any, slotted: Any) -> None:
    model = build(make_base("llama"))
    assert_users_and_items_count(model, slotted, USERS, ITEMS)
    scores = model.score(*slotted, USERS, ITEMS)
    vectors = model.embeddings.users[model.embeddings.lookup_users(USERS)]
    torch.testing.assert_close(model.score(*slotted, USERS, ITEMS, user_vectors=vectors), scores, atol=1e-5, rtol=1e-4)


def test_two_stages(make_base: Any, slotted: Any) -> None:
    model = build(make_base("llama")).train()
    labels = torch.tensor([1.0, 0, 0, 1, 1])

    def trained() -> set[str]:
        model.zero_grad()
        model(*slotted, USERS, ITEMS, labels).loss.backward()
        return {name.partition(".")[0] for name, one in model.named_parameters() if one.grad is not None}

    model.at(0.49)
    assert trained() == {"lora_as", "lora_bs"}
    model.at(0.5)
    assert trained() == {"projection"}


@torch.no_grad()
def test_it_is_saved_with_its_stage(make_base: Any, slotted: Any, tmp_path: Path) -> None:
    model = build(make_base("llama"))
    model.at(0.0)
    before = model.score(*slotted, USERS, ITEMS)
    model.save_pretrained(tmp_path)
    again = CoLLMModel.from_pretrained(tmp_path, model.unpatch())
    assert not again.second_stage and torch.equal(again.score(*slotted, USERS, ITEMS), before)


@torch.no_grad()
def test_generation_reads_the_soft_tokens(make_base: Any, slotted: Any) -> None:
    model, (ids, mask) = build(make_base("llama")), slotted
    options: dict[str, Any] = dict(max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
    texts = model.generate(ids, mask, user_ids=USERS, item_ids=ITEMS, **options)
    for row in range(5):
        one = slice(row, row + 1)
        tokens = ids[one, mask[row].bool()]
        alone = model.generate(tokens, user_ids=USERS[one], item_ids=ITEMS[one], **options)
        assert torch.equal(texts[row, -3:], alone[0, -3:])


def test_errors(make_base: Any, slotted: Any) -> None:
    with pytest.raises(ValueError, match="prompt: expected <slot> twice, got it 1 times"):
        CoLLMConfig(prompt="{history} <slot> {title}")
    with pytest.raises(ValueError, match="slot_id is not set"):
        build(make_base("llama"), slot_id=None)
    ids, mask = slotted
    ids = ids.clone()
    ids[0, 1] = 5
    with pytest.raises(ValueError, match=r"expected the token 3 \('<unk>'\) twice a prompt, 10 times, got it 9 times"):
        build(make_base("llama"))(ids, mask, USERS, ITEMS)


def test_the_tokenizer_fills_the_slots(tmp_path: Path) -> None:
    words = ["<unk>", "</s>", "Yes", "No", "Liked", "Answer", '"a"', '"b"', "none", "so", "far", '"<unk>"']
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    text = "Liked <slot> {history} <slot> {title} Answer"
    config = CoLLMConfig(prompt=text, answer=(" Yes", " No")).with_answer_ids(tokenizer)
    assert (config.slot_token, config.slot_id, config.answer_ids) == ("<unk>", 0, (2, 3))
    (tokens,) = PromptEncoder(tokenizer, config.template, 32)([["a"]], ["b"])
    assert tokens == [4, 0, 6, 0, 7, 5]
    config.to_json_string()
    (tmp_path / "config.json").write_text(config.to_json_string())
    assert CoLLMConfig.load(tmp_path / "config.json") == config


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["llama", "opt"])  # packed, and padded
def test_padding_may_be_of_the_slots_token(make_base: Any, slotted: Any, architecture: str, side: str) -> None:
    ids, mask = slotted
    names = ("q_proj", "v_proj")
    model = build(make_base(architecture), target_modules=names)
    expected = model.score(ids, mask, USERS, ITEMS)
    if side == "right":
        order = mask.argsort(dim=1, descending=True, stable=True)
        ids, mask = ids.gather(1, order), mask.gather(1, order)
    ids = ids.masked_fill(mask == 0, SLOT)
    torch.testing.assert_close(model(ids, mask, USERS, ITEMS).logits, expected, atol=3e-5, rtol=1e-4)
    torch.testing.assert_close(model.score(ids, mask, USERS, ITEMS, batch_size=2), expected, atol=3e-5, rtol=1e-4)
    if side == "left":
        options: dict[str, Any] = dict(max_new_tokens=2, do_sample=False, pad_token_id=0, eos_token_id=None)
        texts = model.generate(ids, mask, user_ids=USERS, item_ids=ITEMS, **options)
        assert torch.equal(
            texts, torch.cat([ids, model.generate(*slotted, user_ids=USERS, item_ids=ITEMS, **options)[:, -2:]], 1)
        )


def test_every_prompt_has_its_two_slots_at_every_stage(make_base: Any, slotted: Any) -> None:
    ids, mask = slotted
    ids = ids.clone()
    ids[0, 1], ids[4, 0] = 5, SLOT  # as many as they should be, in the wrong rows
    model = build(make_base("llama"))
    for done in (0.0, 1.0):
        model.at(done)
        with pytest.raises(ValueError, match="twice a prompt, 10 times, got it 10 times, 1 times in row 0"):
            model(ids, mask, USERS, ITEMS)


def test_the_slots_token_begins_no_prompt() -> None:
    words = ["</s>", "<pad>", "Yes", "No", "Liked", "Answer", "a"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 0)])
    text = "Liked <slot> {history} <slot> {title} Answer"
    for given, expected in ((dict(pad_token="<pad>"), "<pad>"), ({}, None)):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="</s>", eos_token="</s>", **given)
        config = CoLLMConfig(prompt=text, answer=(" Yes", " No"))
        if expected is None:
            with pytest.raises(ValueError, match="prompt: the slots need an unknown, end-of-text or padding token"):
                config.with_answer_ids(tokenizer)
        else:
            assert config.with_answer_ids(tokenizer).slot_token == expected
