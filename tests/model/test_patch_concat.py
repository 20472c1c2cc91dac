"""A patch whose linears are one product [x | S]·[W | Bᵀ]ᵀ: the results, the state dict and the undoing of any other."""

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from test_quantised import gguf
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import cora
from cora.llm import concat
from cora.llm.deltas import Delta
from cora.llm.patched_linear import LoRALinear
from cora_kernels import use_backend
from cora_kernels.backends.wide_weights import room_of
from cora_kernels.planning.gpus import GPUS
from cora_kernels.testing import assert_by_rule

IDS = torch.randint(3, 101, (3, 7), generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


@pytest.fixture
def shared(make_deltas: Any) -> Any:
    """shared(patch, batch): an A of each sample, one B for all; float64 for a model of it."""

    def make(patch: cora.Patch, batch: int = 3, r: int = 4) -> dict[str, tuple[Tensor, Tensor, float]]:
        dtype = next(iter(patch.layers.values())).weight.dtype
        found = {}
        for name, (a, b, scaling) in make_deltas(patch, batch, r).items():
            factors = (t.detach().to(dtype).requires_grad_() for t in (a, b[0]))
            found[name] = (*factors, scaling)
        return found

    return make


def trained(model: nn.Module, deltas: dict[str, Any]) -> list[Tensor]:
    """The logits, and the gradients of all factors, those of every A and those of every B together."""
    y = logits(model)
    leaves = [t for a, b, _ in deltas.values() for t in (a, b)]
    gradients = torch.autograd.grad(y.float().square().mean(), leaves)
    return [y.detach(), *(torch.cat([one.flatten() for one in gradients[i::2]]) for i in (0, 1))]


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of weights in each product with room."""
    from cora_kernels.backends import concat as backend

    found, products = [], backend._products

    def count(wide_x: Tensor, operands: Any, ss: Any) -> list[Tensor]:
        found.append(len(operands.weights))
        return products(wide_x, operands, ss)

    with monkeypatch.context() as patched:
        patched.setattr(backend, "_products", count)
        yield found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_outputs_and_gradients_by_the_error_rule(
    make_base: Any, shared: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base("llama", dtype)
    patch = cora.patch(base, "all-linear", concat=True)
    deltas = shared(patch)
    patch.set_deltas(deltas)
    with counted(monkeypatch) as calls:
        got = trained(base, deltas)
    assert calls == [3, 1, 2, 1] * 2
    with use_backend("reference"):
        usual = trained(base, deltas)
        exact_base = copy.deepcopy(base).double()
    patch.remove()
    exact_patch = cora.patch(_unpatched(exact_base), "all-linear")
    exact_deltas = {
        name: (a.detach().double().requires_grad_(), b.detach().double().requires_grad_(), s)
        for name, (a, b, s) in deltas.items()
    }
    exact_patch.set_deltas(exact_deltas)
    exact = trained(exact_patch.model, exact_deltas)
    for name, *tensors in zip(("logits", "dA", "dB"), got, exact, usual, strict=True):
        assert_by_rule(name, *tensors, dtype)


def _unpatched(model: PreTrainedModel) -> PreTrainedModel:
    """A patched copy's weights in a model of its own."""
    plain = AutoModelForCausalLM.from_config(model.config).double().eval()
    plain.load_state_dict(model.state_dict())
    return plain


def test_every_architecture_as_without(base: PreTrainedModel, targets: Any, shared: Any) -> None:
    """Tied, transposed and biased weights among them; and the state dict, bit for bit, before, during and after."""
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    found = []
    for asked in (False, True):
        patch = cora.patch(base, targets(base), concat=asked)
        torch.manual_seed(2)
        deltas = shared(patch)
        patch.set_deltas(deltas)
        found.append(trained(base, deltas))
        assert all((layer.room > 0) == asked for layer in patch.layers.values())
        during = base.state_dict()
        assert list(during) == list(state) and all(t.is_contiguous() for t in during.values())
        assert all(torch.equal(tensor, state[name]) for name, tensor in during.items())
        patch.remove()
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 2e-5 * one.norm() and one.norm() > 0
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, state[name]) and tensor.is_contiguous()
    assert not any(room_of(parameter) for parameter in base.parameters())


def test_only_where_it_is_asked_for_and_lora_b_is_shared(make_base: Any, make_deltas: Any, shared: Any) -> None:
    """On a CPU the rule asks for nothing; a group is one call, or none of it is."""
    base = make_base("llama")
    addresses = [parameter.data_ptr() for parameter in base.parameters()]
    patch = cora.patch(base, "all-linear")
    patch.set_deltas(shared(patch))
    assert [parameter.data_ptr() for parameter in base.parameters()] == addresses
    patch.remove()
    patch = cora.patch(base, "all-linear", concat=True)
    deltas = make_deltas(patch, 3)
    patch.set_deltas(deltas)
    assert [parameter.data_ptr() for parameter in base.parameters()] == addresses
    mixed = shared(patch)
    mixed["model.layers.0.self_attn.v_proj"] = deltas["model.layers.0.self_attn.v_proj"]
    patch.set_deltas(mixed)
    rooms = {name: layer.room for name, layer in patch.layers.items() if name.startswith("model.layers.0.self_attn")}
    assert list(rooms.values()) == [0, 0, 0, 64]
    expected = logits(base)
    patch.remove()
    patch = cora.patch(base, "all-linear")
    patch.set_deltas(mixed)
    torch.testing.assert_close(logits(base), expected, atol=2e-5, rtol=1e-4)


