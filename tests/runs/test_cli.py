"""The command line: its options, its files, its errors, what it prints."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from cora.cli import main
from cora.runs.settings import RunConfig


def options(settings: dict[str, Any]) -> list[str]:
    given = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if not isinstance(value, dict)]
    for name in ("cora", "trainer"):
        given += [f"--{name}={key}={json.dumps(value)}" for key, value in settings[name].items()]
    return given


def test_train_by_options(
    finished: Path, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--out", str(tmp_path / "run"), *options(settings)]) == 0
    printed = capsys.readouterr().out
    assert "CoRA" in printed and str(tmp_path / "run" / "training.png") in printed
    assert (tmp_path / "run" / "config.yaml").read_text() == (finished / "config.yaml").read_text()
    assert (tmp_path / "run" / "metrics.json").read_text() == (finished / "metrics.json").read_text()


@pytest.mark.parametrize("write", [yaml.safe_dump, json.dumps], ids=["yaml", "json"])
def test_options_override_the_file(settings: dict[str, Any], tmp_path: Path, write: Any) -> None:
    (tmp_path / "settings").write_text(write(settings))
    given = ["--steps", "1", "--cora", "r=3"]
    assert main(["train", "--out", str(tmp_path / "run"), "--config", str(tmp_path / "settings"), *given]) == 0
    used = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert used["steps"] == 1 and used["cora"] == settings["cora"] | dict(r=3) and used["dim"] == 8


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for one in fields(RunConfig):
        assert f"--{one.name.replace('_', '-')} " in shown
        assert one.name in ("cora", "trainer") or " ".join(one.metadata["help"].split())[:40] in shown
    for command in ("evaluate", "score", "info"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "--run" in capsys.readouterr().out


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "cora.cli", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_evaluate_gives_the_metrics_of_the_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--run", str(finished), "--json", str(tmp_path / "found.json")]) == 0
    found, trained = (json.loads(path.read_text()) for path in (tmp_path / "found.json", finished / "metrics.json"))
    for name, values in trained["methods"].items():
        assert found["methods"][name] == pytest.approx(values, abs=1e-6)
    assert "40 rows" in capsys.readouterr().out


def test_evaluate_other_data(finished: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    frame = pd.read_csv(settings["data"])
    for name, part in (("train", frame[:300]), ("valid", frame[300:350]), ("test", frame[350:])):
        part.to_parquet(tmp_path / f"{name}.parquet")
    given = ["--data", str(tmp_path), "--rows", "20", "--json", str(tmp_path / "found.json")]
    assert main(["evaluate", "--run", str(finished), *given]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["rows"] == 20


def test_score_prints_titles(finished: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.read_csv(settings["data"])
    user = int(frame["user_id"].iloc[0])
    assert main(["score", "--run", str(finished), "--user", str(user), "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    liked = frame[(frame["user_id"] == user) & (frame["rating"] == 5)]["title"].tolist()[-3:]
    assert lines[-4] == f"user {user} liked {', '.join(liked)} most recently"
    shown = [line.split() for line in lines[-3:]]
    assert [line[0] for line in shown] == ["1", "2", "3"]
    probabilities = [float(line[1]) for line in shown]
    assert probabilities == sorted(probabilities, reverse=True) and 0 <= probabilities[-1]
    seen = set(frame[frame["user_id"] == user]["title"])
    assert not seen & {" ".join(line[2:4]) for line in shown}


def test_score_of_an_unknown_user(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="unknown user ids get the mean"):
        assert main(["score", "--run", str(finished), "--user", "777", "--top", "2"]) == 0
    assert "user 777 liked nothing so far" in capsys.readouterr().out


def test_info(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("torch", "chain", "movielens-100k", "smollm2-135m"))
    assert main(["info", "--run", str(finished)]) == 0
    shown = capsys.readouterr().out
    assert "batch_size: 8" in shown and "LLM alone" in shown


def test_runs_of_the_same_rows_make_one_table(
    finished: Path, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = settings | dict(method="tallrec", cora={name: settings["cora"][name] for name in ("r", "prompt")})
    assert main(["train", "--out", str(tmp_path / "run"), *options(plain | dict(steps=2))]) == 0
    shown = capsys.readouterr().out
    assert "TALLRec" in shown and "CoRA" not in shown
    assert main(["info", "--run", str(finished), str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(row for row, line in enumerate(lines) if line.split()[:2] == ["auc", "uauc"])
    labels = [line[:14].strip() for line in lines[head + 1 : head + 6]]
    assert labels == ["collaborative", "same, fold-in", "LLM alone", "CoRA", "TALLRec"]
    than = next(row for row, line in enumerate(lines) if line.startswith("than "))
    assert lines[than - 1].startswith("CoRA is better by")
    assert [line[:14].strip() for line in lines[than + 1 :]] == [one for one in labels if one != "CoRA"]
    fewer = [option for option in options(plain | dict(steps=1)) if "test-rows" not in option]
    assert main(["train", "--out", str(tmp_path / "fewer"), *fewer, "--test-rows", "20"]) == 0
    capsys.readouterr()
    assert main(["info", "--run", str(finished), str(tmp_path / "fewer")]) == 2
    assert "run: the runs scored different rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--out", "x", "--data", "nowhere", "--model", "m"], "source: expected a file"),
        (["train", "--out", "x", "--data", "d"], "model: expected a name or a path"),
        (["train", "--out", "x", "--config", "none.yaml"], "config: there is no file none.yaml"),
        (["train", "--out", "x", "--config", "list.yaml"], "config: expected names with values in list.yaml, got list"),
        (["train", "--out", "x", "--config", "bad.yaml"], "config: bad.yaml is neither YAML nor JSON"),
        (["evaluate", "--run", "nowhere"], "run: nowhere is not the folder of a run"),
        (["evaluate", "--run", "RUN", "--rows", "-1"], "rows: expected a whole number from 0"),
        (["score", "--run", "RUN", "--user", "ann"], "user: expected a whole number"),
        (["score", "--run", "RUN", "--user", "1_0"], "user: expected a whole number, as the data's ids are, got '1_0'"),
        (["score", "--run", "RUN", "--user", "9" * 25], "user: expected a whole number"),
        (["explain", "--run", "RUN", "--user", "1", "--item", "9" * 5000], "item: expected a whole number"),
        (
            ["train", "--out", "x", "--config", "values.yaml"],
            "cora: expected names with values in values.yaml, got [1]",
        ),
        (["train", "--out", "x", "--data", "d", "--model", "m", "--cora", "bogus=1"], "unknown configuration fields"),
        (["compare", "--out", "x", "--methods", "cora:r=["], "r: expected a value as YAML writes it, got '['"),
        (
            ["fit", "--out", "bad.yaml/x.safetensors", "--data", "d"],
            "out: expected a file in a folder, bad.yaml is none",
        ),
        (["score", "--run", "RUN", "--user", "1", "--top", "0"], "top, candidates: expected 1 <= top"),
        (["score", "--run", "unfinished", "--user", "1"], "run: the training in unfinished has not finished"),
    ],
    ids=lambda value: "",
)
def test_errors_are_one_line(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yaml").write_text("[1]")
    (tmp_path / "bad.yaml").write_text("{a: [")
    (tmp_path / "values.yaml").write_text("cora: [1]")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text((finished / "config.yaml").read_text())
    assert main([str(finished) if word == "RUN" else word for word in arguments]) == 2
    shown = capsys.readouterr().err
    assert f"cora: error: {message}" in shown and "Traceback" not in shown
    assert len(shown) <= 301 and shown.count("\n") == 1


def test_bad_pair(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--out", "x", "--cora", "r"])
    assert "expected NAME=VALUE, got 'r'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--out", "x", "--cora", "r=["])
    assert "r: expected a value as YAML writes it, got '['" in capsys.readouterr().err
