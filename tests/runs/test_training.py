"""A run from its settings to its folder; stopped and killed runs go on to the same losses."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cora import CoRAModel
from cora.collaborative import CollaborativeEmbeddings
from cora.runs.folder import RunFolder
from cora.runs.prepare import prepare
from cora.runs.score import evaluate
from cora.runs.settings import RunConfig
from cora.runs.train import train

KILLED = """
import json, os, signal, sys
import cora.runs.fit
from cora.runs.settings import RunConfig
from cora.runs.train import train

class Killed(cora.runs.fit.FiniteTrainer):
    def training_step(self, *args, **kwargs):
        if self.state.global_step == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(*args, **kwargs)

cora.runs.fit.FiniteTrainer = Killed
train(RunConfig(**json.loads(sys.argv[1])), sys.argv[2])
"""


def losses(run: Path) -> list[tuple[int, float]]:
    history = json.loads((run / "history.json").read_text())
    return [(one["step"], one[name]) for one in history for name in ("loss", "eval_loss", "eval_auc") if name in one]


def test_folder_of_a_run(finished: Path, settings: dict[str, Any]) -> None:
    run = RunFolder.existing(finished)
    for path in (run.settings, run.metrics, run.history, run.predictions, run.picture, run.embeddings):
        assert path.is_file(), path
    assert run.picture.read_bytes().startswith(b"\x89PNG")
    assert run.config() == RunConfig(**settings)
    found = json.loads(run.metrics.read_text())
    assert (
        found["part"] == "test"
        and found["rows"] == 40
        and found["methods"].keys() == {"collaborative", "fold_in", "llm", "cora"}
    )
    for method in found["methods"].values():
        assert {"auc", "uauc", "warm_auc", "cold_auc", "log_loss"} <= method.keys() and 0 <= method["auc"] <= 1
    steps = [step for step, _ in losses(finished)]
    assert min(steps) == 0 and max(steps) == 9
    kept = CoRAModel.from_pretrained(run.model)
    assert any(parameter.any() for name, parameter in kept.named_parameters() if ".p." in name)


def test_it_learns(settings: dict[str, Any], tmp_path: Path) -> None:
    """Odd films are liked, even ones not: vectors that tell them apart tell CoRA, and nothing tells the LLM."""
    frame = pd.read_csv(settings["data"])
    frame["rating"] = np.where(frame["item_id"] % 2, 5, 2)
    frame.to_csv(tmp_path / "odd.csv")
    odd = torch.arange(30) % 2 * 2.0 - 1
    films = torch.stack([odd, -odd, odd, torch.ones(30)], 1)
    CollaborativeEmbeddings(list(range(20)), list(range(30)), torch.randn(20, 4), films).save(tmp_path / "odd")
    changes = dict(data=str(tmp_path / "odd.csv"), embeddings=str(tmp_path / "odd"), steps=60, learning_rate=0.01)
    methods = train(RunConfig(**(settings | changes | dict(eval_every=20))), tmp_path / "run")["methods"]
    assert methods["cora"]["auc"] > max(0.95, methods["llm"]["auc"])


def test_finished_run_is_not_trained_again(
    finished: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "metrics.json").stat().st_mtime_ns
    result = train(RunConfig(**settings), finished)
    assert result == json.loads((finished / "metrics.json").read_text())
    assert (finished / "metrics.json").stat().st_mtime_ns == before and "finished" in capsys.readouterr().out


@pytest.mark.parametrize(("step", "more"), [(5, {}), (7, dict(batch_size=64))], ids=["in-epoch-1", "in-epoch-2"])
def test_killed_run_goes_on_to_the_same_losses(
    finished: Path, settings: dict[str, Any], tmp_path: Path, step: int, more: dict[str, Any]
) -> None:
    settings = settings | more
    whole = finished
    if more:
        whole = tmp_path / "whole"
        train(RunConfig(**settings), whole)
    out = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, json.dumps(settings), str(out), str(step)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (out / "history.json").exists() and (out / "checkpoints" / "checkpoint-3").is_dir()
    newest = max((out / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    # A kill in the middle of writing a checkpoint leaves a folder like this one, which must not be gone on from.
    shutil.copytree(newest, out / "checkpoints" / "checkpoint-8")
    (out / "checkpoints" / "checkpoint-8" / "trainer_state.json").unlink()
    train(RunConfig(**settings), out)
    assert losses(out) == losses(whole)
    again, once = (pd.read_parquet(run / "predictions.parquet") for run in (out, whole))
    pd.testing.assert_frame_equal(again, once)


def test_time_limit_ends_training_with_a_validation(settings: dict[str, Any], tmp_path: Path) -> None:
    result = train(RunConfig(**(settings | dict(max_minutes=1e-6))), tmp_path / "run")
    assert result["steps"] == 1 and result["methods"]["cora"]["auc"] is not None
    assert (1, result["valid_auc"]) in losses(tmp_path / "run") or (0, result["valid_auc"]) in losses(tmp_path / "run")


def test_embeddings_from_a_file(settings: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = CollaborativeEmbeddings(list(range(19)), list(range(30)), torch.randn(19, 6), torch.randn(30, 6))
    given.save(tmp_path / "given.safetensors")
    with pytest.warns(UserWarning, match="unknown user ids get the mean"):
        result = train(
            RunConfig(**(settings | dict(embeddings=str(tmp_path / "given.safetensors"), steps=1))), tmp_path / "run"
        )
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):  # copies: the file itself may go
        kept = CollaborativeEmbeddings.load(folder / "embeddings.safetensors")
        assert torch.equal(kept.users, given.users) and torch.equal(kept.items, given.items)
    assert result["steps"] == 1


def test_split_folder_without_test(settings: dict[str, Any], tmp_path: Path) -> None:
    frame = pd.read_csv(settings["data"])
    (tmp_path / "data").mkdir()
    frame[:300].to_parquet(tmp_path / "data" / "train.parquet")
    frame[300:].to_parquet(tmp_path / "data" / "valid.parquet")
    result = train(RunConfig(**(settings | dict(data=str(tmp_path / "data"), steps=1))), tmp_path / "run")
    assert result["part"] == "valid" and result["rows"] == 100


@pytest.mark.parametrize("given", [False, True], ids=["vectors-trained", "vectors-given"])
def test_cold_items_have_no_vectors_and_their_own_metrics(
    settings: dict[str, Any], tmp_path: Path, given: bool
) -> None:
    changes: dict[str, Any] = dict(split="cold-items", steps=1)
    if given:
        torch.manual_seed(0)
        vectors = CollaborativeEmbeddings(list(range(20)), list(range(30)), torch.randn(20, 6), torch.randn(30, 6))
        vectors.save(tmp_path / "given.safetensors")
        changes |= dict(embeddings=str(tmp_path / "given.safetensors"), users="fold-in")
    config = RunConfig(**(settings | changes))
    splits = prepare(config).splits
    with pytest.warns(UserWarning, match="unknown item ids"):
        result = train(config, tmp_path / "run")
    assert 0 < result["cold_item_rows"] < result["rows"]
    kept = CollaborativeEmbeddings.load(tmp_path / "run" / "embeddings.safetensors")
    assert sorted(kept.item_ids) == sorted(splits.train["item_id"].unique().tolist()) and len(kept.item_ids) == 24
    for values in result["methods"].values():
        assert {"cold_items_auc", "cold_items_uauc"} <= values.keys()
    rows = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    cold = rows["cold_item"].to_numpy()
    assert np.array_equal(cold, ~rows["item_id"].isin(kept.item_ids)) and not rows["warm"][cold].any()
    # Of a cold item the vectors know nothing: all of them have one and the same score for a user of the table.
    assert rows[cold].groupby("user_id")["collaborative"].nunique().max() == 1
    with pytest.warns(UserWarning, match="unknown item ids"):
        found = evaluate(tmp_path / "run")
    assert found["methods"]["cora"] == pytest.approx(result["methods"]["cora"], abs=1e-6)


def test_cold_items_of_a_folder_already_split(settings: dict[str, Any], tmp_path: Path) -> None:
    frame = pd.read_csv(settings["data"])
    for name, part in (("train", frame[:300]), ("valid", frame[300:])):
        (tmp_path / name).mkdir()
        part.to_parquet(tmp_path / name / "0.parquet")
    parts = [prepare(RunConfig(**(settings | dict(data=str(tmp_path)) | more))).splits for more in (
        dict(cold_share=0.2), dict(split="cold-items"), dict(cold_share=0.4, split="cold-items"),
    )]  # fmt: skip
    assert [one.train["item_id"].nunique() for one in parts] == [24, 24, 18]
    assert all(one.valid["cold_item"].any() for one in parts)


def test_vectors_that_know_the_cold_items_are_told(finished: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("cold_share: null", "cold_share: 0.2"))
    with pytest.raises(ValueError, match="data: items without a training row in films have vectors in .*run"):
        evaluate(tmp_path / "run")


def test_other_settings_are_refused(finished: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(FileExistsError, match=r"out: .*other settings: learning_rate 0.0005, now 0.1"):
        train(RunConfig(**(settings | dict(learning_rate=0.1))), finished)


def test_foreign_folder_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="out: .*not empty and holds no run"):
        train(RunConfig(**settings), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("part", ["empty", "column"])
def test_bad_data_leaves_no_folder(settings: dict[str, Any], tmp_path: Path, part: str) -> None:
    frame = pd.read_csv(settings["data"])
    frame = frame[:0] if part == "empty" else frame.drop(columns="timestamp")
    frame.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(ValueError, match="no rows" if part == "empty" else "missing column timestamp"):
        train(RunConfig(**(settings | dict(data=str(tmp_path / "bad.csv")))), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_the_data_and_settings_cannot_do_leaves_no_folder(settings: dict[str, Any], tmp_path: Path) -> None:
    for change, message in (
        (dict(cora=settings["cora"] | dict(max_length=5)), "max_length: the prompt with neither history nor title has"),
        (dict(valid_rows=1), "valid_rows: the 1 rows drawn have one label only"),
    ):
        with pytest.raises(ValueError, match=message):
            train(RunConfig(**(settings | change)), tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model=""), "model: expected a name"),
        (dict(data=3), "data: expected a name"),
        (dict(steps=0), "steps: expected a whole number from 1"),
        (dict(batch_size=2.5), "batch_size: expected a whole number"),
        (dict(valid_rows=-1), "valid_rows: expected a whole number from 0"),
        (dict(learning_rate=0.0), "learning_rate: expected a positive number"),
        (dict(learning_rate="fast"), "learning_rate: expected a number"),
        (dict(max_minutes=0), "max_minutes: expected a positive number"),
        (dict(split="random"), "split: expected one of ratio, dates, leave-last"),
        (dict(cold_share=1), "cold_share: expected a number from 0 up to, not including, 1, got 1"),
        (dict(cold_share="x"), "cold_share: expected a number from 0"),
        (dict(split="cold-items", cold_share=0), "cold_share: expected more than 0 with split cold-items"),
        (dict(dtype="int8"), "dtype: expected one of auto, float32"),
        (dict(cora=["r"]), "cora: expected names with values"),
        (dict(cora=dict(rank=4)), "unknown configuration fields: rank"),
        (dict(cora=dict(r=0)), "r: expected a whole number from 1"),
        (dict(dim=2), "dim: expected a whole number from 3"),
        (dict(method="mf"), "method: expected one of cora, tallrec"),
        (dict(collaborative="svd"), "collaborative: expected one of mf"),
        (dict(method="tallrec", cora=dict(generator="mlp")), "unknown configuration fields: generator"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_settings(settings: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        RunConfig(**(settings | change))


def test_unknown_setting() -> None:
    with pytest.raises(ValueError, match="unknown settings: stepz; known are data, model"):
        RunConfig.from_dict(dict(data="a", model="b", stepz=1))


def test_rows_are_sampled_alike(settings: dict[str, Any]) -> None:
    config = RunConfig(**settings)
    splits = prepare(config).splits
    test = splits.test
    assert test is not None
    few = config.sampled(test, 7)
    pd.testing.assert_frame_equal(few, config.sampled(test, 7))
    assert len(few) == 7 and few.index.is_monotonic_increasing and config.sampled(test, 0) is test
    train_rows = splits.train
    users, items = set(train_rows["user_id"]), set(train_rows["item_id"])
    expected = [u in users and i in items for u, i in zip(test["user_id"], test["item_id"], strict=True)]
    assert np.array_equal(test["warm"], expected)


def test_with_an_offset_the_model_is_never_worse_than_its_vectors(settings: dict[str, Any], tmp_path: Path) -> None:
    """A rate that throws the model off at once: the start is kept, and scores as the vectors do, bit for bit."""
    fields = settings["cora"] | dict(offset=True)
    spoilt = settings | dict(cora=fields, learning_rate=30.0, warmup_steps=0, steps=4, eval_every=2)
    result = train(RunConfig(**spoilt), tmp_path / "run")
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    aucs = {entry["step"]: entry["eval_auc"] for entry in history if "eval_auc" in entry}
    assert max(aucs, key=lambda step: aucs[step]) == 0, aucs
    assert result["valid_auc"] == aucs[0]
    assert result["methods"]["cora"] == pytest.approx(result["methods"]["fold_in"])
    # A run that is resumed after its last checkpoint, with the start no longer in memory, ends alike.
    (tmp_path / "run" / "metrics.json").unlink()
    (tmp_path / "run" / "predictions.parquet").unlink()
    assert train(RunConfig(**spoilt), tmp_path / "run")["methods"]["cora"] == result["methods"]["cora"]
