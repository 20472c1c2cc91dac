"""Prompts that share a beginning: the same scores and gradients as each by itself with the same deltas."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import cora.llm.packing
from cora import CoRAConfig, CoRAModel
from cora.collaborative import CollaborativeEmbeddings
from cora.generators.shared_p import SharedP
from cora.llm.batches import Prompts, families_of, token_batches
from cora.methods.tallrec import config as tallrec_config
from cora.methods.tallrec.model import TALLRecModel
from cora_kernels import backends, use_backend
from tests.model.agreement import assert_packed_is_chained

# Two prompts of user 10 begin alike; one does with another history, and one of user 20 with the same words.
USERS, ITEMS = torch.tensor([10, 20, 10, 10, 30]), torch.tensor([7, 5, 5, 6, 8])
PREFIXES = torch.tensor([5, 5, 5, 3, 0])
LABELS = torch.tensor([1.0, 0, 0, 1, 1])
needs_kernel = pytest.mark.skipif(backends()["cpu"] is not None, reason=f"cpu: {backends()['cpu']}")
Batch = tuple[Tensor, list[int]]


@pytest.fixture
def alike(prompts: Batch) -> Batch:
    tokens, lengths = prompts
    tokens[1:3, :5] = tokens[0, :5]
    return tokens, [9, 8, 6, 4, 9]


@pytest.fixture
def build(targets: Any) -> Callable[..., CoRAModel]:
    def make(base: PreTrainedModel, **options: Any) -> CoRAModel:
        torch.manual_seed(1)
        embeddings = CollaborativeEmbeddings([10, 20, 30, 40], [5, 6, 7], torch.randn(4, 8), torch.randn(3, 8))
        names = ("q_proj", "v_proj") if base.config.model_type == "phi" else targets(base)
        options = dict(r=3, target_modules=names, answer_ids=(11, 23), shared_prefix=True) | options
        model = CoRAModel(base, CoRAConfig(**options), embeddings)
        for matrix in (p for module in model.modules() if isinstance(module, SharedP) for p in module.parameters()):
            nn.init.normal_(matrix, std=2.0)
        return model.eval()

    return make


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[int]]]:
    """cu_seqlens and parents of every call of packed_attention."""
    seen: list[tuple[list[int], list[int]]] = []
    op = cora.llm.packing.packed_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *, parents: Tensor, **options: Any) -> Tensor:
        seen.append((cu_seqlens.tolist(), parents.tolist()))
        return op(q, k, v, cu_seqlens, parents=parents, **options)

    monkeypatch.setattr(cora.llm.packing, "packed_attention", spy)
    return seen


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def one_by_one(model: CoRAModel, prompts: Batch) -> Tensor:
    """The definition: of each prompt alone, every linear of the bare model with the delta of each token's own part."""
    scores = []
    base = model.base
    rows = len(USERS)
    mean = model.pairs(model.embeddings.lookup_users(USERS), torch.full((rows,), len(model.embeddings.items)))
    pair = model.pairs(model.embeddings.lookup_users(USERS), model.embeddings.lookup_items(ITEMS))
    alone, both = model.generator(*mean), model.generator(*pair)
    model.patch.set_deltas(None)
    for row, length in enumerate(prompts[1]):
        tokens, handles = prompts[0][row : row + 1, :length], []
        for name in model.patch.layers:

            def add(module: nn.Module, args: Any, y: Tensor, name: str = name, row: int = row) -> Tensor:
                x, cut = args[0], int(PREFIXES[row])
                parts = [(x[:, :cut], alone[name]), (x[:, cut:], both[name])]
                return y + torch.cat([d.scaling * part @ d.lora_a[row] @ d.lora_b for part, d in parts], 1)

            handles.append(model.patch.layers[name].register_forward_hook(add))
        logits = base(input_ids=tokens, use_cache=False).logits[0, -1]
        scores.append(logits[11] - logits[23])
        for handle in handles:
            handle.remove()
    return torch.stack(scores)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("backend", [pytest.param(None, marks=needs_kernel), "chain"])
