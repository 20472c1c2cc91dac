"""LC-Rec's model: tokens beside the vocabulary, dense targets, packed as padded, decoding as one forward would say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cora.codes import ItemCodes
from cora.codes.assign import random_codes
from cora.codes.search import all_scores
from cora.collaborative import CollaborativeEmbeddings
from cora.methods.lcrec.config import LCRecConfig
from cora.methods.lcrec.decoding import TreeDecoder
from cora.methods.lcrec.model import LCRecModel
from cora.methods.lcrec.tasks import IGNORED, Example, collated
from cora_kernels import use_backend

ITEMS, LEVELS, SIZE, VOCABULARY = 20, 3, 4, 101
Build = Callable[..., LCRecModel]


@pytest.fixture
def codes() -> ItemCodes:
    return ItemCodes(list(range(100, 100 + ITEMS)), random_codes(ITEMS, LEVELS, SIZE, seed=0), SIZE)


@pytest.fixture
def build(make_base: Callable[..., PreTrainedModel], codes: ItemCodes) -> Build:
    def made(trained: bool = True, architecture: str = "llama", **changes: Any) -> LCRecModel:
        users = CollaborativeEmbeddings([1, 2, 3], [5, 6], torch.randn(3, 4), torch.randn(2, 4))
        config = LCRecConfig(**(dict(r=3, dropout=0.0, beam=5) | changes))
        base = make_base(architecture, max_position_embeddings=128)
        model = LCRecModel(base, config, codes, users if config.generator else None)
        if trained:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if parameter.requires_grad and ("lora_b" in name or "matrices" in name):
                        parameter.normal_(std=0.1)
                model.tokens.rows.normal_()
                model.tokens.head.normal_()
        return model.eval()

    return made


def sequence(model: LCRecModel, items: list[int], prompt: list[int]) -> Example:
    """A prompt and the codes of the items behind it, every code a target."""
    tokens = prompt + [int(one) for item in items for one in model.tokens.item_tokens[item]]
    labels = [IGNORED] * (len(prompt) - 1) + tokens[len(prompt) :]
    return Example(tokens[:-1], labels)


def batch(model: LCRecModel) -> dict[str, Tensor]:
    return collated(
        [sequence(model, [1, 2, 3], [5, 6]), sequence(model, [4], [7, 8, 9]), Example([5, 6, 11], [IGNORED, 11, 12])]
    )


def test_dense_loss_is_the_mean_of_the_losses_of_the_prefixes(build: Build) -> None:
    model = build()
    items, prompt = [3, 0, 7, 12], [5, 6, 9]
    dense = model(**collated([sequence(model, items, prompt)])).loss
    losses = []
    for n in range(len(items)):
        whole = sequence(model, items[: n + 1], prompt)
        only = [IGNORED] * (len(whole.labels) - LEVELS) + whole.labels[-LEVELS:]
        losses.append(model(**collated([Example(whole.tokens, only)])).loss)
    torch.testing.assert_close(dense, torch.stack(losses).mean())


def test_packed_is_padded(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    inputs = batch(model)
    assert model._packing.serves(inputs["attention_mask"])
    packed = model(**inputs).loss
    packed.backward()
    grads = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    monkeypatch.setattr(model._packing, "serves", lambda mask: False)
    padded = model(**inputs).loss
    padded.backward()
    torch.testing.assert_close(packed, padded)
    assert len(grads) > 2
    for name, one in model.named_parameters():
        if name in grads:
            torch.testing.assert_close(one.grad, grads[name], atol=1e-5, rtol=1e-3)


def test_the_loss_is_cross_entropy_within_the_level_or_the_vocabulary(build: Build, codes: ItemCodes) -> None:
    """Against a loop over positions with a vocabulary that was resized the usual way."""
    model = build(normalise="level")
    inputs = batch(model)
    loss = model(**inputs).loss
    rows, deltas = model.tokens.rows.detach(), model.deltas(None)
    changes = {name: one.scaling * (one.lora_a @ one.lora_b).detach() for name, one in deltas.items()}
    base, used = model.unpatch(), model.tokens.used
    for name, change in changes.items():
        base.get_submodule(name).weight.data += change.t()
    table = torch.cat([base.get_input_embeddings().weight.detach(), rows])
    head = torch.cat([base.get_output_embeddings().weight.detach(), model.tokens.head.detach()])
    losses = []
    for ids, mask, labels in zip(*inputs.values(), strict=True):
        length = int(mask.sum())
        hidden = base.base_model(inputs_embeds=table[ids[:length]][None]).last_hidden_state[0]
        for h, label in zip(hidden, labels[:length].tolist(), strict=True):
            if label == IGNORED:
                continue
            logits = head @ h
            level = (label - VOCABULARY) // SIZE
            allowed = list(range(VOCABULARY))
            if label >= VOCABULARY:
                allowed = [VOCABULARY + level * SIZE + c for c in range(SIZE) if used[level, c]]
            losses.append(logits[allowed].logsumexp(0) - logits[label])
    torch.testing.assert_close(loss, torch.stack(losses).mean(), atol=1e-5, rtol=1e-4)


def test_untrained_every_code_that_items_have_behind_the_same_codes_is_as_probable(build: Build) -> None:
    model = build(trained=False)
    items = model.codes.codes.tolist()
    losses = []
    for item in (3, 0, 7):
        for level in range(LEVELS):
            beginning = items[item][:level]
            rivals = {one[level] for one in items if one[:level] == beginning}
            losses.append(torch.tensor(float(len(rivals))).log())
    assert len({float(one) for one in losses}) > 1
    loss = model(**collated([sequence(model, [3, 0, 7], [5, 6])])).loss
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_text_is_as_without_codes_bit_for_bit(build: Build, make_base: Any, pad: Any, prompts: Any) -> None:
    model = build(trained=False)
    ids, mask = pad(prompts, "right")
    with use_backend("chain"), torch.no_grad():
        model.patch.set_deltas(model.deltas(None))
        ours = model.base(input_ids=ids, attention_mask=mask).logits
        through = model.hidden(ids, mask, model.deltas(None))
        base = model.unpatch()
        assert torch.equal(ours, base(input_ids=ids, attention_mask=mask).logits)
        assert torch.equal(through, base.base_model(input_ids=ids).last_hidden_state[mask.bool()])


def test_removal_gives_the_base_model_back(build: Build, make_base: Any) -> None:
    torch.manual_seed(0)
    expected = make_base("llama", max_position_embeddings=128)
    torch.manual_seed(0)
    model = build()
    size = len(model.base.get_input_embeddings().weight)
    base = model.unpatch()
    assert list(dict(base.named_modules())) == list(dict(expected.named_modules()))
    assert base.config._attn_implementation == expected.config._attn_implementation
    assert size == VOCABULARY and all(one.requires_grad for one in base.parameters())
    LCRecModel(base, LCRecConfig(r=2), model.codes).unpatch()


def test_a_code_that_is_neither_read_nor_a_rival_gets_no_gradient(build: Build) -> None:
    model = build(normalise="level")
    example = sequence(model, [1, 2], [5, 6])
    first = [label if (label - VOCABULARY) // SIZE == 0 else IGNORED for label in example.labels]
    model(**collated([Example(example.tokens, first)])).loss.backward()
    rows, head = model.tokens.rows.grad, model.tokens.head.grad
    assert rows is not None and head is not None
    # Of the second item nothing is read before a target.
    read = {int(one) - VOCABULARY for one in model.tokens.item_tokens[1]}
    for row in range(LEVELS * SIZE):
        assert (row in read) == bool(rows[row].abs().max() > 0), row
        rival = row < SIZE and bool(model.tokens.used[0, row])  # of the level that targets are of
        assert rival == bool(head[row].abs().max() > 0), row


def test_codes_start_apart_from_each_other_where_their_items_titles_say(build: Build) -> None:
    model = build(trained=False)
    titles = [[3 + item, 4 + item] if item else [] for item in range(ITEMS)]
    model.tokens.start(model.base, titles)
    table = model.base.get_input_embeddings().weight.detach()
    middle = table.mean(0)
    means = torch.stack([table[ids].mean(0) if ids else middle for ids in titles])
    distance = (table - middle).norm(dim=1).median()
    starts = (model.tokens.rows.detach() - middle).view(LEVELS, SIZE, -1)
    torch.testing.assert_close(starts.norm(dim=-1), distance.expand(LEVELS, SIZE))
    for level in range(LEVELS):
        for code in range(SIZE):
            items = [item for item in range(ITEMS) if int(model.codes.codes[item, level]) == code]
            if items:
                direction = means[items].mean(0) - means.mean(0)
                assert float(torch.cosine_similarity(direction, starts[level, code], dim=0)) > 0.999
    assert not bool(model.tokens.head.any())  # every code is as probable


def test_codes_without_titles_start_apart_from_each_other_and_alike_every_time(build: Build) -> None:
    model, rows = build(trained=False), []
    for _ in range(2):
        model.tokens.start(model.base, [[]] * ITEMS)
        rows.append(model.tokens.rows.detach().clone())
    assert torch.equal(*rows)
    distances = torch.cdist(rows[0], rows[0]) + torch.eye(LEVELS * SIZE) * 1e9
    table = model.base.get_input_embeddings().weight.detach()
    assert distances.min() > 0.5 * (table - table.mean(0)).norm(dim=1).median()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gemma"])
@pytest.mark.parametrize(("generator", "normalise"), [(None, "level"), (None, "children"), ("mlp", "children")])
@torch.no_grad()
def test_the_tree_says_what_a_forward_of_every_item_says(
    build: Build, architecture: str, generator: str | None, normalise: str
) -> None:
    model = build(architecture=architecture, generator=generator, normalise=normalise, user_rank=2)
    prompts = [[5, 6, 7, VOCABULARY + 1, VOCABULARY + 6], [9], [11, 12, 13]]
    vectors = torch.randn(3, 4) if generator else None
    decoder = TreeDecoder(model, prompts, model.deltas(vectors))
    scores = all_scores(model.codes.trie, decoder, 3, normalise)
    for user, prompt in enumerate(prompts):
        for item in range(ITEMS):
            tokens = prompt + model.tokens.item_tokens[item].tolist()
            labels = [IGNORED] * (len(prompt) - 1) + tokens[len(prompt) :]
            of_user = None if vectors is None else vectors[[user]]
            loss = model(**collated([Example(tokens[:-1], labels)]), user_vectors=of_user).loss
            torch.testing.assert_close(scores[user, item], -LEVELS * loss, atol=2e-4, rtol=1e-3)


def test_ranked_items_are_the_best_of_all_and_none_is_seen(build: Build) -> None:
    model = build()
    prompts = [[5, 6, 7], [9], [11, 12, 13, 14], [8, 8]]
    seen = torch.rand(4, ITEMS) < 0.3
    ranked = model.rank(prompts, seen=seen, width=ITEMS, batch_size=3)
    scores = all_scores(model.codes.trie, TreeDecoder(model, prompts, model.deltas(None)), 4)
    for user in range(4):
        order = [item for item in scores[user].argsort(descending=True).tolist() if not seen[user, item]]
        assert ranked.items[user].tolist() == order + [-1] * (ITEMS - len(order))
    both = model.rank_all(prompts, None, [None, seen, None], ITEMS)
    assert torch.equal(both[1].items, ranked.items) and torch.equal(both[2].items, both[0].items)
    assert torch.equal(both[0].items, model.rank(prompts, width=ITEMS).items)
    narrow = model.rank(prompts, seen=seen)
    assert narrow.items.shape == (4, 5) and not any(seen[u, i] for u in range(4) for i in narrow.items[u].tolist())


def test_a_users_lora_starts_at_nothing_and_tells_users_apart_once_trained(build: Build) -> None:
    inputs = {}
    losses = []
    for trained in (False, True):
        model = build(trained=trained, generator="mlp", user_rank=2)
        inputs = batch(model)
        one, other = torch.randn(3, 4), torch.randn(3, 4)
        losses.append([float(model(**inputs, user_vectors=v).loss.detach()) for v in (one, other)])
    assert losses[0][0] == losses[0][1] and losses[1][0] != losses[1][1]
    with pytest.raises(ValueError, match=r"user_vectors: expected \[B, d\] with a generator"):
        model(**inputs)


def test_what_is_trained_gets_gradients_and_nothing_else_does(build: Build) -> None:
    model = build(generator="mlp", user_rank=2).train()
    model(**batch(model), user_vectors=torch.randn(3, 4)).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("base."):
            assert parameter.grad is None and not parameter.requires_grad, name
        else:
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("generator", [None, "mlp"])
def test_round_trip(build: Build, generator: str | None, tmp_path: Path) -> None:
    model = build(generator=generator)
    vectors = torch.randn(2, 4) if generator else None
    expected = model.rank([[5, 6], [7]], vectors)
    model.save_pretrained(tmp_path)
    again = LCRecModel.from_pretrained(tmp_path, model.unpatch())
    found = again.rank([[5, 6], [7]], vectors)
    assert torch.equal(found.items, expected.items) and torch.equal(found.scores, expected.scores)
    assert again.codes.item_ids == model.codes.item_ids


def test_errors_name_the_argument(build: Build, make_base: Any, codes: ItemCodes) -> None:
    model = build()
    inputs = batch(model)
    with pytest.raises(ValueError, match=r"labels: expected \[3, 10\], as input_ids has, got \[3, 2\]"):
        model(**inputs | {"labels": torch.zeros(3, 2, dtype=torch.int64)})
    with pytest.raises(ValueError, match="labels: expected a target at one position at least"):
        model(**inputs | {"labels": torch.full_like(inputs["labels"], IGNORED)})
    with pytest.raises(TypeError, match="base_model: expected a transformers causal LM, got Linear"):
        LCRecModel(torch.nn.Linear(2, 2), LCRecConfig(), codes)  # type: ignore[arg-type]
    base = make_base("llama")
    objects = dict(base.named_modules())
    with pytest.raises(ValueError, match="embeddings: needed with a generator and with none else"):
        LCRecModel(base, LCRecConfig(generator="mlp"), codes)
    with pytest.raises(ValueError, match="target_modules: among them is the output layer"):
        LCRecModel(base, LCRecConfig(target_modules=("q_proj", "lm_head")), codes)
    assert dict(base.named_modules()) == objects


@pytest.mark.parametrize("case", ["no item", "second alone", "first alone", "text"])
def test_a_target_that_is_no_items_code_is_refused(build: Build, case: str) -> None:
    model = build()
    items = model.tokens.item_tokens.tolist()
    first, second, third = items[1]
    last = range(VOCABULARY + 2 * SIZE, VOCABULARY + 3 * SIZE)
    before, target = {
        "no item": ([first, second], next(one for one in last if [first, second, one] not in items)),
        "second alone": ([second], third),
        "first alone": ([first], third),
        "text": ([], second),
    }[case]
    given = collated([Example([5, *before], [IGNORED] * len(before) + [target])])
    with pytest.raises(ValueError, match="labels: expected codes of items, got one that no item has behind"):
        model(**given)
    right = collated([Example([5, first, second], [IGNORED, IGNORED, third])])
    assert model(**right).loss.isfinite()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(tasks=("item2index",)), "tasks: expected seqrec and others, each once, got item2index"),
        (dict(tasks=("seqrec", "chat")), "tasks: expected one of seqrec, item2index, index2item, fusion, got 'chat'"),
        (dict(targets="all"), "targets: expected one of dense, response, got 'all'"),
        (dict(normalise="none"), "normalise: expected one of level, children, got 'none'"),
        (dict(generator="gan"), "generator: expected one of mlp"),
        (dict(beam=0), "beam: expected a whole number from 1, got 0"),
    ],
)
def test_configuration_errors_name_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LCRecConfig(**change)


@torch.no_grad()
def test_the_beam_is_that_of_transformers_over_a_resized_vocabulary(build: Build) -> None:
    """An oracle that shares no code: merged weights, new rows in embedding and head, generate() held to the items."""
    model = build()
    prompt = [5, 6, 7, VOCABULARY + 1, VOCABULARY + 6, VOCABULARY + 9]
    ours = model.rank([prompt])
    rows, head = model.tokens.rows.detach().clone(), model.tokens.head.detach().clone()
    tokens = model.tokens.item_tokens.tolist()
    changes = {name: one.scaling * (one.lora_a @ one.lora_b) for name, one in model.deltas(None).items()}
    base: Any = model.unpatch()
    for name, change in changes.items():
        base.get_submodule(name).weight += change.t()
    base.resize_token_embeddings(VOCABULARY + len(rows))
    base.get_input_embeddings().weight[VOCABULARY:] = rows
    base.get_output_embeddings().weight[VOCABULARY:] = head

    def following(_: int, sequence: Tensor) -> list[int]:
        so_far = sequence[len(prompt) :].tolist()
        return sorted({one[len(so_far)] for one in tokens if one[: len(so_far)] == so_far})

    found = base.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        num_beams=5,
        num_return_sequences=5,
        max_new_tokens=LEVELS,
        prefix_allowed_tokens_fn=following,
        renormalize_logits=True,
        length_penalty=0.0,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert [tokens.index(one) for one in found.sequences[:, len(prompt) :].tolist()] == ours.items[0].tolist()
    torch.testing.assert_close(found.sequences_scores, ours.scores[0], atol=1e-4, rtol=1e-4)
