"""What belongs to one forward stays with it: several forwards in one graph, threads, copies, saving while patched."""

import copy
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel

import cora
from cora import CoRAConfig, CoRAModel
from cora.collaborative import CollaborativeEmbeddings
from cora.generators.shared_p import SharedP

IDS = torch.arange(12).view(2, 6) + 3


def logits(base: PreTrainedModel, ids: Tensor = IDS) -> Tensor:
    return base(input_ids=ids, use_cache=False).logits


def build(base: PreTrainedModel, **changes: Any) -> CoRAModel:
    torch.manual_seed(1)
    embeddings = CollaborativeEmbeddings([1, 2, 3, 4], [5, 6, 7], torch.randn(4, 8), torch.randn(3, 8))
    fields: dict[str, Any] = dict(r=3, hidden_size=16, answer_ids=(11, 23), dropout=0.0, generator_dropout=0.0)
    model = CoRAModel(base, CoRAConfig(**(fields | changes)), embeddings)
    for module in model.modules():
        if isinstance(module, SharedP):
            for matrix in module.parameters():
                nn.init.normal_(matrix)
    return model


def two_forwards(base: PreTrainedModel, patch: cora.Patch, one: Any, two: Any) -> Tensor:
    patch.set_deltas(one)
    first = logits(base)
    patch.set_deltas(two)
    return first.square().mean() - 2 * logits(base).square().mean()


def reference_pass(base: PreTrainedModel, patch: cora.Patch, one: Any, two: Any) -> Tensor:
    """As in preference training: the adapted model, then the base model's own answer, then the backward."""
    patch.set_deltas(one)
    policy = logits(base)
    with torch.no_grad():
        patch.set_deltas(None)
        reference = logits(base)
        patch.set_deltas(two)
        other = logits(base)
    return ((policy - reference) * other).mean()


def chained(base: PreTrainedModel, patch: cora.Patch, one: Any, two: Any) -> Tensor:
    """What one forward gives is read by the next, so one graph holds both."""
    embed = base.get_input_embeddings()
    patch.set_deltas(one)
    first = logits(base).softmax(-1) @ embed.weight
    patch.set_deltas(two)
    return base(inputs_embeds=first, use_cache=False).logits.square().mean()


def packed_then_padded(base: PreTrainedModel, patch: cora.Patch, one: Any, two: Any) -> Tensor:
    patch.set_deltas(one, torch.tensor([0, 6, 12], dtype=torch.int32))
    first = logits(base, IDS.view(1, 12))
    patch.set_deltas(two)
    return first.square().mean() + logits(base).square().mean()


@pytest.mark.parametrize("loss", [two_forwards, reference_pass, chained, packed_then_padded])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_recomputation_has_the_deltas_of_its_forward(
    make_base: Any, targets: Any, make_deltas: Any, architecture: str, loss: Callable[..., Tensor]
) -> None:
    base = make_base(architecture).requires_grad_(False).train()
    patch = cora.patch(base, targets(base))
    one, two = make_deltas(patch, 2), make_deltas(patch, 2)
    leaves = [t for deltas in (one, two) for a, b, _ in deltas.values() for t in (a, b)]
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        value = loss(base, patch, one, two)
        patch.set_deltas(None)  # whatever is set now is of no forward above
        gradients.append(torch.autograd.grad(value, leaves, allow_unused=True))
    for plain, again in zip(*gradients, strict=True):
        assert (plain is None) == (again is None)
        assert plain is None or torch.equal(plain, again)
    assert any(plain is not None and plain.abs().max() > 0 for plain in gradients[0])


def test_a_checkpoint_of_ones_own(make_base: Any, make_deltas: Any) -> None:
    """Around the whole model, and with deltas set inside."""
    base = make_base("llama").requires_grad_(False)
    patch = cora.patch(base)
    one, two = make_deltas(patch, 2), make_deltas(patch, 2)
    leaves = [t for deltas in (one, two) for a, b, _ in deltas.values() for t in (a, b)]
    expected = torch.autograd.grad(two_forwards(base, patch, one, two), leaves)
    inside = checkpoint(two_forwards, base, patch, one, two, use_reentrant=False)
    patch.set_deltas(None)
    assert all(map(torch.equal, torch.autograd.grad(inside, leaves), expected))

    patch.set_deltas(one)
    first = checkpoint(logits, base, use_reentrant=False)
    patch.set_deltas(two)
    around = first.square().mean() - 2 * checkpoint(logits, base, use_reentrant=False).square().mean()
    assert all(map(torch.equal, torch.autograd.grad(around, leaves), expected))


def test_reentrant_checkpointing_is_refused_with_the_reason(make_base: Any, make_deltas: Any) -> None:
    base = make_base("llama").requires_grad_(False).train()
    patch = cora.patch(base)
    base.gradient_checkpointing_enable({"use_reentrant": True})
    base.enable_input_require_grads()
    patch.set_deltas(make_deltas(patch, 2))
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        logits(base).sum().backward()


