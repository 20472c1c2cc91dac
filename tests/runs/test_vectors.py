"""cora fit: a file of vectors that cora train, evaluate and score take, judged on the validation rows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cora.cli import main
from cora.collaborative import CollaborativeEmbeddings
from cora.runs.settings import RunConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*unknown .* ids get the mean embedding")


def fit(settings: dict[str, Any], out: Path, *more: str) -> int:
    return main(["fit", "--data", settings["data"], "--dim", "6", "--out", str(out), *more])


@pytest.mark.parametrize(("name", "encoder"), [("svd-logistic", "fold-in"), ("sasrec", "sasrec")])
def test_a_file_that_a_run_takes(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, encoder: str
) -> None:
    out = tmp_path / "vectors.safetensors"
    assert fit(settings, out, "--collaborative", name) == 0
    shown = capsys.readouterr().out
    assert "collaborative" in shown and "same, fold-in" in shown and "40 rows" in shown and str(out) in shown
    assert CollaborativeEmbeddings.load(out).user_encoder == encoder
    run = tmp_path / "run"
    given = settings | dict(embeddings=str(out), steps=2)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(given))
    assert main(["train", "--config", str(tmp_path / "settings.yaml"), "--out", str(run)]) == 0
    trained = json.loads((run / "metrics.json").read_text())["methods"]
    assert {"collaborative", "fold_in", "cora"} <= trained.keys()
    assert main(["evaluate", "--run", str(run), "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())["methods"]
    assert found["fold_in"] == pytest.approx(trained["fold_in"], abs=1e-6)
    assert found["cora"] == pytest.approx(trained["cora"], abs=1e-6)


def test_the_same_command_writes_the_same_file(settings: dict[str, Any], tmp_path: Path) -> None:
    first, again = tmp_path / "first.safetensors", tmp_path / "again.safetensors"
    for out in (first, again):
        assert fit(settings, out, "--collaborative", "sasrec", "--seed", "3") == 0
    assert first.read_bytes() == again.read_bytes()


def test_vectors_of_no_known_origin_keep_their_table(settings: dict[str, Any]) -> None:
    tables = torch.ones(1, 3), torch.ones(1, 3)
    foreign, folded = (CollaborativeEmbeddings([1], [1], *tables, name) for name in (None, "fold-in"))
    config = RunConfig(**settings | dict(embeddings="file"))
    assert not config.encodes_users(foreign) and config.encodes_users(folded)
    assert RunConfig(**settings).encodes_users(foreign)
    assert not RunConfig(**settings | dict(users="table")).encodes_users(folded)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--out", "vectors.npz"], "out: expected a file NAME.safetensors, got 'vectors.npz'"),
        (["--collaborative", "magic"], "collaborative: expected one of mf, "),
        (["--dim", "2"], "dim: expected a whole number from 3, got 2"),
        (["--data", "nowhere"], "source: expected a file"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(settings, tmp_path / "vectors.safetensors", *more) == 2
    assert f"cora: error: {message}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
