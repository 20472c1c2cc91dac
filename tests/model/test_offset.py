"""score = <e_u, e_i> + <w, h>: the collaborative logit, and what the language model adds to it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cora import CoRAConfig, CoRAModel
from cora.collaborative import CollaborativeEmbeddings, ItemGuesses
from cora.methods.samples import Samples

USERS, ITEMS = torch.tensor([30, 10, 20, 10, 99]), torch.tensor([7, 5, 5, 6, 8])  # the last ones unknown


def build(base: PreTrainedModel, trained: bool = True, **changes: Any) -> CoRAModel:
    torch.manual_seed(1)
    embeddings = CollaborativeEmbeddings([10, 20, 30], [5, 6, 7], torch.randn(3, 8), torch.randn(3, 8))
    fields: dict[str, Any] = dict(r=3, hidden_size=16, answer_ids=(11, 23), offset=True)
    model = CoRAModel(base, CoRAConfig(**(fields | changes)), embeddings)
    if trained:
        for name, parameter in model.named_parameters():
            if name.startswith("readout") or ".p." in name:
                nn.init.normal_(parameter)
    return model.eval()


def collaborative(model: CoRAModel, user_vectors: Tensor | None = None) -> Tensor:
    return model.embeddings.score(USERS, ITEMS, user_vectors)


@pytest.mark.filterwarnings("ignore:.*unknown")
@torch.no_grad()
def test_it_starts_as_the_vectors(make_base: Any, prompts: Any, pad: Any) -> None:
    ids, mask = pad(prompts, "left")
    model = build(make_base("llama"), trained=False)
    assert torch.equal(model.score(ids, mask, USERS, ITEMS), collaborative(model))
    vectors = torch.randn(5, 8)
    assert torch.equal(model.score(ids, mask, USERS, ITEMS, user_vectors=vectors), collaborative(model, vectors))
    assert not torch.equal(model.score(ids, mask, USERS, ITEMS, adapted=False), collaborative(model))


@pytest.mark.filterwarnings("ignore:.*unknown")
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_the_hidden_state_before_the_answer_is_read(make_base: Any, prompts: Any, pad: Any, side: str) -> None:
    ids, mask = pad(prompts, side)
    model = build(make_base("llama"), trained=False)
    nn.init.normal_(model.readout)
    ours = model(ids, mask, USERS, ITEMS).logits
    torch.testing.assert_close(ours, model.score(ids, mask, USERS, ITEMS, batch_size=2))
    readout, alone = model.readout, collaborative(model)
    base = model.unpatch()
    tokens, lengths = prompts
    for row, length in enumerate(lengths):
        last = base.model(tokens[row : row + 1, :length]).last_hidden_state[0, -1]
        torch.testing.assert_close(ours[row], last @ readout + alone[row], atol=3e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*unknown")
@torch.no_grad()
def test_unknown_items_are_read_by_a_vector_of_their_own_too(make_base: Any, prompts: Any, pad: Any) -> None:
    """In the order of the batch, whatever the batches that prompts of similar length are scored in."""
    ids, mask = pad(prompts, "left")
    model = build(make_base("llama"))
    with_both = model.score(ids, mask, USERS, ITEMS, batch_size=2)
    model.readout_of_unknown.zero_()
    with_one = model.score(ids, mask, USERS, ITEMS, batch_size=2)
    assert torch.equal(with_both[:4], with_one[:4]) and (with_both[4] - with_one[4]).abs() > 1e-3


@pytest.mark.filterwarnings("ignore:.*unknown")
def test_everything_that_is_trained_gets_a_gradient(make_base: Any, prompts: Any, pad: Any) -> None:
    ids, mask = pad(prompts, "left")
    model = build(make_base("llama"), trained=False).train()
    labels = torch.tensor([1.0, 0, 0, 1, 1])
    model(ids, mask, USERS, ITEMS, labels).loss.backward()
    assert model.readout is not None and bool(model.readout.grad.any())
    with torch.no_grad():
        model.readout.add_(model.readout.grad, alpha=-0.1)
    model.zero_grad()
    model(ids, mask, USERS, ITEMS, labels).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert any(bool(p.grad.any()) for name, p in model.named_parameters() if ".p." in name)
    assert all(p.grad is None for p in model.base.parameters())


@pytest.mark.filterwarnings("ignore:.*unknown")
@torch.no_grad()
def test_it_is_saved(make_base: Any, prompts: Any, pad: Any, tmp_path: Path) -> None:
    ids, mask = pad(prompts, "left")
    model = build(make_base("llama"))
    before = model.score(ids, mask, USERS, ITEMS)
    model.save_pretrained(tmp_path)
    again = CoRAModel.from_pretrained(tmp_path, model.unpatch())
    assert again.config.offset and torch.equal(again.score(ids, mask, USERS, ITEMS), before)


def test_the_published_form_has_no_readout(make_base: Any) -> None:
    model = build(make_base("llama"), trained=False, offset=False)
    assert model.readout is None and "readout" not in model.state_dict()


def test_it_is_true_or_false() -> None:
    with pytest.raises(TypeError, match="offset: expected true or false, got 'yes'"):
        CoRAConfig(offset="yes")


@pytest.mark.filterwarnings("ignore:.*unknown")
def test_items_taken_for_unknown_have_the_mean_in_the_offset_too(make_base: Any, prompts: Any, pad: Any) -> None:
    ids, mask = (one[:1].repeat(200, 1) for one in pad(prompts, "left"))
    model = build(make_base("llama"), trained=False, item_dropout=0.5).train()
    users, items = USERS[:1].repeat(200), ITEMS[:1].repeat(200)
    with torch.no_grad():
        scores = model(ids, mask, users, items).logits
    e_u = model.embeddings.users[2]
    known, unknown = e_u @ model.embeddings.items[2], e_u @ model.embeddings.items.mean(0)
    is_known = torch.isclose(scores, known)
    assert 0.35 < is_known.float().mean() < 0.65
    torch.testing.assert_close(scores[~is_known], unknown.expand(int((~is_known).sum())))
    # The generator is told the same of each sample.
    seen: list[Tensor] = []
    model.generator.register_forward_pre_hook(lambda _, pair: seen.append(pair[1]))
    with torch.no_grad():
        scores = model(ids, mask, users, items).logits
    unknown = ~torch.isclose(scores, known)
    assert torch.equal((seen[0] == 0).all(1), unknown)
    # And so is what its answer is read by.
    torch.manual_seed(0)
    model(ids, mask, users, items).logits[0].backward()
    assert bool(model.readout_of_unknown.grad.any()) == bool((seen[1] == 0).all(1)[0])


@pytest.mark.filterwarnings("ignore:.*unknown")
@torch.no_grad()
def test_item_vectors_stand_for_the_rows_of_the_table(make_base: Any, prompts: Any, pad: Any) -> None:
    ids, mask = (one[:4] for one in pad(prompts, "left"))
    model, users, items = build(make_base("llama")), USERS[:4], ITEMS[:4]
    table = model.embeddings.item_table[model.embeddings.lookup_items(items)]
    usual = model(ids, mask, users, items).logits
    torch.testing.assert_close(model(ids, mask, users, items, item_vectors=table).logits, usual, atol=1e-5, rtol=1e-4)
    turned = model(ids, mask, users, items, item_vectors=table.flip(0)).logits
    assert not torch.allclose(turned, usual, atol=1e-3)
    torch.testing.assert_close(model.score(ids, mask, users, items, item_vectors=table.flip(0)), turned)
    with pytest.raises(ValueError, match=r"item_vectors: expected float \[4, 8\]"):
        model(ids, mask, users, items, item_vectors=table[:3])


@pytest.mark.filterwarnings("ignore:.*unknown")
@torch.no_grad()
def test_what_is_guessed_of_an_item_stands_for_its_vector(make_base: Any, prompts: Any, pad: Any) -> None:
    """Of items without a vector and of those that training takes for such: in the logit and in what is generated."""
    ids, mask = pad(prompts, "left")
    model = build(make_base("llama"))
    usual, e_u = model(ids, mask, USERS, ITEMS).logits, model.embeddings.users.mean(0)
    guesses = ItemGuesses([8, 6], torch.randn(2, 8), torch.zeros(4, 8))
    model.embeddings = model.embeddings.with_guesses(guesses)
    offsets = model.offsets(Samples(USERS, ITEMS))
    assert offsets is not None
    torch.testing.assert_close(offsets[4], e_u @ guesses.vectors[0])
    torch.testing.assert_close(offsets[:4], collaborative(model)[:4])
    told = model(ids, mask, USERS, ITEMS).logits
    torch.testing.assert_close(told[:4], usual[:4], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(told[4], usual[4], atol=1e-3)
    table = torch.stack([*model.embeddings.items[[2, 0, 0, 1]], guesses.vectors[0]])
    torch.testing.assert_close(model(ids, mask, USERS, ITEMS, item_vectors=table).logits, told, atol=1e-5, rtol=1e-4)
    some = torch.tensor([False, False, False, True, False])
    taken = model.pair(Samples(USERS, ITEMS, unknown_users=~some & False, unknown_items=some))[1]
    torch.testing.assert_close(taken[3], (guesses.vectors[1] - model.pairs.item_mean) / model.pairs.item_size)


@pytest.mark.filterwarnings("ignore:.*unknown")
@pytest.mark.parametrize("given", ["user_vectors", "item_vectors"])
def test_given_vectors_are_on_the_device_of_the_model_and_the_tables_are_not(make_base: Any, given: str) -> None:
    model = build(make_base("llama"))
    model.pairs.to("meta")  # as a GPU is, another device than that of the tables
    samples = Samples(USERS, ITEMS, **{given: torch.randn(5, 8, device="meta")})
    some = torch.tensor([True, False, True, False, False])
    for one in (samples, samples._replace(unknown_users=some, unknown_items=~some)):
        offsets = model.offsets(one)
        assert offsets is not None and offsets.is_meta and offsets.shape == (5,)
