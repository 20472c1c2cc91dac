"""save_pretrained, from_pretrained, and the state dict that a trainer's checkpoint holds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from cora import CoRAConfig, CoRAModel
from cora.collaborative import CollaborativeEmbeddings
from cora.generators.shared_p import SharedP
from cora.llm.loading import load_base

IDS, MASK = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]]), torch.ones(2, 4, dtype=torch.long)


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """Every P."""
    return [p for module in model.modules() if isinstance(module, SharedP) for p in module.parameters()]


def build(base: PreTrainedModel, **changes: Any) -> CoRAModel:
    embeddings = CollaborativeEmbeddings(["ann", "bo"], [5, 6, 7], torch.randn(2, 8), torch.randn(3, 8))
    fields: dict[str, Any] = dict(r=3, generator="mlp", hidden_size=16, user_dropout=0.0, answer_ids=(11, 23))
    return CoRAModel(base, CoRAConfig(**(fields | changes)), embeddings)


def trained(base: PreTrainedModel, **changes: Any) -> CoRAModel:
    model = build(base, **changes).eval()
    for matrix in matrices(model):
        nn.init.normal_(matrix)
    return model


def scores(model: CoRAModel) -> torch.Tensor:
    return model.score(IDS, MASK, ["bo", "ann"], [6, 7])


def test_the_model_card_says_what_it_is_and_no_path(make_base: Any, tmp_path: Path) -> None:
    model = trained(make_base("llama"), base_model=str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    model.save_pretrained(tmp_path / "here")
    expected = scores(model)
    card = ModelCard.load(tmp_path / "here" / "README.md")
    assert card.data.library_name == "cora-kernels" and card.data.base_model is None and "lora" in card.data.tags
    assert "cora on mine" in card.text and str(tmp_path) not in card.content
    assert f"{sum(one.numel() for one in model.state_dict().values()):,} trained elements" in card.text
    trained(make_base("llama"), base_model="owner/name").save_pretrained(tmp_path / "hub")
    assert ModelCard.load(tmp_path / "hub" / "README.md").data.base_model == "owner/name"
    code = (
        card.text.split("```python\n")[1].split("```")[0].replace("from huggingface_hub import snapshot_download", "")
    )
    names: dict[str, Any] = {"snapshot_download": lambda _: tmp_path / "here", "base_model": model.unpatch()}
    exec(code, names)
    assert torch.equal(scores(names["model"]), expected)


def test_a_card_that_is_there_is_kept(make_base: Any, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my own words")
    trained(make_base("llama")).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"


@pytest.mark.parametrize("generator", ["mlp", "qformer", "per_layer"])
def test_round_trip(make_base: Any, tmp_path: Path, generator: str) -> None:
    model = trained(make_base("llama"), generator=generator, num_blocks=1, ffn_size=16)
    expected = scores(model)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "embeddings.safetensors",
        "model.safetensors",
    ]
    names = load_file(tmp_path / "model.safetensors").keys()
    assert {name.partition(".")[0] for name in names} == {"generator"}
    base = model.unpatch()
    again = CoRAModel.from_pretrained(tmp_path, base)
    assert torch.equal(scores(again), expected)
    assert again.config == model.config and not again.training
    again.save_pretrained(tmp_path)
    assert torch.equal(scores(again), expected)


def test_base_model_by_name(make_base: Any, tmp_path: Path) -> None:
    make_base("llama").save_pretrained(tmp_path / "base")
    base = type(make_base("llama")).from_pretrained(tmp_path / "base")
    model = trained(base)
    assert model.config.base_model == str(tmp_path / "base")
    model.save_pretrained(tmp_path / "saved")
    again = CoRAModel.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(scores(again), scores(model))


def test_base_model_that_is_not_recorded(make_base: Any, tmp_path: Path) -> None:
    trained(make_base("llama")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="base_model: .* does not name its base model; pass it"):
        CoRAModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="base_model was passed, so nothing is loaded with dtype"):
        CoRAModel.from_pretrained(tmp_path, make_base("llama"), dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(format=None), "config.json: a model of format 1, expected format 2"),
        (dict(format=7), "config.json: a model of format 7, expected format 2"),
        (dict(method="tallrec"), "config.json: a model of the method 'tallrec', expected 'cora'"),
    ],
    ids=["older", "newer", "other method"],
)
def test_folders_of_another_format_or_method(
    make_base: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    trained(make_base("llama")).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    with pytest.raises(ValueError, match=message):
        CoRAModel.from_pretrained(tmp_path, make_base("llama"))


def test_missing_files(make_base: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not a saved cora model, config.json, model.safetensors, embedd"):
        CoRAModel.from_pretrained(tmp_path, make_base("llama"))


MISFITS: list[tuple[str, dict[str, Any], str]] = [
    (
        "fewer layers",
        dict(num_hidden_layers=1),
        "4 tensors unexpected, for example generator.*model/layers/1/",
    ),
    (
        "more layers",
        dict(num_hidden_layers=3),
        "4 tensors missing, for example generator.*model/layers/2/",
    ),
    (
        "width",
        dict(hidden_size=32),
        "linears.32.bias; 2 tensors unexpected, for example generator.heads.linears.48.bias",
    ),
    (
        "heads",
        dict(num_key_value_heads=4),
        r"of other shapes: generator.*k_proj is \[3, 24\], needed \[3, 48\]",
    ),
]


@pytest.mark.parametrize(("changes", "message"), [row[1:] for row in MISFITS], ids=[row[0] for row in MISFITS])
def test_weights_of_another_base_model(make_base: Any, tmp_path: Path, changes: Any, message: str) -> None:
    trained(make_base("llama")).save_pretrained(tmp_path)
    other = make_base("llama", **changes)
    objects = dict(other.named_modules())
    with pytest.raises(ValueError, match=f"model.safetensors does not fit LlamaForCausalLM: .*{message}"):
        CoRAModel.from_pretrained(tmp_path, other)
    assert dict(other.named_modules()) == objects


def test_a_failed_save_leaves_the_old_model(make_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(make_base("llama"))
    expected = scores(model)
    model.save_pretrained(tmp_path)
    nn.init.zeros_(next(iter(matrices(model))))

    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("cora.methods.adapted_model.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob(".*"))
    again = CoRAModel.from_pretrained(tmp_path, model.unpatch())
    assert torch.equal(scores(again), expected)
    assert json.loads((tmp_path / "config.json").read_text())["r"] == 3


def test_state_dict_holds_generator_and_p_and_loads_strictly(make_base: Any) -> None:
    model = trained(make_base("llama"))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert all(name.startswith("generator.") for name in state)
    expected = scores(model)
    for matrix in matrices(model):
        nn.init.zeros_(matrix)
    assert not torch.equal(scores(model), expected)
    model.load_state_dict(state)
    assert torch.equal(scores(model), expected)
    with pytest.raises(RuntimeError, match=r"Missing key.*matrices\.model/layers/0"):
        model.load_state_dict({name: tensor for name, tensor in state.items() if "layers/0" not in name})


class Rows(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": IDS[index % 2], "attention_mask": MASK[0], "item_ids": 5 + index % 3, "labels": index % 2}


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    batch = {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
    return batch | {"user_ids": ["ann"] * len(rows)}


def test_trainer_runs_it_as_it_is(make_base: Any, tmp_path: Path) -> None:
    model = build(make_base("qwen2"))
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_checkpointing=True,
        save_steps=2,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
        max_grad_norm=1.0,
    )
    trainer = Trainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows(), data_collator=collate)
    trainer.train()
    assert all(matrix.any() for matrix in matrices(model))
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    prediction = trainer.predict(Rows())
    assert prediction.predictions.shape == prediction.label_ids.shape == (4,)
    assert prediction.metrics["test_loss"] > 0


@pytest.mark.parametrize("change", [dict(r=10**9), dict(hidden_size=10**12), dict(r=400)])
def test_settings_that_make_a_larger_model_than_the_file(make_base: Any, tmp_path: Path, change: Any) -> None:
    trained(make_base("llama")).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    base = make_base("llama")
    objects = dict(base.named_modules())
    with pytest.raises(ValueError, match="(config.json does not fit model.safetensors: more than|of other shapes)"):
        CoRAModel.from_pretrained(tmp_path, base)
    assert dict(base.named_modules()) == objects


def test_weights_that_are_whole_numbers(make_base: Any, tmp_path: Path) -> None:
    trained(make_base("llama")).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.long() for name, tensor in load_file(path).items()}, path)
    with pytest.raises(ValueError, match="tensors that are not float: generator.* is I64"):
        CoRAModel.from_pretrained(tmp_path, make_base("llama"))


def test_a_base_model_in_a_pickle_is_not_read(make_base: Any, tmp_path: Path) -> None:
    base = make_base("llama")
    base.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(base.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="no file named model.safetensors"):
        load_base(str(tmp_path))