def test_use_backend_is_heeded(make_base: Any, shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base("llama")
    patch = cora.patch(base, ["q_proj"], concat=True)
    patch.set_deltas(shared(patch))
    with counted(monkeypatch) as calls, use_backend("chain"):
        logits(base)
    assert calls == []


def test_wider_ranks_get_more_room(make_base: Any, shared: Any) -> None:
    base = make_base("llama")
    patch = cora.patch(base, ["q_proj"], concat=True)
    for r, room in ((4, 64), (70, 128), (4, 128)):
        patch.set_deltas(shared(patch, r=r))
        assert {layer.room for layer in patch.layers.values()} == {room}
    patch.remove()


def test_packed_samples(shared: Any) -> None:
    """All in one row of tokens: each sample by its own A, as alone."""
    model = nn.ModuleDict({"q_proj": nn.Linear(24, 40), "o_proj": nn.Linear(24, 8, bias=False)})
    patch = cora.patch(model, ["q_proj", "o_proj"], concat=True)
    deltas = shared(patch)
    x, cu_seqlens = torch.randn(1, 12, 24), torch.tensor([0, 5, 5, 12], dtype=torch.int32)
    patch.set_deltas(deltas, cu_seqlens)
    packed = [model["q_proj"](x), model["o_proj"](x)]
    patch.set_deltas({name: (a[2:], b, s) for name, (a, b, s) in deltas.items()})
    alone = [model["q_proj"](x[:, 5:]), model["o_proj"](x[:, 5:])]
    assert patch.layers["q_proj"].room == 64
    for one, other in zip(packed, alone, strict=True):
        torch.testing.assert_close(one[:, 5:], other)


def test_checkpointing_and_autocast(make_base: Any, shared: Any) -> None:
    base = make_base("llama").requires_grad_(False).train()
    patch = cora.patch(base, "all-linear", concat=True)
    deltas = shared(patch)
    patch.set_deltas(deltas)
    expected = trained(base, deltas)
    with torch.autocast("cpu", torch.bfloat16):
        y = logits(base)
    assert (y.float() - expected[0]).norm() < 0.02 * expected[0].norm()
    base.gradient_checkpointing_enable({"use_reentrant": False})
    got = trained(base, deltas)
    assert all(map(torch.equal, got, expected))


class Gated(nn.Module):
    """An MLP as Llama's."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(24, 40), nn.Linear(24, 40), nn.Linear(40, 24)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(self.gate_proj(x).sigmoid() * self.up_proj(x))
        return y


def test_compiled(shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one graph, for another batch too."""
    torch._dynamo.reset()
    model = nn.Sequential(Gated()).requires_grad_(False)
    patch = cora.patch(model, "all-linear", concat=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for batch in (3, 4):
        deltas, x = shared(patch, batch), torch.randn(batch, 7, 24)
        patch.set_deltas(deltas)
        leaves = [t for a, b, _ in deltas.values() for t in (a, b)]
        found = []
        for one in (model, compiled):
            with counted(monkeypatch) as calls:
                y = one(x)
            assert sorted(calls) == [1, 2]
            found.append([y.detach(), *torch.autograd.grad(y.square().mean(), leaves)])
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("assign", [False, True])
def test_weights_loaded_meanwhile_are_used(make_base: Any, shared: Any, assign: bool) -> None:
    base = make_base("llama")
    patch = cora.patch(base, "all-linear", concat=True)
    deltas = shared(patch)
    patch.set_deltas(deltas)
    state = {name: tensor * 1.1 for name, tensor in base.state_dict().items()}
    base.load_state_dict(state, assign=assign)
    got = logits(base)
    patch.set_deltas(deltas)  # which makes room again where it was lost
    assert all(room_of(layer.weight) for layer in patch.layers.values()) or assign
    torch.testing.assert_close(logits(base), got)
    patch.remove()
    assert all(torch.equal(tensor, state[name]) for name, tensor in base.state_dict().items())
    patch = cora.patch(base, "all-linear")
    patch.set_deltas(deltas)
    torch.testing.assert_close(logits(base), got, atol=2e-5, rtol=1e-4)


def test_saved_copied_and_moved(make_base: Any, shared: Any, tmp_path: Path) -> None:
    base = make_base("llama")
    patch = cora.patch(base, "all-linear", concat=True)
    deltas = shared(patch)
    patch.set_deltas(deltas)
    expected = logits(base)
    base.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in base.state_dict().items())
    assert cora.patch(again, "all-linear").not_concatenated == {}
    twin = copy.deepcopy(base)
    torch.testing.assert_close(logits(twin), expected)
    weights = [module.weight for module in twin.modules() if isinstance(module, LoRALinear)]
    assert all(room_of(weight) for weight in weights)
    held = io.BytesIO()
    torch.save(base, held)
    held.seek(0)
    loaded = torch.load(held, weights_only=False)
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), loaded.parameters(), strict=True))
    base.to(torch.float64).to(torch.float32)
    torch.testing.assert_close(logits(base), expected)
    patch.set_deltas(deltas)
    assert all(room_of(layer.weight) for layer in patch.layers.values())
    patch.remove()


