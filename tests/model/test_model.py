"""What must hold of CoRA, each line a test, on five architectures."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cora import CoRAModel
from cora.methods.samples import Samples
from cora_kernels import use_backend
from tests.model.cora_models import GENERATORS, ITEMS, NO, USERS, YES, Build, full_logits, matrices


def sampled(model: CoRAModel, users: Tensor = USERS, items: Tensor = ITEMS) -> dict[str, Tensor]:
    """The A that each linear gets; its deltas are set."""
    deltas = model._dropped(Samples(users, items))
    model.patch.set_deltas(deltas)
    return {name: delta.lora_a for name, delta in deltas.items()}


@GENERATORS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_zero_p_gives_the_base_logits_bit_for_bit(
    base: PreTrainedModel, build: Build, prompts: Any, pad: Any, dtype: torch.dtype
) -> None:
    base.to(dtype)
    ids, mask = pad(prompts, "left")
    # The chain adds x·Wᵀ by the very GEMM of nn.Linear. A fused kernel sums x·Wᵀ in another order.
    with torch.no_grad(), use_backend("chain"):
        expected = full_logits(base, ids, mask)
        model = build(base, trained=False)
        sampled(model)
        assert torch.equal(full_logits(model.base, ids, mask), expected)


@torch.no_grad()
def test_zero_p_adds_nothing_whatever_the_backend(base: PreTrainedModel, build: Build, prompts: Any, pad: Any) -> None:
    ids, mask = pad(prompts, "left")
    expected = full_logits(base, ids, mask)
    model = build(base, trained=False)
    sampled(model)
    first = full_logits(model.base, ids, mask)
    sampled(model, USERS.flip(0), ITEMS.flip(0))
    assert torch.equal(full_logits(model.base, ids, mask), first)
    torch.testing.assert_close(first, expected, atol=2e-5, rtol=1e-4)
    model.patch.set_deltas(None)
    assert torch.equal(full_logits(model.base, ids, mask), expected)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_batch_is_its_samples_one_by_one_in_bf16(
    make_base: Any, build: Build, prompts: Any, pad: Any, architecture: str
) -> None:
    """By the error rule: against float64, a batch may not be further off than 1.25 times its samples alone."""
    model = build(make_base(architecture).bfloat16())
    ids, mask = pad(prompts, "left")
    results = []
    for exactly in (False, True):
        if exactly:
            model.double()
        sampled(model)
        together = full_logits(model.base, ids, mask)[:, -1].double()
        alone = []
        for i, length in enumerate(prompts[1]):
            sampled(model, USERS[i : i + 1], ITEMS[i : i + 1])
            row = prompts[0][i : i + 1, :length]
            alone.append(full_logits(model.base, row, torch.ones_like(row))[:, -1].double())
        results.append((together, torch.cat(alone)))
    (together, alone), (exact, exact_alone) = results
    torch.testing.assert_close(exact, exact_alone, atol=1e-9, rtol=1e-7)
    errors = [(logits - exact).norm() / exact.norm() for logits in (together, alone)]
    assert errors[0] <= max(1.25 * errors[1], 6e-3)


@GENERATORS
@torch.no_grad()
def test_a_batch_is_its_samples_one_by_one(base: PreTrainedModel, build: Build, prompts: Any, pad: Any) -> None:
    model = build(base)
    ids, mask = pad(prompts, "right")
    together = model(ids, mask, USERS, ITEMS).logits
    alone = torch.cat(
        [
            model(prompts[0][i : i + 1, :length], None, USERS[i : i + 1], ITEMS[i : i + 1]).logits
            for i, length in enumerate(prompts[1])
        ]
    )
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)


@GENERATORS
@torch.no_grad()
def test_permuting_users_permutes_a_and_leaves_what_is_shared(base: PreTrainedModel, build: Build) -> None:
    model = build(base)
    order = torch.tensor([3, 0, 4, 2, 1])
    before = sampled(model)
    matrices = {name: layer.delta.lora_b for name, layer in model.patch.layers.items()}
    after = sampled(model, USERS[order], ITEMS[order])
    for name, layer in model.patch.layers.items():
        torch.testing.assert_close(after[name], before[name][order], atol=1e-6, rtol=1e-6)
        lora_b = layer.delta.lora_b
        if lora_b.dim() == 2:
            assert lora_b is matrices[name]
        else:
            torch.testing.assert_close(lora_b, matrices[name][order], atol=1e-5, rtol=1e-5)
    assert (before[name][0] - before[name][1]).abs().max() > 1e-3


@GENERATORS
@torch.no_grad()
def test_the_bypass_is_the_merged_weight(base: PreTrainedModel, build: Build, prompts: Any, pad: Any) -> None:
    model = build(base)
    ids, mask = pad(prompts, "left")
    ours = model(ids, mask, USERS, ITEMS).logits
    changes = {
        name: layer.delta.scaling * layer.delta.lora_a @ layer.delta.lora_b
        for name, layer in model.patch.layers.items()
    }
    plain = model.unpatch()
    theirs = []
    for i in range(len(ids)):
        weights = {}
        for name, change in changes.items():
            module = plain.get_submodule(name)
            weights[f"{name}.weight"] = module.weight + (change[i] if isinstance(module, Conv1D) else change[i].t())
        args = dict(input_ids=ids[i : i + 1], attention_mask=mask[i : i + 1])
        args["position_ids"] = (args["attention_mask"].cumsum(1) - 1).clamp(min=0)
        last = torch.func.functional_call(plain, weights, (), args).logits[0, -1]
        theirs.append(last[YES] - last[NO])
    frozen = full_logits(plain, ids, mask)[:, -1]
    torch.testing.assert_close(ours, torch.stack(theirs), atol=3e-5, rtol=1e-4)
    # One number per sample can stay where it was by chance; the samples together cannot.
    assert (ours - (frozen[:, YES] - frozen[:, NO])).square().mean().sqrt() > 0.1


@torch.no_grad()
def test_a_has_unit_norm(base: PreTrainedModel, build: Build) -> None:
    for lora_a in sampled(build(base)).values():
        torch.testing.assert_close(lora_a.flatten(1).norm(dim=1), torch.ones(5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("generator", ["mlp", "per_layer", "joint", "pair"])
def test_generator_and_p_alone_get_gradients_and_all_of_them_do(
    base: PreTrainedModel, build: Build, prompts: Any, pad: Any, generator: str
) -> None:
    qformer = generator in ("joint", "pair")
    chosen: dict[str, Any] = dict(generator="qformer", tokens=generator) if qformer else dict(generator=generator)
    model = build(base, trained=False, num_blocks=2, num_heads=2, ffn_size=16, **chosen).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    own = [parameter for parameter in model.generator.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in own}
    optimizer = torch.optim.SGD(trained, lr=1.0)
    ids, mask = pad(prompts, "left")
    labels = torch.tensor([1.0, 0, 0, 1, 1])
    for step in range(2):
        optimizer.zero_grad()
        model(ids, mask, USERS, ITEMS, labels).loss.backward()
        for matrix in matrices(model):
            assert matrix.grad.abs().max() > 0
        if step == 0:
            others = [p for name, p in model.generator.named_parameters() if "p.matrices" not in name]
            assert all(p.grad is None or not p.grad.any() for p in others), "P is zero"
        optimizer.step()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


@GENERATORS
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointing_gives_the_same_gradients(
    base: PreTrainedModel, build: Build, prompts: Any, pad: Any, dropout: float
) -> None:
    model = build(base, dropout=dropout).train()
    ids, mask = pad(prompts, "left")
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(5)
        model(ids, mask, USERS, ITEMS, torch.ones(5)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
        assert gradient.abs().max() > 0, name

    def checkpoints() -> bool:
        return any(getattr(module, "gradient_checkpointing", False) for module in model.base.modules())

    assert checkpoints()
    model.gradient_checkpointing_disable()
    assert not checkpoints()


def test_reentrant_checkpointing_is_refused(make_base: Any, build: Build) -> None:
    model = build(make_base("llama"))
    with pytest.raises(ValueError, match="use_reentrant: expected False"):
        model.gradient_checkpointing_enable({"use_reentrant": True})


def test_dropout_drops_rows_of_a_in_training_alone(make_base: Any, build: Build) -> None:
    model = build(make_base("llama"), dropout=0.5)
    whole = sampled(model)
    model.train()
    model.generator.eval()
    dropped = sampled(model)
    q, k, o = (f"model.layers.0.self_attn.{name}" for name in ("q_proj", "k_proj", "o_proj"))
    assert dropped[q] is dropped[k]
    assert not torch.equal(dropped[q], dropped[o])
    kept = dropped[q].any(2)
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(dropped[q][kept], 2 * whole[q][kept])


@torch.no_grad()
def test_unknown_ids_get_the_mean(make_base: Any, build: Build, prompts: Any, pad: Any) -> None:
    model = build(make_base("llama"))
    with pytest.warns(UserWarning):
        lora_a = sampled(model, torch.tensor([999, 10]), torch.tensor([5, 5]))
    first = next(iter(lora_a.values()))
    e_i, affinity = model.pairs.items[:1], model.pairs.item_part[:1]
    expected = next(iter(model.generator(torch.zeros(1, 8), e_i, affinity).values()))
    torch.testing.assert_close(first[:1], expected.lora_a)


@torch.no_grad()
def test_user_vectors_stand_for_the_rows_of_the_table(make_base: Any, build: Build, prompts: Any, pad: Any) -> None:
    model = build(make_base("llama")).eval()
    ids, mask = pad(prompts, "left")
    vectors = model.embeddings.users[model.embeddings.lookup_users(USERS)]
    by_table, other = model(ids, mask, USERS, ITEMS).logits, vectors.flip(0)
    close = dict(atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(ids, mask, USERS, ITEMS, user_vectors=vectors).logits, by_table, **close)
    changed = model(ids, mask, USERS, ITEMS, user_vectors=other).logits
    assert not torch.allclose(changed, by_table, **close)
    scored = model.score(ids, mask, USERS, ITEMS, batch_size=2, user_vectors=other)
    torch.testing.assert_close(scored, changed, **close)
    seen: list[torch.Tensor] = []
    model.generator.register_forward_pre_hook(lambda _, pair: seen.append(pair[0]))
    model.generate(ids, mask, user_ids=USERS, item_ids=ITEMS, user_vectors=vectors, max_new_tokens=1, num_beams=2)
    torch.testing.assert_close(seen[0], model.pairs.users[model.embeddings.lookup_users(USERS)].repeat_interleave(2, 0))


@torch.no_grad()
def test_user_dropout_takes_users_for_unknown_in_training_alone(make_base: Any, build: Build) -> None:
    model = build(make_base("llama"), user_dropout=0.5)
    users, items = USERS[:1].repeat(400), ITEMS[:1].repeat(400)
    e_u = model.pairs.users[model.embeddings.lookup_users(USERS[:1])]
    seen = []
    model.generator.register_forward_pre_hook(lambda _, pair: seen.append(pair[0]))
    model.train()
    sampled(model, users, items)
    dropped = (seen[0] == 0).all(1)
    assert 0.4 < dropped.float().mean() < 0.6
    assert torch.equal(seen[0][~dropped], e_u.expand(int((~dropped).sum()), -1))
    model.eval()
    sampled(model, users, items)
    assert torch.equal(seen[1], e_u.expand(400, -1))


@torch.no_grad()
def test_generate_continues_greedily_and_with_beams(
    base: PreTrainedModel, build: Build, prompts: Any, pad: Any
) -> None:
    model = build(base)
    model.train()
    ids, mask = pad(prompts, "left")
    settings: dict[str, Any] = dict(max_new_tokens=3, do_sample=False, eos_token_id=None)
    made = model.generate(ids, mask, user_ids=USERS, item_ids=ITEMS, **settings)
    assert model.training and model.base.training
    model.eval()
    whole, seen = ids, mask
    for _ in range(3):
        sampled(model)
        new = full_logits(model.base, whole, seen)[:, -1].argmax(1, keepdim=True)
        whole, seen = torch.cat([whole, new], 1), torch.cat([seen, torch.ones_like(new)], 1)
    assert torch.equal(made, whole)
    beams = model.generate(ids, mask, user_ids=USERS, item_ids=ITEMS, num_beams=3, num_return_sequences=2, **settings)
    assert beams.shape == (10, 12)
    alone = model.generate(
        ids[2:3], mask[2:3], user_ids=USERS[2:3], item_ids=ITEMS[2:3], num_beams=3, num_return_sequences=2, **settings
    )
    assert torch.equal(beams[4:6], alone)


def test_widths_have_an_a_each(make_base: Any, build: Build, prompts: Any, pad: Any) -> None:
    model = build(make_base("llama"), target_modules=("q_proj", "down_proj"))
    shapes = {name.rpartition(".")[2]: a.shape for name, a in sampled(model).items()}
    assert shapes == {"q_proj": (5, 48, 3), "down_proj": (5, 80, 3)}
    model(*pad(prompts, "left"), USERS, ITEMS, torch.ones(5)).loss.backward()
    assert all(linear.weight.grad.any() for linear in model.generator.heads.linears.values())


def test_bf16_base_under_fp32_generator_and_p(make_base: Any, build: Build, prompts: Any, pad: Any) -> None:
    model = build(make_base("qwen2", torch.bfloat16), dropout=0.0, generator_dropout=0.0).train()
    ids, mask = pad(prompts, "left")
    out = model(ids, mask, USERS, ITEMS, torch.ones(5))
    out.loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert out.logits.dtype == torch.float32
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in trained)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = model(ids, mask, USERS, ITEMS, torch.ones(5))
    torch.testing.assert_close(again.logits, out.logits, atol=0.1, rtol=0.05)


def test_unpatch_gives_the_very_same_model_back(base: PreTrainedModel, build: Build) -> None:
    objects = dict(base.named_modules())
    flags = [(name, parameter.requires_grad) for name, parameter in base.named_parameters()]
    model = build(base)
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert model.unpatch() is base
    assert dict(base.named_modules()) == objects
    assert [(name, parameter.requires_grad) for name, parameter in base.named_parameters()] == flags
    assert model.unpatch() is base