@pytest.mark.parametrize("generator", ["mlp", "per_layer"])
def test_a_pairwise_loss_under_checkpointing(make_base: Any, generator: str) -> None:
    """Two forwards of one model, liked and disliked item, and a score in between that must not matter."""
    model = build(make_base("llama"), generator=generator, query_width=16).train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        liked = model(IDS, None, [1, 2], [5, 6]).logits
        disliked = model(IDS.flip(1), None, [1, 2], [7, 5]).logits
        model.score(IDS, None, [3, 4], [7, 7])
        nn.functional.softplus(disliked - liked).mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_a_checkpoint_around_the_scoring_model(make_base: Any) -> None:
    """The positions of the answers are the forward's too."""
    model = build(make_base("llama")).train()
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    gradients = []
    for around in (lambda f, *args: f(*args), lambda f, *args: checkpoint(f, *args, use_reentrant=False)):
        model.zero_grad()
        scores = around(lambda ids: model(ids, mask, [1, 2], [5, 6]).logits, IDS)
        model.score(IDS, None, [3, 4], [7, 7])
        scores.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(map(torch.equal, *gradients))


def test_a_compiled_model_is_compiled_once_for_all_deltas(make_base: Any, make_deltas: Any) -> None:
    base = make_base("llama").requires_grad_(False)
    patch = cora.patch(base)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(base, backend=counter, fullgraph=True)  # before any eager call has left its state
    for _ in range(3):
        deltas = make_deltas(patch, 2)
        leaves = [t for a, b, _ in deltas.values() for t in (a, b)]
        patch.set_deltas(deltas)
        traced, eager = (torch.autograd.grad(logits(model).square().mean(), leaves) for model in (compiled, base))
        for one, other in zip(traced, eager, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert counter.frame_count == 1


@pytest.fixture
def switching() -> Any:
    """Threads take turns so often that what they share is seen half written."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_threads_have_their_own_deltas(make_base: Any, make_deltas: Any, switching: None) -> None:
    base = make_base("llama")
    patch = cora.patch(base)
    deltas = [make_deltas(patch, 2) for _ in range(8)]

    @torch.no_grad()
    def answer(mine: Any) -> Tensor:
        patch.set_deltas(mine)
        return logits(base)

    expected = [answer(mine) for mine in deltas]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, deltas * 5))
    assert all(map(torch.equal, answers, expected * 5))
    with torch.no_grad():  # what the threads set is not what this one has
        assert torch.equal(logits(base), expected[-1])


@pytest.mark.parametrize("training", [False, True])
def test_eight_threads_score_as_one(make_base: Any, switching: None, training: bool) -> None:
    changes: dict[str, Any] = dict(dropout=0.5, user_dropout=0.5) if training else {}
    model = build(make_base("llama"), **changes).train(training)
    pairs = [([1 + i % 4, 1 + i // 4], [5 + i % 3, 6]) for i in range(8)]
    tasks = [lambda pair=pair: model.score(IDS, None, *pair, batch_size=1) for pair in pairs]
    if not training:
        tasks += [lambda pair=pair: model(IDS, None, *pair).logits.detach() for pair in pairs]
    kwargs: dict[str, Any] = dict(max_new_tokens=2, do_sample=False)
    tasks += [lambda p=pair: model.generate(IDS, None, user_ids=p[0], item_ids=p[1], **kwargs) for pair in pairs]
    expected = [task() for task in tasks]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert all(map(torch.equal, pool.map(lambda task: task(), tasks), expected))
    assert model.training is training and all(module.training is training for module in model.base.modules())


def test_backward_in_another_thread(make_base: Any, make_deltas: Any) -> None:
    base = make_base("llama").requires_grad_(False).train()
    base.gradient_checkpointing_enable({"use_reentrant": False})
    patch = cora.patch(base)
    one, two = make_deltas(patch, 2), make_deltas(patch, 2)
    leaves = [t for a, b, _ in one.values() for t in (a, b)]
    patch.set_deltas(one)
    expected = torch.autograd.grad(logits(base).square().mean(), leaves)
    loss = logits(base).square().mean()
    patch.set_deltas(two)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(torch.autograd.grad, loss, leaves).result()
    assert all(map(torch.equal, found, expected))


@torch.no_grad()
def test_copies(make_base: Any, make_deltas: Any) -> None:
    base = make_base("llama")
    patch = cora.patch(base)
    one, two = make_deltas(patch, 2), make_deltas(patch, 2)
    with torch.enable_grad():  # what a hypernetwork makes is no leaf, and cannot be copied as a tensor
        one = {name: (2 * a, 2 * b, s) for name, (a, b, s) in one.items()}
    patch.set_deltas(one)
    expected = logits(base)
    lone, handle = copy.deepcopy(base), copy.deepcopy(patch)
    patch.set_deltas(two)
    assert torch.equal(logits(lone), expected) and torch.equal(logits(handle.model), expected)
    other = logits(base)
    handle.set_deltas(two)
    assert torch.equal(logits(handle.model), other) and torch.equal(logits(lone), expected)
    handle.set_deltas(one)
    assert torch.equal(logits(base), other)
    handle.remove()
    patch.set_deltas(None)
    assert torch.equal(logits(handle.model), logits(base))
    again = pickle.loads(pickle.dumps(patch))
    again.set_deltas(two)
    assert torch.equal(logits(again.model), other)


def test_copy_of_a_scoring_model(make_base: Any) -> None:
    model = build(make_base("llama")).eval()
    expected = model.score(IDS, None, [1, 2], [5, 6])
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.add_(1)
    assert torch.equal(copied.score(IDS, None, [1, 2], [5, 6]), expected)
    assert not torch.equal(model.score(IDS, None, [1, 2], [5, 6]), expected)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    assert torch.equal(averaged.module.score(IDS, None, [1, 2], [5, 6]), model.score(IDS, None, [1, 2], [5, 6]))
    copied.unpatch()
    assert not any(isinstance(module, type(model.patch.layers)) for module in copied.base.modules())


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_saved_while_patched(make_base: Any, tmp_path: Path, architecture: str, targets: Any) -> None:
    base = make_base(architecture)
    expected, names = base.state_dict(), [name for name, _ in base.named_parameters()]
    before = logits(base).detach()
    patch = cora.patch(base, (*targets(base), "lm_head") if architecture == "llama" else targets(base))
    patch.set_deltas(None)
    assert base.state_dict().keys() == expected.keys()
    assert [name for name, _ in base.named_parameters()].sort() == names.sort()
    base.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in expected.items())
    torch.testing.assert_close(logits(again), before)
    doubled = {name: 2 * tensor for name, tensor in expected.items()}
    base.load_state_dict(doubled)
    patch.remove()
    assert all(torch.equal(tensor, doubled[name]) for name, tensor in base.state_dict().items())


def test_saved_while_scoring(make_base: Any, tmp_path: Path) -> None:
    base = make_base("llama")
    expected = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = build(base)
    model.base.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("how", ["patch", "model"])
def test_tied_and_resized_vocabularies(make_base: Any, tied: bool, how: str) -> None:
    base = make_base("llama", tie_word_embeddings=tied)
    if how == "model":
        undo, head = (model := build(base)).unpatch, "lm_head"
    else:
        patch = cora.patch(base, ["q_proj", "lm_head"])
        patch.set_deltas(None)
        undo, head = patch.remove, "lm_head"
    base.tie_weights()
    embed = base.get_input_embeddings()
    if tied:
        base.resize_token_embeddings(110)
        embed = base.get_input_embeddings()
        assert base.get_submodule(head).weight is embed.weight
        assert (model.score(IDS, None, [1, 2], [5, 6]) if how == "model" else logits(base)).isfinite().all()
    else:
        with pytest.raises(RuntimeError, match="resize_token_embeddings: the output layer is patched"):
            base.resize_token_embeddings(110)
        assert embed.weight.shape[0] == 101 and base.get_input_embeddings() is embed
    undo()
    assert type(base.get_submodule(head)) is nn.Linear and (base.lm_head.weight is embed.weight) == tied
    base.resize_token_embeddings(120)
    assert logits(base).shape[-1] == 120


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Coded(Tensor):
    """A weight that is more than its numbers, as quantisation libraries have it."""


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda linear: parametrize.register_parametrization(linear, "weight", Twice()), "expected a plain|makes its"),
        (lambda linear: prune.l1_unstructured(linear, "weight", 0.5), "makes its weight anew"),
        (lambda linear: nn.utils.weight_norm(linear), "makes its weight anew"),
        (
            lambda linear: linear._parameters.update(
                weight=nn.Parameter(linear.weight.detach().as_subclass(Coded), requires_grad=False)
            ),
            "the weight of .*q_proj is a .*Coded",
        ),
    ],
    ids=["parametrised", "pruned", "weight norm", "subclass"],
)
@pytest.mark.filterwarnings("ignore")
def test_linears_that_are_more_than_a_weight_and_a_bias_are_refused(make_base: Any, spoil: Any, message: str) -> None:
    base = make_base("llama")
    spoil(base.model.layers[1].self_attn.q_proj)
    objects = dict(base.named_modules())
    with pytest.raises(TypeError, match=f"target_modules: .*({message})"):
        cora.patch(base)
    assert dict(base.named_modules()) == objects


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_set_deltas_takes_the_forward_serves(make_base: Any, dtype: torch.dtype, other: torch.dtype) -> None:
    base = make_base("llama", dtype)
    patch = cora.patch(base, ["q_proj", "o_proj"])
    deltas = {"*": (torch.randn(2, 48, 4, dtype=other), torch.randn(4, 48, dtype=other), torch.ones(2))}
    if (dtype == torch.float64) != (other == torch.float64):
        with pytest.raises(TypeError, match=r"deltas\['\*'\]: lora_a is .*float64 goes with float64 alone"):
            patch.set_deltas(deltas)
    else:
        patch.set_deltas(deltas)
        assert logits(base).isfinite().all()
