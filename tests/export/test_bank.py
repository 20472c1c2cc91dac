"""A folder of PEFT adapters as a bank: what PEFT computes, per sample, with training, and back to PEFT."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import cora
from cora import AdapterBank

IDS = torch.randint(3, 101, (5, 6), generator=torch.Generator().manual_seed(2))
MIXED = ["two", "one", None, "three", "one"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_adapters_of_every_kind_by_name(make_base: Any, write_peft: Any, tmp_path: Path, family: str) -> None:
    end = {"llama": "q_proj", "gpt2": "c_attn", "phi3": "qkv_proj"}[family]
    write_peft(tmp_path / "one", family, 1)
    write_peft(tmp_path / "two", family, 2, r=5, use_rslora=True)
    patterns = dict(rank_pattern={end: 2}, alpha_pattern={rf".*\.1\..*\.{end}": 7})
    write_peft(tmp_path / "three", family, 3, **patterns)
    expected = []
    for sample, name in enumerate(MIXED):
        model = make_base(family)
        if name is not None:
            model = PeftModel.from_pretrained(model, str(tmp_path / name)).eval()
        with torch.no_grad():
            expected.append(model(input_ids=IDS[sample : sample + 1], use_cache=False).logits)
    base = make_base(family)
    bank = cora.load_bank(tmp_path, base)
    assert bank.names == ("one", "three", "two")
    patch = cora.patch(base, bank.linears)
    patch.set_deltas(bank.deltas(MIXED))
    with torch.no_grad():
        ours = base(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(ours, torch.cat(expected), atol=2e-5, rtol=1e-4)
    assert (ours[1] - base(input_ids=IDS[1:2].expand(5, -1)).logits[2]).abs().max() > 1e-2


def test_a_bank_of_eight_adapters_trains_and_goes_back_to_peft(
    make_base: Any, write_peft: Any, tmp_path: Path, logits: Any
) -> None:
    names = [f"user{i}" for i in range(8)]
    for i, name in enumerate(names):
        write_peft(tmp_path / "before" / name, seed=i, r=1 + i % 3, lora_alpha=2 + i)
    base = make_base("llama")
    bank = cora.load_bank(tmp_path / "before", base)
    patch = cora.patch(base, bank.linears)
    ids = torch.randint(3, 101, (8, 6), generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(bank.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        patch.set_deltas(bank.deltas(names))
        loss = base(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    rows = [parameter.grad.flatten(1).norm(dim=1) for parameter in bank.parameters()]
    assert all((row > 0).all() for row in rows)
    bank.save_pretrained(tmp_path / "after")
    for i, name in enumerate(names):
        config = json.loads((tmp_path / "after" / name / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (1 + i % 3, 2 + i, {})
    again = cora.load_bank(tmp_path / "after", base)
    patch.set_deltas(again.deltas(names[:2]))
    ours = logits(base)
    for row, name in enumerate(names[:2]):
        theirs = PeftModel.from_pretrained(make_base("llama"), str(tmp_path / "after" / name)).eval()
        torch.testing.assert_close(ours[row], logits(theirs)[row], atol=2e-5, rtol=1e-4)


def test_only_the_adapters_of_the_batch_get_gradients(make_base: Any, write_peft: Any, tmp_path: Path) -> None:
    for i, name in enumerate("abc"):
        write_peft(tmp_path / name, seed=i)
    base = make_base("llama")
    bank = cora.load_bank(tmp_path, base)
    cora.patch(base, bank.linears).set_deltas(bank.deltas(["c", None, "a"]))
    base(input_ids=IDS[:3]).logits.sum().backward()
    for parameter in bank.parameters():
        assert parameter.grad.flatten(1).any(1).tolist() == [True, False, True]


def test_adapters_of_different_linears(make_base: Any, write_peft: Any, tmp_path: Path) -> None:
    write_peft(tmp_path / "a", target_modules=["q_proj"], layers_to_transform=[1])
    write_peft(tmp_path / "b", target_modules=["o_proj"])
    bank = cora.load_bank([tmp_path / "b", tmp_path / "a"], make_base("llama"))
    assert bank.names == ("b", "a")
    o_projs = [f"model.layers.{layer}.self_attn.o_proj" for layer in (0, 1)]
    assert set(bank.linears) == {*o_projs, "model.layers.1.self_attn.q_proj"}
    bank.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["1.self_attn.q_proj"]
    for name in "ab":
        before, after = (
            load_file(folder / name / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "again")
        )
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_names(make_base: Any, write_peft: Any, tmp_path: Path) -> None:
    base = make_base("llama")
    with pytest.raises(FileNotFoundError, match="adapters: no folder with adapter_config.json in"):
        cora.load_bank(tmp_path, base)
    with pytest.raises(TypeError, match="adapters: expected a folder or a list of folders, got 3"):
        cora.load_bank(3, base)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model: expected an nn.Module, got str"):
        cora.load_bank(tmp_path, "llama")  # type: ignore[arg-type]
    write_peft(tmp_path / "x" / "ann")
    write_peft(tmp_path / "y" / "ann")
    with pytest.raises(ValueError, match="adapters: two are named 'ann'"):
        cora.load_bank([tmp_path / "x" / "ann", tmp_path / "y" / "ann"], base)
    bank = cora.load_bank(tmp_path / "x", base)
    with pytest.raises(ValueError, match="names: 'bo' is not in the bank of ann"):
        bank.deltas(["ann", "bo"])
    for names in ([], "ann"):
        with pytest.raises(ValueError, match="names: expected the adapter of each sample"):
            bank.deltas(names)
    assert isinstance(bank, AdapterBank) and cora.load_bank(tmp_path / "x" / "ann", base).names == ("ann",)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (dict(use_dora=True), r"use_dora \(DoRA\) is not served, got True"),
    (dict(modules_to_save=["lm_head"]), "modules_to_save is not served, got .*lm_head"),
    (dict(bias="all"), "bias: expected 'none', got 'all'"),
    (dict(lora_bias=True), "lora_bias is not served"),
    (dict(layer_replication=[[0, 1]]), "layer_replication is not served"),
    (dict(something_new=1), "something_new is not served, got 1"),
    (dict(peft_type="LOHA"), "peft_type: expected 'LORA', got 'LOHA'"),
    (dict(peft_type=None), "peft_type: expected 'LORA', got nothing"),
    (dict(init_lora_weights="pissa"), "init_lora_weights: 'pissa' is not served"),
    (dict(r=4), r"lora_A of model.layers.0.mlp.down_proj: expected float \[4, 80\], got F32 \[3, 80\]"),
    (dict(r="3"), "r: expected a number above 0, got '3'"),
    (dict(lora_alpha=float("nan")), "lora_alpha: expected a number above 0, got nan"),
    (dict(rank_pattern={"q_proj": 4}), r"lora_A of .*q_proj: expected float \[4, 48\], got F32 \[3, 48\]"),
    (dict(alpha_pattern={"(a+)+": 4}), r"alpha_pattern: '\(a\+\)\+' is more of a regular expression than is served"),
    (dict(alpha_pattern={"(a": 4}), r"alpha_pattern: '\(a' is no regular expression"),
    (dict(alpha_pattern=["q_proj"]), "alpha_pattern: expected at most 10,000 patterns with numbers"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[next(iter(one)) for one, _ in REFUSED])
def test_what_is_more_than_lora_on_linears(
    make_base: Any, write_peft: Any, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    write_peft(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ValueError, match=message) as error:
        cora.load_bank(tmp_path, make_base("llama"))
    assert str(tmp_path) in str(error.value) and len(str(error.value)) - len(str(tmp_path)) <= 300


def test_tensors_that_are_no_lora_of_this_model(make_base: Any, write_peft: Any, tmp_path: Path) -> None:
    write_peft(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(iter(tensors))
    start = "base_model.model.model.layers.0.self_attn.q_proj"
    for changed, message in (
        (tensors | {f"{start}.lora_magnitude_vector": torch.ones(48)}, "alone, got .*q_proj.lora_magnitude_vector"),
        ({k: v for k, v in tensors.items() if k != f"{start}.lora_B.weight"}, "self_attn.q_proj has no lora_B"),
        ({k.replace("layers.1", "layers.9"): v for k, v in tensors.items()}, "the model has no linear .*layers.9"),
        (tensors | {key: tensors[key].int()}, "expected float .*, got I32"),
        ({}, "no tensors, so nothing to add"),
    ):
        save_file(changed, path)
        with pytest.raises(ValueError, match=message):
            cora.load_bank(tmp_path, make_base("llama"))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors: there is no such file"):
        cora.load_bank(tmp_path, make_base("llama"))
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="adapter_model.bin: a pickle, which is not read"):
        cora.load_bank(tmp_path, make_base("llama"))
