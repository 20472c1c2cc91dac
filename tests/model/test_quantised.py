"""Quantised linears run as they are, and the deltas are added to what they give; others are refused by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor, nn
from transformers import PreTrainedModel

import cora
from cora import CoRAConfig, CoRAModel
from cora.collaborative import CollaborativeEmbeddings
from cora.llm.quantised import QuantisedLinear

IDS = torch.randint(3, 101, (4, 7), generator=torch.Generator().manual_seed(1))
# In blocks of 64 features: what every form of 4 bits divides.
SIZES: dict[str, Any] = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2)


def gguf(linear: nn.Linear, kind: GGMLQuantizationType) -> nn.Module:
    utils = pytest.importorskip("transformers.integrations.gguf.utils", reason="transformers keeps no GGUF packed")
    packed = utils.GgufLinear(linear.in_features, linear.out_features, int(kind), linear.bias is not None)
    blocks = quants.quantize(linear.weight.detach().numpy(), kind)
    packed.weight = nn.Parameter(torch.from_numpy(np.ascontiguousarray(blocks)), requires_grad=False)
    packed.bias = linear.bias
    return packed


def bitsandbytes(linear: nn.Linear, bits: int) -> nn.Module:
    library = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    if bits == 4:
        made = library.nn.Linear4bit(linear.in_features, linear.out_features, False, torch.float32, quant_type="nf4")
        made.weight = library.nn.Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4")
    else:
        made = library.nn.Linear8bitLt(linear.in_features, linear.out_features, False, has_fp16_weights=False)
        made.weight = library.nn.Int8Params(linear.weight.detach(), requires_grad=False, has_fp16_weights=False)
    return made.to("cpu")


def torchao(linear: nn.Linear) -> nn.Module:
    library = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    holder = nn.Sequential(linear)
    library.quantize_(holder, library.Int8WeightOnlyConfig())
    return holder[0].requires_grad_(False)


def gptq(linear: nn.Linear) -> nn.Module:
    """Random integers of 4 bits, 8 to a word, around 8."""
    library = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch", reason="GPTQModel is not installed")
    bias = linear.bias is not None
    made = library.TorchLinear(4, 32, True, False, linear.in_features, linear.out_features, bias)
    generator = torch.Generator().manual_seed(linear.out_features)
    made.qweight.random_(-(2**31), 2**31 - 1, generator=generator)
    made.qzeros.fill_(0x88888888 - 2**32)
    made.scales.fill_(0.03)
    return made


KINDS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "GGUF Q8_0": lambda linear: gguf(linear, GGMLQuantizationType.Q8_0),
    "GGUF Q4_0": lambda linear: gguf(linear, GGMLQuantizationType.Q4_0),
    "bitsandbytes nf4": lambda linear: bitsandbytes(linear, 4),
    "bitsandbytes int8": lambda linear: bitsandbytes(linear, 8),
    "torchao int8": torchao,
    "GPTQModel": gptq,
}


@pytest.fixture(params=KINDS)
def quantised(request: pytest.FixtureRequest, make_base: Any) -> PreTrainedModel:
    """A tiny model whose projections are quantised."""
    base = make_base("llama", **SIZES)
    for name, module in list(base.named_modules()):
        if name.endswith("_proj"):
            base.set_submodule(name, KINDS[request.param](module))
    return base


def logits(model: nn.Module, ids: Tensor = IDS, **kwargs: Any) -> Tensor:
    return model(input_ids=ids, use_cache=False, **kwargs).logits


class Hooked:
    """The definition: hooks that add scaling·(x·A)·B to what each linear gives."""

    def __init__(self, model: nn.Module, deltas: dict[str, Any]) -> None:
        self.handles = []
        for name, delta in deltas.items():
            self.handles.append(model.get_submodule(name).register_forward_hook(self.hook(*delta)))

    @staticmethod
    def hook(lora_a: Tensor, lora_b: Tensor, scaling: Any) -> Any:
        scale = scaling[:, None, None] if isinstance(scaling, Tensor) else scaling
        return lambda module, args, y: y + scale * (args[0] @ lora_a @ lora_b)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("form", ["per sample", "shared B", "all shared", "scaling per sample"])
def test_the_delta_is_added_and_has_gradients(
    quantised: PreTrainedModel, targets: Any, make_deltas: Any, form: str
) -> None:
    before = {name: module for name, module in quantised.named_modules() if name.endswith("_proj")}
    alone = logits(quantised)
    patch = cora.patch(quantised, [*targets(quantised), "down_proj"])
    assert all(isinstance(layer, QuantisedLinear) for layer in patch.layers.values()) and not patch.groups
    patch.set_deltas(None)
    assert torch.equal(logits(quantised), alone)
    deltas = make_deltas(patch, None if form == "all shared" else 4)
    if form == "shared B":
        deltas = {name: (a, b[0].detach().requires_grad_(), s) for name, (a, b, s) in deltas.items()}
    if form == "scaling per sample":
        deltas = {name: (a, b, torch.tensor([0.5, 1.0, 0.0, 2.0])) for name, (a, b, _) in deltas.items()}
    leaves = [one for a, b, _ in deltas.values() for one in (a, b)]
    patch.set_deltas(deltas)
    found = logits(quantised)
    gradients = torch.autograd.grad(found.square().mean(), leaves)
    patch.remove()
    assert {name: quantised.get_submodule(name) for name in before} == before
    assert torch.equal(logits(quantised), alone)
    hooked = Hooked(quantised, deltas)
    expected = logits(quantised)
    wanted = torch.autograd.grad(expected.square().mean(), leaves)
    hooked.remove()
    assert (found - alone).norm() > 0.05 * alone.norm()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(gradients, wanted, strict=True):
        assert (one - other).norm() <= 1e-3 * other.norm() + 1e-7


def test_packed_samples_have_their_own_deltas(quantised: PreTrainedModel, targets: Any, make_deltas: Any) -> None:
    patch = cora.patch(quantised, targets(quantised))
    deltas = make_deltas(patch, 2)
    # transformers' GGUF linears need a compiled kernel for a few rows: more than those.
    boundaries = torch.tensor([0, 30, 70], dtype=torch.int32)
    x = torch.randn(1, 70, 64)
    patch.set_deltas(deltas, boundaries)
    name, layer = next(iter(patch.layers.items()))
    together = layer(x)
    for sample, (start, stop) in enumerate(((0, 30), (30, 70))):
        a, b, scaling = deltas[name]
        patch.set_deltas({name: (a[sample : sample + 1], b[sample : sample + 1], scaling)})
        torch.testing.assert_close(together[:, start:stop], layer(x[:, start:stop]), rtol=1e-4, atol=1e-4)


def test_the_state_dict_is_that_of_the_base(quantised: PreTrainedModel, targets: Any) -> None:
    before = quantised.state_dict()
    cora.patch(quantised, targets(quantised))
    patched = quantised.state_dict()
    assert list(patched) == list(before)
    for name, tensor in before.items():
        assert type(patched[name]) is type(tensor)
        if isinstance(tensor, Tensor) and not type(tensor).__module__.startswith("torchao"):
            assert torch.equal(patched[name], tensor), name


def test_a_method_learns_on_a_quantised_base(quantised: PreTrainedModel) -> None:
    vectors = CollaborativeEmbeddings(range(4), range(4), torch.randn(4, 6), torch.randn(4, 6))
    config = CoRAConfig(r=4, hidden_size=16, dropout=0.0, generator_dropout=0.0, answer_ids=(5, 6))
    weights = [type(one) for one in quantised.parameters()]
    model = CoRAModel(quantised, config, vectors).train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.02)
    rows, labels, losses = torch.arange(4), torch.tensor([1.0, 0.0, 1.0, 0.0]), []
    for _ in range(12):
        loss = model(IDS, None, rows, rows, labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert model.eval() and not any(module.training for module in quantised.modules())
    assert [type(one) for one in model.unpatch().parameters()] == weights


def test_a_kernel_without_gradients_says_so(make_base: Any, make_deltas: Any) -> None:
    base = make_base("llama", **SIZES)
    for layer in base.model.layers:
        layer.self_attn.q_proj = gptq(layer.self_attn.q_proj)
        layer.self_attn.q_proj.SUPPORTS_TRAINING = False
    patch = cora.patch(base, ["q_proj"])
    patch.set_deltas(make_deltas(patch, 4))
    with torch.no_grad():
        logits(base)
    with pytest.raises(RuntimeError, match=r"layers.0.self_attn.q_proj: TorchLinear has no gradient to x; to train, "):
        logits(base)


def test_other_quantised_linears_are_refused_by_name(make_base: Any) -> None:
    class QuantLinear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x

    base = make_base("llama")
    base.model.layers[0].self_attn.q_proj = QuantLinear(48, 48)
    with pytest.raises(TypeError, match="q_proj is a .*QuantLinear, expected .* quantised by bitsandbytes, torchao, "):
        cora.patch(base, ["q_proj"])
    assert type(base.model.layers[1].self_attn.q_proj) is nn.Linear
