"""Equality with PEFT: several adapters, mixed in one batch by adapter_names, fed as per-sample deltas."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import cora

TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"],
    "gpt2": ["c_attn", "attn.c_proj", "c_fc"],
}
ADAPTERS = {"one": (3, 6.0), "two": (3, 3.0), "three": (3, 1.5)}
MIXED = ["two", "one", "__base__", "three", "one"]


@pytest.mark.parametrize("architecture", TARGETS)
def test_mixed_adapters_as_per_sample_deltas(make_base: Any, architecture: str) -> None:
    ids = torch.randint(3, 101, (len(MIXED), 6))
    targets = TARGETS[architecture]
    transposed = architecture == "gpt2"
    wrapped = None
    for name, (r, alpha) in ADAPTERS.items():
        config = LoraConfig(r=r, lora_alpha=alpha, target_modules=targets, fan_in_fan_out=transposed)
        if wrapped is None:
            wrapped = get_peft_model(make_base(architecture), config, adapter_name=name)
        else:
            wrapped.add_adapter(name, config)
    adapted = {}
    with torch.no_grad():
        for name, module in wrapped.named_modules():
            if hasattr(module, "lora_A") and len(module.lora_A):
                for adapter in ADAPTERS:
                    module.lora_A[adapter].weight.normal_(std=0.2)
                    module.lora_B[adapter].weight.normal_(std=0.2)
                adapted[name.removeprefix("base_model.model.")] = module
        theirs = wrapped.eval()(input_ids=ids, adapter_names=MIXED).logits
        frozen = wrapped(input_ids=ids, adapter_names=["__base__"] * len(MIXED)).logits

    deltas = {}
    for name, module in adapted.items():
        zeros = torch.zeros_like(module.lora_A["one"].weight), torch.zeros_like(module.lora_B["one"].weight)
        factors = [zeros if a == "__base__" else (module.lora_A[a].weight, module.lora_B[a].weight) for a in MIXED]
        scaling = torch.tensor([0.0 if a == "__base__" else module.scaling[a] for a in MIXED])
        lora_a, lora_b = (torch.stack([pair[i].t() for pair in factors]).detach() for i in (0, 1))
        deltas[name] = (lora_a, lora_b, scaling)
    base = wrapped.unload()
    patch = cora.patch(base, targets)
    assert set(patch.layers) == set(deltas)
    patch.set_deltas(deltas)
    with torch.no_grad():
        ours = base(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    changed = (theirs - frozen).flatten(1).norm(dim=1)
    assert changed[2] == 0 and all(changed[[0, 1, 3, 4]] > 0.1)
