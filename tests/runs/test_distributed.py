"""Two processes, as torchrun starts them, do what one does: same losses, scores and tables, said and written once."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cora.cli import main
from cora.runs.distributed import own_share
from tests.processes import run_together
from tests.runs.test_cli import options

# Several commands of one launch: most of its time goes into imports.
COMMANDS = (
    "import json, sys\nfrom cora.cli import main\nfor one in json.loads(sys.argv[1]):\n    assert main(one) == 0\n"
)


def launched(*commands: Sequence[str]) -> str:
    """What the first of two processes prints, each having run the commands one after the other."""
    printed = run_together(COMMANDS, json.dumps(commands))
    assert printed[1:] == [""]
    return printed[0]


def history(run: Path) -> list[dict[str, Any]]:
    return list(json.loads((run / "history.json").read_text()))


def train_command(settings: dict[str, Any], out: Path, **changes: Any) -> list[str]:
    return ["train", "--out", str(out), *options(settings | changes)]


def assert_same_training(run: Path, other: Path) -> None:
    for one, two in zip(history(run), history(other), strict=True):
        named = {"step", "loss", "eval_loss", "eval_auc", "learning_rate", "grad_norm"} & set(two)
        assert {name: one[name] for name in named} == pytest.approx({name: two[name] for name in named}, rel=2e-5)
    for name, values in json.loads((other / "metrics.json").read_text())["methods"].items():
        assert json.loads((run / "metrics.json").read_text())["methods"][name] == pytest.approx(values, abs=1e-4)
    mine, its = (pd.read_parquet(one / "predictions.parquet") for one in (run, other))
    pd.testing.assert_frame_equal(mine, its, rtol=1e-3, atol=1e-4)


def test_two_processes_train_evaluate_and_recommend_as_one(settings: dict[str, Any], tmp_path: Path) -> None:
    # Which elements dropout takes depends on the shapes that it sees.
    settings = settings | dict(cora=settings["cora"] | dict(dropout=0.0, generator_dropout=0.0))
    run, found, table = tmp_path / "run", tmp_path / "found.json", tmp_path / "out.parquet"
    (tmp_path / "users").write_text("".join(f"{user}\n" for user in range(20)))
    recommend = ["recommend", "--users", str(tmp_path / "users"), "--candidates", "10"]
    printed = launched(
        train_command(settings, run, batch_size=4),
        ["evaluate", "--run", str(run), "--json", str(found)],
        [*recommend, "--run", str(run), "--out", str(table)],
    )
    assert printed.count("40 test rows scored by CoRA") == 1 and printed.count("recommendations for 20 users") == 1
    assert main(train_command(settings, tmp_path / "alone")) == 0
    assert_same_training(run, tmp_path / "alone")
    trained = json.loads((run / "metrics.json").read_text())
    for name, values in json.loads(found.read_text())["methods"].items():
        assert values == pytest.approx(trained["methods"][name], abs=1e-6)
    assert main([*recommend, "--run", str(run), "--out", str(tmp_path / "one.parquet")]) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(table), pd.read_parquet(tmp_path / "one.parquet"), rtol=1e-4)
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_every_row_is_done_once(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    for rows in (0, 1, 5, 14, 100):
        done = []
        for index in range(processes):
            monkeypatch.setenv("RANK", str(index))
            done.append(own_share(rows))
        assert np.concatenate([*map(np.array, done), []]).tolist() == list(range(rows))
        assert max(map(len, done)) - min(map(len, done)) <= 1