@pytest.mark.parametrize("generator", ["mlp", "per_layer"])
def test_it_is_the_definition(
    make_base: Any, build: Any, alike: Batch, pad: Any, side: str, backend: str | None, generator: str
) -> None:
    model = build(make_base("llama"), generator=generator)
    expected = one_by_one(model, alike)
    with use_backend(backend):
        out = model(*pad(alike, side), USERS, ITEMS, LABELS, prefix_lengths=PREFIXES)
    torch.testing.assert_close(out.logits, expected, atol=5e-5, rtol=1e-4)
    got = torch.autograd.grad(out.logits.square().sum(), list(trained(model).values()))
    wanted = torch.autograd.grad(expected.square().sum(), list(trained(model).values()))
    for name, one, other in zip(trained(model), got, wanted, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm(), name


@needs_kernel
@pytest.mark.parametrize("architecture", cora.llm.packing._ARCHITECTURES)
def test_prompts_that_begin_alike_hold_that_once(
    make_base: Any, build: Any, alike: Batch, pad: Any, calls: Any, architecture: str
) -> None:
    changes = dict(sliding_window=16) if architecture == "mistral" else {}
    model = build(make_base(architecture, **changes))
    assert_packed_is_chained(model, lambda: model(*pad(alike, "left"), USERS, ITEMS, LABELS, prefix_lengths=PREFIXES))
    together = [0, 5, 9, 10, 15, 18, 21, 22, 22, 31], [-1, 0, 0, -1, 3, -1, 5, -1, 7]
    assert calls == [together] * 2, "one call for each layer, of the packed forward alone"


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["opt", "mistral", "gpt2"])
def test_where_nothing_is_packed_each_prompt_is_two_samples(
    make_base: Any, build: Any, targets: Any, alike: Batch, pad: Any, architecture: str
) -> None:
    names = ("q_proj", "v_proj") if architecture == "opt" else targets(make_base(architecture))
    model = build(make_base(architecture), target_modules=names)
    with use_backend("chain"):
        whole = model(*pad(alike, "left"), USERS, ITEMS, prefix_lengths=PREFIXES).logits
        for row, length in enumerate(alike[1]):
            one = slice(row, row + 1)
            arguments = alike[0][one, :length], None, USERS[one], ITEMS[one]
            alone = model(*arguments, prefix_lengths=PREFIXES[one]).logits
            torch.testing.assert_close(alone, whole[one], atol=5e-5, rtol=1e-4)


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_scores_in_batches_of_tokens(make_base: Any, build: Any, alike: Batch, pad: Any, batch_size: int) -> None:
    model = build(make_base("llama"))
    ids, mask = pad(alike, "left")
    expected = model(ids, mask, USERS, ITEMS, prefix_lengths=PREFIXES).logits
    scores = model.score(ids, mask, USERS, ITEMS, batch_size, prefix_lengths=PREFIXES)
    torch.testing.assert_close(scores, expected, atol=5e-5, rtol=1e-4)
    frozen = model.score(ids, mask, USERS, ITEMS, batch_size, adapted=False, prefix_lengths=PREFIXES)
    plain = build(make_base("llama"), shared_prefix=False)
    plain.base.load_state_dict(model.base.state_dict())
    torch.testing.assert_close(frozen, plain.score(ids, mask, USERS, ITEMS, adapted=False), atol=5e-5, rtol=1e-4)


@needs_kernel
@torch.no_grad()
def test_other_vectors_of_one_user_share_nothing(
    make_base: Any, build: Any, alike: Batch, pad: Any, calls: Any
) -> None:
    model = build(make_base("llama"))
    vectors = torch.randn(4, 8)[[0, 1, 2, 3, 3]]
    ids, mask = pad(alike, "left")
    model(ids, mask, USERS, ITEMS, user_vectors=vectors, prefix_lengths=PREFIXES)
    assert calls[-1][1] == [-1, 0, -1, 2, -1, 4, -1, 6, -1, 8]
    vectors[2] = vectors[0]
    scores = model(ids, mask, USERS, ITEMS, user_vectors=vectors, prefix_lengths=PREFIXES).logits
    assert calls[-1][1] == [-1, 0, 0, -1, 3, -1, 5, -1, 7]
    with use_backend("chain"):
        apart = model(ids, mask, USERS, ITEMS, user_vectors=vectors, prefix_lengths=PREFIXES).logits
    torch.testing.assert_close(scores, apart, atol=5e-5, rtol=1e-4)


