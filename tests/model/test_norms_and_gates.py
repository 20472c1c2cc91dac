"""Norms, MLPs, position embeddings and the other linears by kernels: the same numbers on every architecture that has
them, and the very same modules after."""

import copy
from typing import Any

import pytest
import torch

from cora.llm import pointwise
from cora.llm.calls import Call, Calls
from cora.llm.pointwise import Pointwise
from cora_kernels import backends, use_backend

needs_kernel = pytest.mark.skipif(backends()["cpu"] is not None, reason=f"cpu: {backends()['cpu']}")
IDS = torch.tensor([[5, 9, 11, 3, 40, 7], [8, 8, 21, 30, 2, 4]])


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions that the modules call."""
    seen: list[str] = []
    for name in ("rms_norm", "silu_gate", "rotary", "frozen_linear"):
        op = getattr(pointwise, name)
        monkeypatch.setattr(pointwise, name, lambda *a, op=op, name=name: (seen.append(name), op(*a))[1])
    return seen


def adapted() -> Calls:
    """Those of a model whose forwards have a delta."""
    delta: Any = None
    return Calls(Call({"some linear": delta}))


def logits_and_gradient(model: Any, ids: torch.Tensor = IDS) -> tuple[torch.Tensor, torch.Tensor]:
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded).logits
    return logits.detach(), torch.autograd.grad(logits.square().sum(), embedded)[0]


@pytest.mark.parametrize("architecture", pointwise._ARCHITECTURES)
@pytest.mark.parametrize("backend", [pytest.param(None, marks=needs_kernel), "chain"])
def test_the_same_as_the_modules_have_it(
    make_base: Any, served: list[str], architecture: str, backend: str | None
) -> None:
    model = make_base(architecture).requires_grad_(False)
    kinds = [type(module) for module in model.modules()]
    expected = logits_and_gradient(model)
    handle = Pointwise(model, adapted())
    assert [type(module).__name__ for module in model.modules()] == [kind.__name__ for kind in kinds]
    with use_backend(backend):
        found = logits_and_gradient(model)
    norms = sum(kind.__name__.endswith("RMSNorm") for kind in kinds)
    assert served.count("rms_norm") == norms >= 5 and served.count("silu_gate") == served.count("rotary") == 2
    assert served.count("frozen_linear") == kinds.count(torch.nn.Linear) == 15
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    handle.remove()
    assert [type(module) for module in model.modules()] == kinds
    for one, other in zip(logits_and_gradient(model), expected, strict=True):
        assert torch.equal(one, other)


@needs_kernel
def test_the_same_with_enough_tokens_for_the_products(make_base: Any) -> None:
    model = make_base("llama").requires_grad_(False)
    ids = IDS.repeat(12, 1)
    expected = logits_and_gradient(model, ids)
    Pointwise(model, adapted())
    with torch.profiler.profile() as profile:
        found = logits_and_gradient(model, ids)
    assert [event.name for event in profile.events()].count("cora_kernels::cpu_linear") == 2 * 15
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("call", [None, Call({})])
def test_without_deltas_it_is_the_base_model_bit_for_bit(make_base: Any, served: list[str], call: Call | None) -> None:
    model = make_base("llama").requires_grad_(False)
    expected = logits_and_gradient(model)
    Pointwise(model, Calls(call))
    for one, other in zip(logits_and_gradient(model), expected, strict=True):
        assert torch.equal(one, other)
    assert not served


@pytest.mark.parametrize("architecture", ["gemma", "gpt2", "phi", "opt", "cohere"])
def test_other_architectures_are_left_alone(make_base: Any, architecture: str) -> None:
    model = make_base(architecture)
    kinds = [type(module) for module in model.modules()]
    Pointwise(model, adapted())
    assert [type(module) for module in model.modules()] == kinds


def test_another_activation_is_left_alone(make_base: Any) -> None:
    model = make_base("llama", hidden_act="gelu")
    kinds = [type(module) for module in model.modules()]
    Pointwise(model, adapted())
    assert [type(module) for module in model.modules()] == kinds


def test_a_replaced_forward_is_not_bypassed(make_base: Any, served: list[str]) -> None:
    model = make_base("llama").requires_grad_(False)
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: torch.zeros_like(x)
    expected = logits_and_gradient(model)
    Pointwise(model, adapted())
    assert torch.allclose(logits_and_gradient(model)[0], expected[0], atol=1e-4)
    assert served.count("silu_gate") == 1


def test_weights_that_are_trained_have_their_gradients(make_base: Any) -> None:
    model = make_base("llama")
    found = []
    for replaced in (False, True):
        if replaced:
            Pointwise(model, adapted())
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        found.append({name: one.grad for name, one in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_an_attention_that_calls_another_function_is_left_alone(make_base: Any, served: list[str]) -> None:
    model = make_base("llama").requires_grad_(False)
    attention: Any = type(model.model.layers[0].self_attn)

    class Attention(attention):
        def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
            return super().forward(hidden_states, **kwargs)

    model.model.layers[0].self_attn.__class__ = Attention
    Pointwise(model, adapted())
    assert type(model.model.layers[0].self_attn) is Attention
    assert model(IDS).logits.isfinite().all()
    assert served.count("rotary") == 1


@torch.no_grad()
def test_a_copy_is_a_model_of_its_own(make_base: Any) -> None:
    model = make_base("llama")
    handle = Pointwise(model, adapted())
    copied = copy.deepcopy(model)
    handle.remove()
    for parameter in model.parameters():
        parameter.zero_()
    assert copied(IDS).logits.abs().max() > 0.1
    assert copied.state_dict().keys() == model.state_dict().keys()
