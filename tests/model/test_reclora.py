"""RecLoRA on a tiny model: it starts as the base model, learns, and falls back to plain LoRA where it must."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cora.collaborative import CollaborativeEmbeddings, user_encoder
from cora.collaborative.pair_encoder import PairEncoder
from cora.methods.reclora.config import RecLoRAConfig
from cora.methods.reclora.model import RecLoRAModel
from cora.methods.samples import Samples
from cora.methods.tallrec.config import TALLRecConfig
from cora.methods.tallrec.model import TALLRecModel
from cora_kernels import backends
from tests.model.agreement import (
    assert_it_starts_as_the_base_model,
    assert_packed_is_chained,
    assert_users_and_items_count,
)

USERS, ITEMS = torch.tensor([30, 10, 20, 10, 30]), torch.tensor([7, 5, 5, 6, 7])


def build(
    base: PreTrainedModel, trained: bool = True, embeddings: CollaborativeEmbeddings | None = None, **changes: Any
) -> RecLoRAModel:
    torch.manual_seed(1)
    if embeddings is None:
        embeddings = CollaborativeEmbeddings([10, 20, 30], [5, 6, 7], torch.randn(3, 8), torch.randn(3, 8))
    fields: dict[str, Any] = dict(r=3, answer_ids=(11, 23), meta_loras=4, gate_width=16)
    model = RecLoRAModel(base, RecLoRAConfig(**(fields | changes)), embeddings)
    if trained:
        for matrix in model.generator.lora_bs:
            nn.init.normal_(matrix)
    return model.eval()


@pytest.fixture
def padded(prompts: Any, pad: Any) -> tuple[Tensor, Tensor]:
    return pad(prompts, "left")


def test_published_settings() -> None:
    config = RecLoRAConfig()
    assert (config.r, config.scaling, config.dropout, config.target_modules) == (8, 2.0, 0.0, ("q_proj", "v_proj"))
    assert (config.meta_loras, config.gate_width, config.mix) == (8, 60, "factors")


@pytest.mark.parametrize("mix", ["factors", "outputs"])
def test_it_starts_as_the_base_model(make_base: Any, padded: Any, mix: str) -> None:
    assert_it_starts_as_the_base_model(build(make_base("llama"), trained=False, mix=mix), padded, USERS, ITEMS)


@torch.no_grad()
def test_one_meta_lora_scores_as_plain_lora(make_base: Any, padded: Any) -> None:
    base = make_base("llama")
    model = build(base, meta_loras=1)
    ours = model.score(*padded, USERS, ITEMS)
    factors = [[one[0].clone() for one in some] for some in (model.generator.lora_as, model.generator.lora_bs)]
    plain = TALLRecModel(model.unpatch(), TALLRecConfig(r=3, answer_ids=(11, 23))).eval()
    for own, one in zip([*plain.lora_as, *plain.lora_bs], [*factors[0], *factors[1]], strict=True):
        own.copy_(one)
    torch.testing.assert_close(ours, plain.score(*padded, USERS, ITEMS), atol=3e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("mix", ["factors", "outputs"])
def test_padded_scores_are_those_one_by_one(make_base: Any, padded: Any, prompts: Any, mix: str) -> None:
    model = build(make_base("llama"), mix=mix)
    together = model(*padded, USERS, ITEMS).logits
    torch.testing.assert_close(model.score(*padded, USERS, ITEMS, batch_size=2), together, atol=3e-5, rtol=1e-4)
    for row, length in enumerate(prompts[1]):
        alone = model(prompts[0][row : row + 1, :length], None, USERS[row : row + 1], ITEMS[row : row + 1]).logits
        torch.testing.assert_close(alone[0], together[row], atol=3e-5, rtol=1e-4)


@pytest.mark.skipif(backends()["cpu"] is not None, reason=f"cpu: {backends()['cpu']}")
@pytest.mark.parametrize("mix", ["factors", "outputs"])
def test_packed_is_padded(make_base: Any, padded: Any, mix: str) -> None:
    model = build(make_base("llama"), mix=mix)
    labels = torch.tensor([1.0, 0, 0, 1, 1])
    assert_packed_is_chained(model, lambda: model(*padded, USERS, ITEMS, labels))


def test_no_gradient_reaches_the_recommender(make_base: Any, padded: Any) -> None:
    torch.manual_seed(1)
    crm = PairEncoder(3, 4, 16, 5, 0.0)
    tables = torch.randn(3, 8), torch.randn(3, 8)
    embeddings = CollaborativeEmbeddings([10, 20, 30], [5, 6, 7], *tables, "din", crm.state_dict())
    encoder = user_encoder(embeddings)
    c = encoder.vectors([[5, 6], [7], [], [7], [5]], [[1, 0], [1], [], [0], [1]], ITEMS.tolist())
    model = build(make_base("llama"), embeddings=embeddings).train()
    model(*padded, USERS, ITEMS, torch.tensor([1.0, 0, 0, 1, 1]), user_vectors=c).loss.backward()
    assert all(one.grad.any() for one in model.generator.gates.parameters())
    weights = [one for one in vars(encoder).values() if isinstance(one, PairEncoder)][0].parameters()
    assert not c.requires_grad and all(not one.requires_grad and one.grad is None for one in weights)
    assert not embeddings.users.requires_grad and not embeddings.items.requires_grad


def test_the_pair_counts(make_base: Any, padded: Any) -> None:
    assert_users_and_items_count(build(make_base("llama")), padded, USERS, ITEMS)


def test_it_learns_and_neither_the_language_model_nor_the_vectors_do(make_base: Any, padded: Any) -> None:
    model = build(make_base("llama"), trained=False, generator_dropout=0.0).train()
    trained = [one for one in model.parameters() if one.requires_grad]
    assert {id(one) for one in trained} == {id(one) for one in model.generator.parameters()}
    labels, losses = torch.tensor([1.0, 0, 0, 1, 1]), []
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(*padded, USERS, ITEMS, labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(one.grad is not None and one.grad.any() for one in trained)
    assert all(one.grad is None for name, one in model.named_parameters() if not name.startswith("generator."))
    assert model.watched(Samples(USERS, ITEMS)).keys() == {"gate_entropy", "b_cosine"}


def test_round_trip(make_base: Any, padded: Any, tmp_path: Path) -> None:
    model = build(make_base("llama"), gate_top=2, gate_temperature=5.0)
    expected = model.score(*padded, USERS, ITEMS)
    model.save_pretrained(tmp_path)
    again = RecLoRAModel.from_pretrained(tmp_path, model.unpatch())
    assert again.config == model.config and torch.equal(again.score(*padded, USERS, ITEMS), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(gate_top=9), "gate_top: expected at most meta_loras 8, got 9"),
        (dict(gate_top="2"), "gate_top: expected a whole number from 0, got '2'"),
        (dict(mix="sum"), "mix: expected one of factors, outputs, got 'sum'"),
        (dict(gate_temperature=-1), "gate_temperature: expected a positive number, got -1"),
    ],
)
def test_wrong_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecLoRAConfig(**fields)