def test_an_unknown_user_is_one_in_the_whole_prompt(
    make_base: Any, build: Any, alike: Batch, pad: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(make_base("llama"), user_dropout=0.5, dropout=0.0).train()
    seen: list[Tensor] = []
    pairs = model.pairs.forward
    monkeypatch.setattr(model.pairs, "forward", lambda users, items: seen.append(users) or pairs(users, items))
    drawn = set()
    for _ in range(20):
        model(*pad(alike, "left"), USERS, ITEMS, prefix_lengths=PREFIXES)
        rows = seen.pop().tolist()
        by_user = [{rows[0], *rows[1:3], *rows[5:7]}, set(rows[3:5]), set(rows[7:])]
        assert all(len(one) == 1 for one in by_user), rows
        drawn |= {row for one in by_user for row in one}
    assert drawn == {0, 1, 2, 4}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_recomputed_layers_have_their_deltas(
    make_base: Any, build: Any, alike: Batch, pad: Any, checkpointing: bool
) -> None:
    model = build(make_base("llama"), dropout=0.0, generator_dropout=0.0)
    expected = torch.autograd.grad(
        model(*pad(alike, "left"), USERS, ITEMS, LABELS, prefix_lengths=PREFIXES).loss, list(trained(model).values())
    )
    if checkpointing:
        model.activation_checkpointing_enable()
    for backend in (None, "chain"):
        with use_backend(backend):
            loss = model.train()(*pad(alike, "left"), USERS, ITEMS, LABELS, prefix_lengths=PREFIXES).loss
            got = torch.autograd.grad(loss, list(trained(model).values()))
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (None, ValueError, "prefix_lengths: needed, one per prompt, with shared_prefix, got none"),
        (
            PREFIXES[:4],
            TypeError,
            r"prefix_lengths: expected int64 \[5\], one per row of input_ids, got torch.int64 \[4\]",
        ),
        (PREFIXES.float(), TypeError, r"got torch.float32 \[5\]"),
        (PREFIXES + 4, ValueError, "expected less than the tokens of the prompt, got 9 of 9 in row 0"),
        (PREFIXES - 1, ValueError, "got -1 of 9 in row 4"),
    ],
)
def test_errors(
    make_base: Any, build: Any, alike: Batch, pad: Any, lengths: Tensor | None, error: Any, message: str
) -> None:
    model = build(make_base("llama"))
    for call in (model, model.score):
        with pytest.raises(error, match=message):
            call(*pad(alike, "left"), USERS, ITEMS, prefix_lengths=lengths)


def test_models_that_split_no_prompts_refuse(make_base: Any, build: Any, alike: Batch, pad: Any) -> None:
    models = [build(make_base("llama"), shared_prefix=False)]
    models.append(TALLRecModel(make_base("llama"), tallrec_config.TALLRecConfig(answer_ids=(11, 23))))
    for model in models:
        with pytest.raises(ValueError, match="prefix_lengths: for a model trained with shared_prefix, got them"):
            model(*pad(alike, "left"), USERS, ITEMS, prefix_lengths=PREFIXES)
    with pytest.raises(ValueError, match="shared_prefix: text is generated by models that"):
        build(make_base("llama")).generate(*pad(alike, "left"), user_ids=USERS, item_ids=ITEMS)


@pytest.mark.parametrize("value", [1, "true", None])
def test_shared_prefix_is_true_or_false(value: Any) -> None:
    with pytest.raises(TypeError, match="shared_prefix: expected true or false, got"):
        CoRAConfig(shared_prefix=value)


def test_families_are_of_one_owner_and_one_beginning() -> None:
    ids = torch.tensor([[0, 3, 4, 5], [3, 4, 5, 0], [3, 4, 6, 6], [3, 5, 6, 6]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    assert families_of(ids, mask, torch.tensor([2, 2, 2, 2]), None) == [[0, 1, 2], [3]]
    assert families_of(ids, mask, torch.tensor([2, 2, 2, 1]), ["a", "b", "a", "a"]) == [[0, 2], [1], [3]]
    assert families_of(ids, mask, torch.tensor([0, 0, 2, 0]), None) == [[0, 1, 3], [2]]


def test_packed_families_take_every_token_once() -> None:
    ids = torch.tensor([[9, 9, 3, 4, 5], [3, 4, 6, 7, 9], [9, 1, 2, 9, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0], [0, 1, 1, 0, 0]])
    packed = Prompts.packed_in_families(ids, mask, torch.tensor([2, 2, 1]), [[0, 1], [2]])
    assert packed.input_ids.tolist() == [[3, 4, 5, 6, 7, 1, 2]]
    assert packed.position_ids is not None and packed.position_ids.tolist() == [[0, 1, 2, 2, 3, 0, 1]]
    assert packed.last.tolist() == [2, 4, 6] and packed.rows == [0, 0, 1, 2, 2]
    assert packed.cu_seqlens is not None and packed.cu_seqlens.tolist() == [0, 2, 3, 5, 6, 7]
    assert packed.parents is not None and packed.parents.tolist() == [-1, 0, 0, -1, 3]


def test_batches_of_tokens() -> None:
    families = [[0, 2, 3], [1], [4, 5]]
    prefix, lengths = [10, 4, 10, 10, 6, 6], [13, 30, 12, 11, 8, 9]
    assert token_batches(families, prefix, lengths, 15) == [[0, 2], [3], [1], [4, 5]]
    assert token_batches(families, prefix, lengths, 16) == [[0, 2, 3], [1], [4, 5]]
    assert token_batches(families, prefix, lengths, 1) == [[0], [2], [3], [1], [4], [5]]
    assert token_batches(families, prefix, lengths, 1000) == [[0, 2, 3, 1, 4, 5]]
    assert token_batches([], prefix, lengths, 8) == []
