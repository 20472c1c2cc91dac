"""Every family of causal language models: "all-linear" patches it, and the deltas are those of merged weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

import cora
from cora_kernels import use_backend

SIZES: dict[str, Any] = dict(
    vocab_size=101, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
STILL: dict[str, Any] = dict(hidden_dropout=0.0, attention_dropout=0.0)
EXPERTS: dict[str, Any] = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
# family -> (its configuration, the linears that "all-linear" finds in a layer)
FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "llama": (SIZES, "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
    "mistral": (SIZES | dict(sliding_window=4), "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
    "qwen2": (SIZES | dict(tie_word_embeddings=True), "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
    "qwen3": (SIZES | dict(head_dim=16), "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
    "gemma2": (SIZES | dict(head_dim=16), "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
    "gemma3_text": (SIZES | dict(head_dim=16), "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
    "phi3": (SIZES, "o_proj qkv_proj gate_up_proj down_proj"),
    "gpt2": (
        dict(vocab_size=101, n_embd=48, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0)
        | dict(attn_pdrop=0.0),
        "c_attn c_proj c_fc",
    ),
    "gpt_neox": (SIZES | STILL, "query_key_value dense dense_h_to_4h dense_4h_to_h"),
    "gptj": (
        dict(vocab_size=101, n_embd=48, n_layer=2, n_head=4, n_positions=64, rotary_dim=4, resid_pdrop=0.0)
        | dict(embd_pdrop=0.0, attn_pdrop=0.0),
        "k_proj v_proj q_proj out_proj fc_in fc_out",
    ),
    "falcon": (SIZES | STILL | dict(multi_query=True), "query_key_value dense dense_h_to_4h dense_4h_to_h"),
    "opt": (
        SIZES | dict(ffn_dim=80, word_embed_proj_dim=48, dropout=0.0, attention_dropout=0.0),
        "k_proj v_proj q_proj out_proj fc1 fc2",
    ),
    "bloom": (
        dict(vocab_size=101, hidden_size=48, n_layer=2, n_head=4, hidden_dropout=0.0, attention_dropout=0.0),
        "query_key_value dense dense_h_to_4h dense_4h_to_h",
    ),
    "stablelm": (SIZES | STILL | dict(hidden_size=64), "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
    "olmo2": (SIZES, "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
    "granite": (SIZES | dict(logits_scaling=4.0), "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
    "cohere": (SIZES | dict(logit_scale=0.25), "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
    # The experts of these are no linears: attention is adapted, and the expert that every token passes.
    "mixtral": (SIZES | dict(num_local_experts=4), "q_proj k_proj v_proj o_proj"),
    "qwen3_moe": (SIZES | EXPERTS | dict(head_dim=16), "q_proj k_proj v_proj o_proj"),
    "qwen2_moe": (
        SIZES | EXPERTS | dict(shared_expert_intermediate_size=64),
        "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj shared_expert_gate",
    ),
}
IDS = torch.randint(3, 101, (3, 7), generator=torch.Generator().manual_seed(1))


def tiny(family: str) -> PreTrainedModel:
    """A random model in eval mode, its weights large enough for logits that depend on the input."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family][0]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.1) if name.endswith("bias") else parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model.float().eval()


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_of_every_family(family: str) -> None:
    model = tiny(family)
    with torch.no_grad():
        before = logits(model)
    patch = cora.patch(model, "all-linear")
    assert list(dict.fromkeys(name.rpartition(".")[2] for name in patch.layers)) == FAMILIES[family][1].split()
    deltas: dict[str, Any] = {
        name: (
            torch.randn(3, layer.in_features, 2).mul_(0.1).requires_grad_(),
            torch.zeros(3, 2, layer.out_features).requires_grad_(),
            0.7,
        )
        for name, layer in patch.layers.items()
    }
    patch.set_deltas(deltas)
    with torch.no_grad(), use_backend("chain"):  # whose x·Wᵀ is the GEMM of nn.Linear
        torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=1e-6)

    for _, lora_b, _ in deltas.values():
        lora_b.data.normal_(std=0.1)
    patch.set_deltas(deltas)
    adapted = logits(model)
    (adapted * torch.linspace(-1, 1, 101)).sum().backward()
    for name, (lora_a, lora_b, _) in deltas.items():
        assert all(torch.isfinite(t.grad).all() and t.grad.flatten(1).any(1).all() for t in (lora_a, lora_b)), name
    patch.remove()

    for sample in range(3):
        changes = {name: scaling * a[sample] @ b[sample] for name, (a, b, scaling) in deltas.items()}
        weights = {
            f"{name}.weight": module.weight + (change if isinstance(module, Conv1D) else change.t())
            for name, change in changes.items()
            for module in [model.get_submodule(name)]
        }
        merged = torch.func.functional_call(model, weights, (IDS[sample : sample + 1],), dict(use_cache=False)).logits
        torch.testing.assert_close(adapted[sample], merged[0], atol=1e-4, rtol=1e-4)
        assert (merged[0] - before[sample]).abs().max() > 1e-2


def test_the_report_names_experts_that_are_no_linears() -> None:
    assert "no linears, so without deltas: model.layers.#.mlp.experts.gate_up_proj, " in str(
        cora.patch(tiny("mixtral"), "all-linear")
    )
    assert "no linears" not in str(cora.patch(tiny("llama"), "all-linear"))


def test_a_linear_of_rows_with_a_shared_delta_and_with_rows_of_no_samples() -> None:
    model = tiny("opt")
    patch = cora.patch(model, ["fc1"])
    lora_a, lora_b = torch.randn(48, 2), torch.randn(2, 80)
    patch.set_deltas({"fc1": (lora_a, lora_b)})
    shared = logits(model)
    patch.set_deltas({"fc1": (lora_a.expand(3, -1, -1), lora_b.expand(3, -1, -1))})
    torch.testing.assert_close(logits(model), shared)
    patch.set_deltas({"fc1": (lora_a.expand(2, -1, -1), lora_b.expand(2, -1, -1))})
    with pytest.raises(ValueError, match=r"layers.0.fc1: expected x of shape \[B, T, 48\], got \[21, 48\]"):
        logits(model)


def test_all_linear_is_a_setting_of_the_methods() -> None:
    config = cora.CoRAConfig(target_modules="all-linear")
    assert cora.CoRAConfig.from_dict(config.to_dict()).target_modules == "all-linear"
    with pytest.raises(TypeError, match="target_modules: expected a list of str"):
        cora.CoRAConfig(target_modules="all-linears")
