"""Runs that go wrong say where and why, and lose nothing; what is said on the way is short."""

import functools
import re
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from filelock import FileLock

from cora.cli import main
from cora.collaborative import CollaborativeEmbeddings
from cora.methods.model import MethodModel, MethodOutput
from cora.runs.folder import RunFolder
from cora.runs.settings import RunConfig
from cora.runs.train import train


@pytest.mark.parametrize("rate", [1e8, 1e30])
def test_a_training_that_diverges_says_so(settings: dict[str, Any], tmp_path: Path, rate: float) -> None:
    hot = settings | dict(learning_rate=rate, warmup_steps=0, steps=9)
    expected = rf"training diverged at step \d: .*\(learning_rate {re.escape(f'{rate:g}')}\); try a tenth"
    with pytest.raises(ValueError, match=expected) as raised:
        train(RunConfig(**hot), tmp_path / "run")
    assert len(str(raised.value)) < 300 + len(str(tmp_path))
    kept = re.search(r"is kept in (\S+)|there is no checkpoint yet", str(raised.value))
    assert kept and (kept[1] is None or (Path(kept[1]) / "model.safetensors").is_file())
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("step", [2, 5])
def test_a_loss_that_is_not_finite_ends_the_training(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    forward, calls = MethodModel.forward, []

    @functools.wraps(forward)
    def spoilt(self: MethodModel, *args: Any, **kwargs: Any) -> MethodOutput:
        output = forward(self, *args, **kwargs)
        if self.training:
            calls.append(1)
            output.loss = output.loss * (
                float("nan") if len(calls) == step + 1 else 1
            )  # the first call is the estimate
        return output

    monkeypatch.setattr(MethodModel, "forward", spoilt)
    best = "the best checkpoint, of AUC .* is kept in .*checkpoint-3" if step > 3 else "kept in .*|there is no"
    with pytest.raises(ValueError, match=f"training diverged at step {step}: the loss is nan .*({best})"):
        train(RunConfig(**settings), tmp_path / "run")


def test_two_processes_do_not_train_in_one_folder(settings: dict[str, Any], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    with FileLock(run.path / ".lock"):  # as another process holds it
        with pytest.raises(FileExistsError, match="out: another process trains in .*run; wait for it"):
            train(RunConfig(**settings), run.path)
    assert [file.name for file in run.path.iterdir()] == [".lock"]
    train(RunConfig(**(settings | dict(steps=1))), run.path)
    assert run.metrics.is_file()


def test_a_file_is_no_folder(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(FileExistsError, match="out: .*run is a file"):
        train(RunConfig(**settings), tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_rows_of_one_label_are_refused_before_anything_is_written(settings: dict[str, Any], tmp_path: Path) -> None:
    frame = pd.read_csv(settings["data"])
    frame.loc[320:359, "rating"] = 5
    frame.to_csv(tmp_path / "films.csv", index=False)
    with pytest.raises(ValueError, match="valid_rows: the 40 rows drawn have one label only"):
        train(RunConfig(**(settings | dict(data=str(tmp_path / "films.csv")))), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_ids_are_one_line_a_part(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    few = CollaborativeEmbeddings(list(range(12)), list(range(20)), torch.randn(12, 6), torch.randn(20, 6))
    few.save(tmp_path / "few.safetensors")
    config = RunConfig(**(settings | dict(embeddings=str(tmp_path / "few.safetensors"), users="fold-in", steps=1)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(config, tmp_path / "run")
    lines = [str(one.message) for one in caught if "unknown" in str(one.message)]
    assert [line.partition(":")[0] for line in lines] == ["train", "valid", "test"]
    shares = r"unknown user ids get the mean embedding in \d+ of \d+ rows \(\d+\.\d%\), unknown item ids in \d+ of \d+"
    assert all(re.search(shares, line) for line in lines)
    assert re.search(r"1 steps of 8 prompts and \d+ validations of 40: about [\d.]+ minutes", capsys.readouterr().out)


def test_the_estimate_changes_nothing(settings: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    """A step that is only timed leaves neither gradients nor another state of the random numbers."""
    train(RunConfig(**settings), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.json").read_text() == (finished / "metrics.json").read_text()


def test_a_run_in_use_is_one_line_of_the_command(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    given = ["--data", settings["data"], "--model", settings["model"], "--dim", "8", "--out", str(tmp_path / "run")]
    with FileLock(tmp_path / "run" / ".lock"):
        assert main(["train", *given]) == 2
    assert "cora: error: out: another process trains in" in capsys.readouterr().err