def test_tied_and_quantised_weights_are_left_out_by_name(
    make_base: Any, shared: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base("qwen2", hidden_size=64, intermediate_size=128)
    mlp = base.model.layers[0].mlp
    mlp.down_proj = gguf(mlp.down_proj, GGMLQuantizationType.Q8_0)
    base.requires_grad_(False)
    patch = cora.patch(base, ["q_proj", "down_proj", "lm_head"], concat=True)
    names = {"model.layers.0.mlp.down_proj": "quantised", "lm_head": "tied"}
    assert patch.not_concatenated == names
    report = capsys.readouterr().out
    assert "  not concatenated: model.layers.#.mlp.down_proj (quantised), lm_head (tied)" in report
    patch.set_deltas(shared(patch))
    assert {name for name, layer in patch.layers.items() if not layer.room} == set(names)
    logits(base)
    patch.remove()


def test_the_rule_asks_for_wide_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would of weights on an H100: not where what reads x is narrower than x."""
    model = nn.ModuleDict({"gate_proj": nn.Linear(1024, 4096), "down_proj": nn.Linear(4096, 1024)}).bfloat16()
    patch = cora.patch(model, ["gate_proj", "down_proj"])
    monkeypatch.setattr(concat, "gpu_of", lambda device: GPUS["H100"])

    def delta(layer: Any) -> Delta:
        return Delta(torch.zeros(4, layer.in_features, 16), torch.zeros(16, layer.out_features))

    deltas = {name: delta(layer) for name, layer in patch.layers.items()}
    paying = [name for name, layer in patch.layers.items() if concat._pays([layer], deltas)]
    assert paying == ["gate_proj"]


def test_a_weight_put_in_place_of_another_stays_where_it_is(make_base: Any, shared: Any) -> None:
    """As FSDP gathers one anew in every step: what others hold does not move."""
    base = make_base("llama")
    patch = cora.patch(base, ["o_proj"], concat=True)
    layer = next(iter(patch.layers.values()))
    layer.weight = nn.Parameter(layer.weight.detach() * 2, requires_grad=False)
    address = layer.weight.data_ptr()
    deltas = shared(patch)
    patch.set_deltas(deltas)
    assert layer.room == 0 and layer.weight.data_ptr() == address
    got = logits(base)
    patch.remove()
    patch = cora.patch(base, ["o_proj"])
    patch.set_deltas(deltas)
    torch.testing.assert_close(logits(base), got, atol=2e-5, rtol=1e-4)


def test_inference_mode_leaves_weights_that_can_be_trained_on(shared: Any) -> None:
    model = nn.ModuleDict({"q_proj": nn.Linear(24, 40)})
    patch = cora.patch(model, ["q_proj"], concat=True)
    x = torch.randn(3, 5, 24)
    with torch.inference_mode():
        patch.set_deltas({name: (a.clone(), b.clone(), s) for name, (a, b, s) in shared(patch).items()})
        model["q_proj"](x)
    assert patch.layers["q_proj"].room == 64 and not model["q_proj"].weight.is_inference()
    deltas = shared(patch)
    patch.set_deltas(deltas)
    model["q_proj"](x.requires_grad_()).sum().backward()
    assert x.grad is not None and deltas["q_proj"][0].grad is not None
    with torch.inference_mode():
        patch.remove()
    assert not model["q_proj"].weight.is_inference()


def test_weights_made_in_inference_mode_stay_where_they_are(shared: Any) -> None:
    with torch.inference_mode():
        model = nn.ModuleDict({"q_proj": nn.Linear(24, 40)}).requires_grad_(False)
    patch = cora.patch(model, ["q_proj"], concat=True)
    patch.set_deltas(shared(patch))
    assert patch.layers["q_proj"].room == 0 and model["q_proj"](torch.randn(3, 5, 24)).shape == (3, 5, 40)
    patch.remove()


def test_concat_is_a_choice_of_three() -> None:
    with pytest.raises(TypeError, match="concat: expected True, False or None, got 'yes'"):
        cora.patch(nn.ModuleDict({"q_proj": nn.Linear(4, 4)}), ["q_proj"], concat="yes")  # type: ignore[arg-type]
