"""Everything that patch, set_deltas and a patched forward refuse, each with its own clear error."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

import cora
from cora import Patch
from cora.llm.patched_linear import LoRALinear


def snapshot(model: nn.Module) -> list[Any]:
    return [*model.named_modules()], [(n, p.requires_grad) for n, p in model.named_parameters()]


class QuantisedLinear(nn.Linear):
    """Computes its forward from something else than `weight`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).round()


PATCH_ERRORS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "nothing",
        dict(target_modules=["wq"]),
        ValueError,
        "wq match nothing in LlamaForCausalLM; its linears are named q_proj,",
    ),
    (
        "string",
        dict(target_modules="q_proj"),
        TypeError,
        "target_modules: expected a sequence of module names or 'all-linear', got 'q_proj'",
    ),
    ("no-target", dict(target_modules=[]), ValueError, "target_modules: empty"),
    ("not-a-name", dict(target_modules=[3]), TypeError, "target_modules: expected a sequence of module names"),
    (
        "embedding",
        dict(target_modules=["embed_tokens"]),
        TypeError,
        "model.embed_tokens is a torch.nn.*Embedding, expected",
    ),
    ("container", dict(target_modules=["self_attn"]), TypeError, "layers.0.self_attn is a .*LlamaAttention"),
    ("no-such-layer", dict(layers=[0, 7]), ValueError, r"layers: \[7\] not in the model, which has layers 0-1"),
    ("no-layer", dict(layers=[]), ValueError, "layers: empty"),
    ("layer-text", dict(layers=["0"]), TypeError, "layers: expected whole numbers"),
    ("layer-of-no-target", dict(target_modules=["lm_head"], layers=[0]), ValueError, "lm_head match nothing"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "message"), [row[1:] for row in PATCH_ERRORS], ids=[r[0] for r in PATCH_ERRORS]
)
def test_patch_refuses(make_base: Any, arguments: Any, error: type[Exception], message: str) -> None:
    base = make_base("llama")
    before = snapshot(base)
    with pytest.raises(error, match=message):
        cora.patch(base, **arguments)
    assert snapshot(base) == before


def test_patch_refuses_what_is_no_model() -> None:
    with pytest.raises(TypeError, match="model: expected an nn.Module, got str"):
        cora.patch("gpt2")  # type: ignore[arg-type]


def test_default_targets_do_not_exist_in_gpt2(make_base: Any) -> None:
    with pytest.raises(
        ValueError, match="match nothing in GPT2LMHeadModel; its linears are named c_attn, c_proj, c_fc, lm_head"
    ):
        cora.patch(make_base("gpt2"))


def test_patching_twice(make_base: Any) -> None:
    base = make_base("llama")
    cora.patch(base, ["q_proj"])
    with pytest.raises(ValueError, match=r"already patched \(model.layers.0.self_attn.q_proj\)"):
        cora.patch(base, ["v_proj"])


def test_linears_that_are_more_than_a_weight(make_base: Any) -> None:
    base = make_base("llama")
    attention = base.model.layers[1].self_attn
    plain = attention.q_proj
    attention.q_proj = QuantisedLinear(48, 48)
    with pytest.raises(
        TypeError, match=r"layers.1.self_attn.q_proj is a .*QuantisedLinear, expected a plain torch.nn.Linear"
    ):
        cora.patch(base)
    attention.q_proj = plain
    plain.forward = plain.forward
    with pytest.raises(ValueError, match="the forward of model.layers.1.self_attn.q_proj was replaced"):
        cora.patch(base)
    del plain.forward
    plain.register_full_backward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="q_proj has backward hooks"):
        cora.patch(base)
    assert not any(isinstance(module, LoRALinear) for module in base.modules())


