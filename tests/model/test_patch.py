"""The patch on five architectures: what it computes, groups, reports and undoes."""

import contextlib
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import cora
from cora.llm.patched_linear import LoRALinear
from cora_kernels import use_backend

IDS = torch.randint(3, 101, (3, 7), generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def merged(model: PreTrainedModel, deltas: dict[str, Any], sample: int, ids: Tensor = IDS) -> Tensor:
    """The logits of one sample with W + scaling·A·B written into the weights of the unpatched model."""
    weights = {}
    for name, (lora_a, lora_b, scaling) in deltas.items():
        module = model.get_submodule(name)
        change = (
            scaling
            * (lora_a[sample] if lora_a.dim() == 3 else lora_a)
            @ (lora_b[sample] if lora_b.dim() == 3 else lora_b)
        )
        weights[f"{name}.weight"] = module.weight + (change if isinstance(module, Conv1D) else change.t())
    return torch.func.functional_call(model, weights, (ids[sample : sample + 1],), dict(use_cache=False)).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_zero_deltas_give_the_base_output_bit_for_bit(
    base: PreTrainedModel, targets: Any, make_deltas: Any, dtype: torch.dtype
) -> None:
    base.to(dtype)
    with torch.no_grad(), use_backend("chain"):  # which adds x·Wᵀ by the GEMM of nn.Linear; others sum in another order
        before = logits(base)
        patch = cora.patch(base, targets(base))
        patch.set_deltas({name: (a, torch.zeros_like(b), s) for name, (a, b, s) in make_deltas(patch, 3).items()})
        assert torch.equal(logits(base), before)
        patch.set_deltas(None)
        assert torch.equal(logits(base), before)


@pytest.mark.parametrize("batch", [3, None], ids=["per-sample", "shared"])
def test_bypass_equals_merged_weights_in_value_and_gradient(
    base: PreTrainedModel, targets: Any, make_deltas: Any, batch: int | None
) -> None:
    base.requires_grad_(False)
    patch = cora.patch(base, targets(base))
    deltas = make_deltas(patch, batch)
    leaves = [t for a, b, _ in deltas.values() for t in (a, b)]
    upstream = torch.randn(3, 7, 101)
    patch.set_deltas(deltas)
    ours = logits(base)
    our_gradients = torch.autograd.grad((ours * upstream).sum(), leaves)
    patch.remove()
    theirs = torch.cat([merged(base, deltas, sample) for sample in range(3)])
    their_gradients = torch.autograd.grad((theirs * upstream).sum(), leaves)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    for one, other in zip(our_gradients, their_gradients, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()
        assert other.norm() > 0


def test_remove_restores_the_very_same_model(base: PreTrainedModel, targets: Any, make_deltas: Any) -> None:
    seen = []
    first = base.get_submodule(next(name for name, m in base.named_modules() if name.endswith(targets(base)[0])))
    first.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    base.train()
    first.eval()
    first.weight.requires_grad_(False)
    objects = dict(base.named_modules())
    flags = {name: (p.requires_grad, p._version, p.data_ptr()) for name, p in base.named_parameters()}
    training = {name: module.training for name, module in base.named_modules()}
    hooks = {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in base.named_modules()}
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    before = logits(base)

    patch = cora.patch(base, targets(base))
    assert any(isinstance(module, LoRALinear) for module in base.modules())
    patch.set_deltas(make_deltas(patch, 3))
    seen.clear()
    logits(base).sum().backward()
    assert len(seen) == 1
    patch.remove()
    patch.remove()

    assert dict(base.named_modules()) == objects
    assert list(base.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in base.state_dict().items())
    assert {name: (p.requires_grad, p._version, p.data_ptr()) for name, p in base.named_parameters()} == flags
    assert {name: module.training for name, module in base.named_modules()} == training
    assert {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in base.named_modules()} == hooks
    assert torch.equal(logits(base), before)
    with pytest.raises(RuntimeError, match="removed"):
        patch.set_deltas(None)
    cora.patch(base, targets(base)).remove()


def test_report(make_base: Any, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_base("llama", num_hidden_layers=4)
    patch = cora.patch(base, ["q_proj", "v_proj", "mlp.down_proj", "c_attn"], layers=[0, 1, 3])
    assert list(patch.layers)[:3] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.v_proj",
        "model.layers.0.mlp.down_proj",
    ]
    assert patch.unmatched == ("c_attn",)
    assert patch.groups[0] == ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")
    assert len(patch.layers) == 9 and len(patch.frozen) == 9
    report = capsys.readouterr().out
    assert report == str(patch) + "\n"
    assert "patched 9 linears of LlamaForCausalLM" in report
    assert "model.layers.#.self_attn.q_proj  48 -> 48  # = 0-1, 3  one group: q_proj, v_proj" in report
    assert "model.layers.#.self_attn.v_proj  48 -> 24" in report
    assert "model.layers.#.mlp.down_proj  80 -> 48" in report
    assert "9 weights that required a gradient" in report
    assert "matched nothing: c_attn" in report


def test_conv1d_weight_is_a_view(make_base: Any) -> None:
    base = make_base("gpt2")
    patch = cora.patch(base, ["c_attn"])
    layer = patch.layers["transformer.h.0.attn.c_attn"]
    assert (layer.in_features, layer.out_features) == (48, 144)
    assert layer.frozen_weight.shape == (144, 48)
    assert layer.frozen_weight.data_ptr() == layer.weight.data_ptr()


def test_names_of_deltas_and_the_longest_one_holds(make_base: Any) -> None:
    base = make_base("llama")
    patch = cora.patch(base, ["q_proj", "k_proj", "o_proj"])
    pairs = {48: torch.randn(2, 48), 24: torch.randn(2, 24)}
    lora_a = torch.randn(48, 2)
    every, ends, one = [{n: (lora_a, b.clone()) for n, b in pairs.items()} for _ in range(3)]
    patch.set_deltas({"q_proj": ends[48], "layers.1.self_attn.q_proj": one[48], "o_proj": every[48]})
    chosen = {name: layer.delta and layer.delta.lora_b for name, layer in patch.layers.items()}
    assert chosen["model.layers.0.self_attn.q_proj"] is ends[48][1]
    assert chosen["model.layers.1.self_attn.q_proj"] is one[48][1]
    assert chosen["model.layers.0.self_attn.k_proj"] is None
    assert chosen["model.layers.1.self_attn.o_proj"] is every[48][1]
    patch.remove()
    patch = cora.patch(base, ["q_proj", "o_proj"])
    patch.set_deltas({"q_proj": ends[48], "*": every[48]})
    assert patch.layers["model.layers.0.self_attn.q_proj"].delta.lora_b is ends[48][1]
    assert patch.layers["model.layers.0.self_attn.o_proj"].delta.lora_b is every[48][1]


def test_modules_without_deltas_give_their_frozen_output(make_base: Any, make_deltas: Any) -> None:
    base = make_base("llama")
    patch = cora.patch(base, ["q_proj", "k_proj", "v_proj"])
    deltas = make_deltas(patch, 3)
    only_q = {name: delta for name, delta in deltas.items() if name.endswith("q_proj")}
    patch.set_deltas(only_q)
    ours = logits(base)
    patch.remove()
    torch.testing.assert_close(ours, torch.cat([merged(base, only_q, i) for i in range(3)]), atol=2e-5, rtol=1e-4)


def test_siblings_are_one_call(make_base: Any, make_deltas: Any, count_calls: list[int]) -> None:
    base = make_base("llama")
    patch = cora.patch(base, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    patch.set_deltas(make_deltas(patch, 3))
    logits(base)
    assert count_calls == [3, 1, 2, 1] * 2


def test_siblings_of_different_scaling_are_apart(make_base: Any, make_deltas: Any, count_calls: list[int]) -> None:
    base = make_base("llama", num_hidden_layers=1)
    patch = cora.patch(base, ["q_proj", "k_proj", "v_proj"])
    deltas = make_deltas(patch, 3)
    deltas["model.layers.0.self_attn.k_proj"] = (*deltas["model.layers.0.self_attn.k_proj"][:2], 0.1)
    patch.set_deltas(deltas)
    ours = logits(base)
    assert count_calls == [2, 1]
    patch.remove()
    torch.testing.assert_close(ours, torch.cat([merged(base, deltas, i) for i in range(3)]), atol=2e-5, rtol=1e-4)


def test_one_a_for_all_siblings_reaches_the_op_as_one(
    make_base: Any, make_deltas: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cora.llm import patched_linear

    seen = []
    op = patched_linear.lora_linear_group
    monkeypatch.setattr(
        patched_linear, "lora_linear_group", lambda x, w, a, *r, **k: seen.append(a) or op(x, w, a, *r, **k)
    )
    base = make_base("llama", num_hidden_layers=1)
    patch = cora.patch(base, ["q_proj", "k_proj", "v_proj"])
    deltas = make_deltas(patch, 3)
    patch.set_deltas(deltas)
    logits(base)
    lora_a = torch.randn(3, 48, 4)
    patch.set_deltas({name: (lora_a, b, s) for name, (_, b, s) in deltas.items()})
    logits(base)
    assert isinstance(seen[0], list) and seen[1] is lora_a


class Parent(nn.Module):
    """Applies its siblings in ways no language model does."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(6, 5), nn.Linear(6, 4), nn.Linear(6, 3)

    def forward(self, x: Tensor, how: str) -> list[Tensor]:
        if how == "one":
            return [self.q_proj(x)]
        if how == "copy":
            return [self.q_proj(x), self.k_proj(x.clone()), self.v_proj(x)]
        if how == "written":
            q = self.q_proj(x)
            x.mul_(2)
            return [q, self.k_proj(x), self.v_proj(x)]
        if how == "twice":
            return [self.q_proj(x), self.q_proj(x), self.k_proj(x), self.v_proj(x)]
        if how == "graded":
            with torch.no_grad():
                self.q_proj(x)
            return [self.k_proj(x), self.v_proj(x)]
        if how == "error":
            self.q_proj(x)
            raise ArithmeticError
        return [self.v_proj(x), self.q_proj(x), self.k_proj(x)]


@pytest.mark.parametrize("how", ["one", "copy", "written", "twice", "graded", "any order"])
def test_siblings_called_in_other_ways_are_still_right(make_deltas: Any, how: str) -> None:
    parent = Parent()
    patch = cora.patch(parent, ["q_proj", "k_proj", "v_proj"])
    patch.set_deltas(make_deltas(patch, 2))
    x = torch.randn(2, 3, 6)
    grouped = parent(x.clone(), how)
    for layer in patch.layers.values():
        layer.group = None
    for y, alone in zip(grouped, parent(x.clone(), how), strict=True):
        torch.testing.assert_close(y, alone, atol=1e-6, rtol=1e-6)
        assert y.requires_grad


@pytest.mark.parametrize("how", ["one", "error"])
def test_nothing_is_held_after_a_forward(make_deltas: Any, how: str) -> None:
    parent = Parent()
    patch = cora.patch(parent, ["q_proj", "k_proj", "v_proj"])
    patch.set_deltas(make_deltas(patch, 2))
    x = torch.randn(2, 3, 6)
    kept = weakref.ref(x)
    with contextlib.suppress(ArithmeticError):
        parent(x, how)
    del x
    gc.collect()
    assert kept() is None


def test_siblings_called_outside_their_parent_compute_alone(make_deltas: Any, count_calls: list[int]) -> None:
    parent = Parent()
    patch = cora.patch(parent, ["q_proj", "k_proj", "v_proj"])
    patch.set_deltas(make_deltas(patch, 2))
    x = torch.randn(2, 3, 6)
    parent.q_proj(x), parent.k_proj(x)
    assert count_calls == [1, 1]


def test_a_new_delta_is_used_at_once(make_deltas: Any) -> None:
    parent = Parent()
    patch = cora.patch(parent, ["q_proj", "k_proj", "v_proj"])
    x = torch.randn(2, 3, 6)
    outputs = []
    for _ in range(2):
        patch.set_deltas(make_deltas(patch, 2))
        outputs.append(parent(x, "any order"))
    for one, other in zip(*outputs, strict=True):
        assert (one - other).abs().max() > 1e-4


def test_checkpointing_gives_the_same_gradients(base: PreTrainedModel, targets: Any, make_deltas: Any) -> None:
    base.requires_grad_(False).train()
    patch = cora.patch(base, targets(base))
    deltas = make_deltas(patch, 3)
    leaves = [t for a, b, _ in deltas.values() for t in (a, b)]
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        patch.set_deltas(deltas)
        gradients.append(torch.autograd.grad(logits(base).square().mean(), leaves))
        assert all(layer.group._forward.held is None for layer in patch.layers.values() if layer.group)
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)
        assert plain.abs().max() > 0


def test_cached_decoding_equals_the_whole_forward(base: PreTrainedModel, targets: Any, make_deltas: Any) -> None:
    patch = cora.patch(base, targets(base))
    patch.set_deltas(make_deltas(patch, 3))
    with torch.no_grad():
        whole = logits(base)
        cache, steps = None, []
        for piece in (IDS[:, :4], *IDS[:, 4:].split(1, dim=1)):
            out = base(input_ids=piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=2e-5, rtol=1e-4)


def test_autocast(make_base: Any, make_deltas: Any) -> None:
    base = make_base("llama").requires_grad_(False)
    patch = cora.patch(base)
    deltas = make_deltas(patch, 3)
    with torch.no_grad():
        patch.set_deltas(deltas)
        exact = logits(base)
        patch.set_deltas(None)
        frozen = logits(base)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded_frozen = logits(base)
    patch.set_deltas(deltas)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = logits(base)
    rounded.sum().backward()
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() <= 1.5 * (rounded_frozen - frozen).norm()
    assert all(t.grad.dtype == torch.float32 for a, b, _ in deltas.values() for t in (a, b))


def test_inference_mode(make_base: Any, make_deltas: Any) -> None:
    base = make_base("llama")
    patch = cora.patch(base)
    patch.set_deltas(make_deltas(patch, 3))
    with torch.no_grad():
        expected = logits(base)
    with torch.inference_mode():
        assert torch.equal(logits(base), expected)


def test_compiled_whole_and_not_again_for_another_batch(make_base: Any, make_deltas: Any) -> None:
    base = make_base("llama", num_hidden_layers=1).requires_grad_(False)
    patch = cora.patch(base)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(base, backend=counter, fullgraph=True)
    frames = []
    for batch, length, scaling in [(2, 7, 0.5), (3, 7, 0.5), (4, 6, 0.7), (5, 5, 0.9), (3, 4, 0.3)]:
        deltas = make_deltas(patch, batch, scaling=scaling)
        leaves = [t for a, b, _ in deltas.values() for t in (a, b)]
        patch.set_deltas(deltas)
        ids = torch.randint(3, 101, (batch, length))
        results = []
        for model in (base, compiled):
            out = logits(model, ids)
            results.append((out.detach(), *torch.autograd.grad(out.square().mean(), leaves)))
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(traced, eager, atol=1e-6, rtol=1e-5)
        frames.append(counter.frame_count)
    assert frames[2:] == frames[2:3] * 3, "sizes and the scaling are dynamic from the third call on"


def test_threads_may_share_a_patched_model(make_base: Any, make_deltas: Any) -> None:
    base = make_base("llama")
    patch = cora.patch(base)
    patch.set_deltas(make_deltas(patch, None))
    inputs = [torch.randint(3, 101, (2, 5)) for _ in range(24)]
    with torch.no_grad():
        expected = [logits(base, ids) for ids in inputs]
        call = torch.no_grad()(lambda ids: logits(base, ids))
        with ThreadPoolExecutor(4) as pool:
            for ours, alone in zip(pool.map(call, inputs), expected, strict=True):
                torch.testing.assert_close(ours, alone, atol=1e-6, rtol=1e-5)


def test_a_linear_under_two_names_is_patched_under_both(make_deltas: Any) -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"one": nn.ModuleDict({"q_proj": shared}), "two": nn.ModuleDict({"q_proj": shared})})
    patch = cora.patch(model, ["q_proj"])
    assert model["one"]["q_proj"] is model["two"]["q_proj"]
    assert list(patch.layers) == ["one.q_proj"]
    patch.remove()
    assert model["one"]["q_proj"] is shared and model["two"]["q_proj"] is shared


def test_report_of_what_stood_in_the_way(make_base: Callable[..., PreTrainedModel]) -> None:
    base = make_base("llama")
    patch = cora.patch(base)
    base.model.layers[0].self_attn.q_proj = nn.Linear(48, 48)
    with pytest.raises(RuntimeError, match=r"layers\.0\.self_attn\.q_proj: was replaced after the patch"):
        patch.remove()
    assert isinstance(base.model.layers[1].self_attn.q_proj, LoRALinear)
