"""`cora export`: an adapter of a pair, a user or many, which PEFT loads to the same logits."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file

import cora
from cora.cli import main
from cora.export.runs import export
from cora.methods.samples import Samples
from cora.runs.folder import RunFolder
from cora.runs.prepare import prepare
from cora.runs.score import load_model

USER = "u/3"
Run = Callable[..., Path]


def by_peft(base: Any, folder: Path) -> Any:
    """The base model with the adapter, in PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # such as of tensors that the adapter has not
        return PeftModel.from_pretrained(base, str(folder)).eval()


def by_deltas(run: Path, item: int) -> Any:
    """The base model of the run with the deltas that its method makes of the user and the item."""
    folder = RunFolder(run)
    config = folder.config()
    now = pd.DataFrame({"user_id": [USER], "item_id": [item], "timestamp": [2**62]})
    vectors = prepare(config).user_vectors(folder.vectors(), now)
    model = load_model(folder, config)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deltas = model.deltas(Samples([USER], [item], vectors))
    base = model.unpatch()
    one = {name: (delta.lora_a[0], delta.lora_b, delta.scaling) for name, delta in deltas.items()}
    cora.patch(base, list(one)).set_deltas(one)
    return base


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_peft_gives_the_same_logits(run: Run, make_base: Any, logits: Any, tmp_path: Path, family: str) -> None:
    folder = run(family)
    assert main(["export", "--run", str(folder), "--user", USER, "--item", "7", "--out", str(tmp_path / "pair")]) == 0
    assert export(folder, [USER], [], tmp_path / "user") == [tmp_path / "user"]
    frozen = logits(make_base(family))
    found = {}
    for name, item in (("pair", 7), ("user", 10**9)):  # an id that no item has: the mean
        found[name] = logits(by_peft(make_base(family), tmp_path / name))
        torch.testing.assert_close(found[name], logits(by_deltas(folder, item)), atol=2e-5, rtol=1e-4)
        assert (found[name] - frozen).abs().max() > 1e-3
    assert (found["pair"] - found["user"]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("family", "targets"), [("llama", ["q_proj", "down_proj"]), ("gpt2", ["c_attn", "attn.c_proj"])]
)
def test_fields_that_servers_read(run: Run, tmp_path: Path, family: str, targets: list[str]) -> None:
    folder = run(family)
    export(folder, [USER], ["7"], tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    expected: dict[str, Any] = dict(
        peft_type="LORA", task_type="CAUSAL_LM", r=2, lora_alpha=3, target_modules=targets, bias="none",
        fan_in_fan_out=family == "gpt2", use_rslora=False, use_dora=False, rank_pattern={}, alpha_pattern={},
        base_model_name_or_path=str(folder.parent / "base"), modules_to_save=None,
    )  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    if family == "llama":
        assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].shape == (2, 80)
        assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"].shape == (48, 2)
        assert len(tensors) == 8


def test_many_users_and_items(run: Run, make_base: Any, tmp_path: Path, capsys: Any) -> None:
    arguments = ["export", "--run", str(run("llama")), "--user", USER, "u/4", "--item", "7", "8", "--out"]
    assert main([*arguments, str(tmp_path)]) == 0
    names = [f"user-u%2F{user}-item-{item}" for user in (3, 4) for item in (7, 8)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert capsys.readouterr().out.endswith("".join(f"adapter  {tmp_path / name}\n" for name in names))
    bank = cora.load_bank(tmp_path, make_base("llama"))
    assert bank.names == tuple(names)
    export(run("llama"), ["u/4"], ["8"], tmp_path / "alone")
    deltas, alone = bank.deltas([names[3]]), cora.load_bank(tmp_path / "alone", make_base("llama")).deltas(["alone"])
    assert all(torch.equal(one[0], other[0]) for one, other in zip(deltas.values(), alone.values(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--user", "nobody"], "user: the run knows no user 'nobody'; it knows 12"),
        (["--user", USER, "--item", "99"], "item: the run knows no item '99'; it knows 30"),
        (["--user", USER, "--item", "x"], "item: expected a whole number, as the data's ids are, got 'x'"),
        (["--user", USER, USER], "user: 'u/3' is named twice"),
    ],
)
def test_ids_that_the_run_has_not(run: Run, tmp_path: Path, capsys: Any, arguments: list[str], message: str) -> None:
    out = tmp_path / "out"
    assert main(["export", "--run", str(run("llama")), *arguments, "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"cora: error: {message}\n"
    assert not out.exists()


def test_places_that_cannot_be_read_or_written(run: Run, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not the folder of a run"):
        export(tmp_path, [USER], [], tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out: expected a folder, .*file is a file"):
        export(run("llama"), [USER], [], tmp_path / "file")


def test_users_of_the_table_and_a_method_of_one_lora(run: Run, make_base: Any, tmp_path: Path) -> None:
    base = make_base("llama")
    export(run("llama", users="table"), [USER], ["7"], tmp_path / "table")
    export(run("llama"), [USER], ["7"], tmp_path / "folded")
    table, folded = (cora.load_bank(tmp_path / name, base) for name in ("table", "folded"))
    assert not torch.equal(next(table.parameters()), next(folded.parameters()))
    export(run("llama", "tallrec"), [USER, "u/4"], [], tmp_path / "tallrec")
    bank = cora.load_bank(tmp_path / "tallrec", base)
    assert bank.names == ("user-u%2F3", "user-u%2F4")
    assert all(torch.equal(one[0], one[1]) and one.any() for one in bank.parameters())


def test_runs_that_are_more_than_an_adapter(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run("llama"), copy)
    settings = yaml.safe_load((copy / "config.yaml").read_text())
    for changes, message in (
        (dict(method="collm", cora={}), "run: collm puts vectors between the tokens of a prompt"),
        (dict(cora=settings["cora"] | dict(shared_prefix=True)), "run: with shared_prefix a prompt has two adapters"),
    ):
        (copy / "config.yaml").write_text(yaml.safe_dump(settings | changes))
        with pytest.raises(ValueError, match=message):
            export(copy, [USER], [], tmp_path / "out")
    assert not (tmp_path / "out").exists()