def test_integer_weights(make_base: Any) -> None:
    base = make_base("llama")
    base.model.layers[0].self_attn.q_proj.weight = nn.Parameter(
        torch.zeros(48, 48, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(TypeError, match="layers.0.self_attn.q_proj"):
        cora.patch(base)


def test_peft_wrapped_model(make_base: Any) -> None:
    wrapped = get_peft_model(make_base("llama"), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(TypeError, match="self_attn.q_proj is a peft.tuners.lora.layer.Linear"):
        cora.patch(wrapped, ["q_proj"])
    patch = cora.patch(wrapped, ["v_proj"])
    patch.set_deltas(None)
    assert wrapped(torch.ones(1, 2, dtype=torch.long)).logits.isfinite().all()


@pytest.fixture
def patch(make_base: Any) -> Patch:
    return cora.patch(make_base("llama"), ["q_proj", "k_proj"])


def delta(a: tuple[int, ...] = (2, 48, 4), b: tuple[int, ...] = (2, 4, 48), *scaling: Any) -> tuple[Any, ...]:
    return torch.randn(a), torch.randn(b), *scaling


Q = "model.layers.0.self_attn.q_proj"
DELTA_ERRORS: list[tuple[str, Any, type[Exception], str]] = [
    ("empty", {}, ValueError, "deltas: empty; pass None"),
    (
        "unknown",
        {"v_proj": delta()},
        KeyError,
        "no patched linear is named 'v_proj' or ends so; patched are q_proj, k_proj",
    ),
    ("part-of-a-name", {"proj": delta()}, KeyError, "named 'proj'"),
    ("no-tuple", {"q_proj": torch.ones(2)}, TypeError, r"deltas\['q_proj'\]: expected \(lora_a, lora_b\) or"),
    ("tuple-of-1", {"q_proj": (torch.ones(2),)}, TypeError, "got a tuple of 1"),
    ("no-tensor", {"q_proj": ([1.0], [1.0])}, TypeError, "lora_a: expected a float tensor, got list"),
    (
        "whole-numbers",
        {"q_proj": (torch.ones(48, 4).long(), torch.ones(4, 48))},
        TypeError,
        "lora_a: .* got a torch.int64",
    ),
    ("width-in", {"q_proj": delta((2, 47, 4))}, ValueError, rf"\[B, 48, r\] or \[48, r\] for {Q}, got \[2, 47, 4\]"),
    ("width-out", {"k_proj": delta()}, ValueError, r"lora_b \[B, 4, 24\] or \[4, 24\] for .*k_proj, got \[2, 4, 48\]"),
    ("rank", {"q_proj": delta(b=(2, 5, 48))}, ValueError, r"lora_b \[B, 4, 48\] or \[4, 48\] .*, got \[2, 5, 48\]"),
    ("rank-0", {"q_proj": delta((2, 48, 0), (2, 0, 48))}, ValueError, r"lora_a \[B, 48, r\].*got \[2, 48, 0\]"),
    ("dims", {"q_proj": delta((1, 2, 48, 4))}, ValueError, r"got \[1, 2, 48, 4\]"),
    ("transposed", {"q_proj": delta((2, 4, 48))}, ValueError, r"lora_a .*got \[2, 4, 48\]"),
    (
        "batch-a-b",
        {"q_proj": delta(b=(3, 4, 48))},
        ValueError,
        r"one batch size, got lora_a \[2, 48, 4\], lora_b \[3, 4, 48\]",
    ),
    ("batch-scaling", {"q_proj": (*delta(), torch.ones(3))}, ValueError, r"one batch size, .*scaling \[3\]"),
    (
        "scaling-0d",
        {"q_proj": (*delta(), torch.tensor(1.0))},
        TypeError,
        r"scaling: expected a number or a float tensor \[B\], got",
    ),
    ("scaling-text", {"q_proj": (*delta(), "1")}, TypeError, "scaling: .* got str"),
    (
        "batches",
        {"q_proj": delta(), "k_proj": delta((3, 48, 4), (3, 4, 24))},
        ValueError,
        "batch size 3 for .*k_proj, but 2 for .*q_proj",
    ),
    (
        "device",
        {"q_proj": (torch.ones(48, 4, device="meta"), torch.ones(4, 48))},
        ValueError,
        "lora_a is on meta, .* on cpu",
    ),
]


@pytest.mark.parametrize(
    ("deltas", "error", "message"), [row[1:] for row in DELTA_ERRORS], ids=[r[0] for r in DELTA_ERRORS]
)
def test_set_deltas_refuses_and_sets_nothing(patch: Patch, deltas: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        patch.set_deltas(deltas)
    assert patch.calls.current() is None


def call(patch: Patch, batch: int = 2) -> Tensor:
    return patch.model(input_ids=torch.ones(batch, 3, dtype=torch.long)).logits


def test_forward_before_any_deltas(patch: Patch) -> None:
    with pytest.raises(RuntimeError, match=rf"{Q}: no deltas are set; call set_deltas first, set_deltas\(None\)"):
        call(patch)
    patch.set_deltas(None)
    assert call(patch).isfinite().all()


def test_forward_with_another_batch_size(patch: Patch) -> None:
    patch.set_deltas({"q_proj": delta()})
    call(patch)
    with pytest.raises(ValueError, match=f"{Q}: x has batch size 3, the deltas were set for 2"):
        call(patch, 3)
    patch.set_deltas({"q_proj": (torch.ones(48, 4), torch.ones(4, 48), torch.ones(2))})
    with pytest.raises(ValueError, match="batch size 3, the deltas were set for 2"):
        call(patch, 3)
    patch.set_deltas({"q_proj": delta((48, 4), (4, 48))})
    assert call(patch, 5).shape[0] == 5


def test_beams_repeat_samples_and_the_error_says_so(patch: Patch) -> None:
    patch.set_deltas({"q_proj": delta()})
    with pytest.raises(ValueError, match=r"x has batch size 6, .* set for 2.*beam search"):
        patch.model.generate(torch.ones(2, 3, dtype=torch.long), num_beams=3, max_new_tokens=2)


def test_linear_that_sees_no_whole_samples(patch: Patch) -> None:
    patch.set_deltas({"q_proj": delta()})
    with pytest.raises(ValueError, match=rf"{Q}: expected x of shape \[B, T, 48\], got \[6, 48\]"):
        patch.layers[Q](torch.ones(6, 48))


def test_weight_that_requires_grad_again(patch: Patch) -> None:
    patch.set_deltas({"q_proj": delta()})
    model: PreTrainedModel = patch.model
    model.requires_grad_(True)
    with pytest.raises((ValueError, RuntimeError), match="weight"):
        call(patch)
