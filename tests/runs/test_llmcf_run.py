"""LLM-CF from the command line: thoughts, training, comparison, evaluation, recommendation, export; no prompts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cora.cli import main

_OWN = ["--cora", "width=8", "--cora", "hidden=[16,8]", "--cora", "max_history=5", "--cora", "epochs=2",
        "--cora", "batch_size=32", "--dim", "8"]  # fmt: skip


@pytest.fixture(scope="module")
def thoughts(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("thoughts") / "made"
    given = ["--data", settings["data"], "--model", settings["model"], "--dtype", "float32", "--cot", "template"]
    assert main(["thoughts", "--rows", "60", "--out", str(out), *given]) == 0
    return out


@pytest.fixture(scope="module")
def run(settings: dict[str, Any], thoughts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("llmcf") / "run"
    chosen = ["--backbone", "deepfm", "--thoughts", str(thoughts), "--cot", "template"]
    given = ["--method", "llmcf", "--data", settings["data"], *chosen, *_OWN]
    assert main(["train", "--out", str(out), *given]) == 0
    return out


def test_the_folder_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((run / "metrics.json").read_text())
    assert list(result["methods"]) == ["collaborative", "fold_in", "llmcf"] and result["rows"] == 40
    assert result["methods"]["llmcf"]["auc"] > 0.6
    history = json.loads((run / "history.json").read_text())
    assert result["valid_auc"] == max(entry["eval_auc"] for entry in history)
    assert (run / "training.png").stat().st_size > 5000
    assert main(["info", "--run", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "backbone: deepfm" in shown and "LLM-CF" in shown


def test_it_is_evaluated_to_the_same_scores(run: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.parquet"
    assert main(["evaluate", "--run", str(run), "--scores", str(scores)]) == 0
    trained, found = pd.read_parquet(run / "predictions.parquet"), pd.read_parquet(scores)
    pd.testing.assert_frame_equal(trained, found)
    assert main(["evaluate", "--run", str(run), "--part", "train", "--rows", "30", "--scores", str(scores)]) == 0
    assert len(pd.read_parquet(scores)) == 30


def test_a_part_of_other_data(run: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    frame = pd.read_csv(settings["data"])
    frame[-30:].to_parquet(tmp_path / "test.parquet")
    assert main(["evaluate", "--run", str(run), "--data", str(tmp_path / "test.parquet")]) == 0


def test_it_recommends(run: Path, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    user = str(pd.read_csv(settings["data"])["user_id"].iloc[0])
    assert main(["score", "--run", str(run), "--user", user, "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    probabilities = [float(line.split()[1]) for line in lines[-3:]]
    assert probabilities == sorted(probabilities, reverse=True)
    (tmp_path / "users.txt").write_text(user)
    given = ["--users", str(tmp_path / "users.txt"), "--out", str(tmp_path / "table.parquet"), "--top", "3"]
    assert main(["recommend", "--run", str(run), *given]) == 0
    found = pd.read_parquet(tmp_path / "table.parquet")["probability"]
    np.testing.assert_allclose(found, probabilities, atol=5e-4)


def test_it_is_exported_without_a_language_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "model.pt2")]) == 0
    program = torch.export.load(tmp_path / "model.pt2").module()
    whole, past = torch.ones(3, dtype=torch.int64), torch.zeros(3, 5)
    assert program(whole, whole, past.long(), past, torch.zeros(3, 4).long(), torch.zeros(3, 4)).shape == (3,)
    for out, more, message in (
        ("model.txt", [], "out: expected a file NAME.pt2"),
        ("x", ["--user", "1"], "run: llmcf has no adapters; without a user the model itself is exported"),
    ):
        assert main(["export", "--run", str(run), "--out", str(tmp_path / out), *more]) == 2
        assert message in capsys.readouterr().err


def test_what_needs_a_language_model_says_so(run: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--run", str(run), "--user", "1", "--item", "1"]) == 2
    assert "run: llmcf has no language model and no prompts" in capsys.readouterr().err
    assert main(["export", "--run", str(finished), "--out", "x.pt2"]) == 2
    assert "user: needed, a run of cora is exported as adapters" in capsys.readouterr().err


def test_only_a_run_with_the_same_language_model_writes(
    run: Path, finished: Path, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["thoughts", "--rows", "5", "--data", settings["data"], "--out", str(tmp_path / "x")]
    for folder, model, message in (
        (run, settings["model"], "run: llmcf has no language model that could write"),
        (finished, "other", "run: its language model is"),
        (tmp_path, "other", f"run: {tmp_path} is not the folder of a run"),
    ):
        assert main([*given, "--model", model, "--run", str(folder)]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_it_is_compared(
    thoughts: Path, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["llmcf:feature=none", "llmcf:feature=knn", "llmcf:cot=template,backbone=dcnv2"]
    given = ["--data", settings["data"], "--thoughts", str(thoughts), *_OWN]
    assert main(["compare", "--out", str(tmp_path), "--methods", *methods, "--seeds", "0", "1", *given]) == 0
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["reference"] == "LLM-CF, feature=none" and len(found["methods"]) == 5
    assert "LLM-CF, feature=knn" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "message"), [
    (["--backbone", "dnn"], "backbone: expected one of deepfm, xdeepfm"),
    (["--thoughts", "nowhere"], "thoughts: nowhere is no folder of `cora thoughts`"),
    ([], "cot: "),
])  # fmt: skip
def test_errors(
    thoughts: Path, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str],
    message: str,
) -> None:  # fmt: skip
    given = ["--method", "llmcf", "--data", settings["data"], "--thoughts", str(thoughts), *_OWN, *more]
    assert main(["train", "--out", str(tmp_path / "run"), *given]) == 2
    shown = capsys.readouterr().err
    assert f"cora: error: {message}" in shown and len(shown.splitlines()[-1]) <= 301
