"""What a delta changes, layer by layer, and whose deltas are alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cora.cli import main
from cora.runs.explain import Explanation, explain, save
from cora.runs.folder import RunFolder
from cora.runs.score import load_model
from cora.runs.settings import RunConfig
from cora.runs.train import train


def test_the_scores_are_those_of_the_model(finished: Path) -> None:
    found = explain(finished, "3", "7")
    assert found.title == "film 7" and len(found.history) == 3
    assert found.score_on != found.score_off
    assert found.layers["layer"].tolist() == [0, 1] and bool(found.layers["added"].any())


def test_a_layer_adds_what_the_score_loses_with_a_little_less_of_it(finished: Path, monkeypatch: Any) -> None:
    found = explain(finished, "3", "7")
    for layer, added in zip(found.layers["layer"], found.layers["added"], strict=True):
        less = []
        for share in (1.0, 1 - 1e-2):

            def loaded(*args: Any, share: float = share, layer: int = layer) -> Any:
                model = load_model(*args)
                with torch.no_grad():
                    for name, matrix in model.generator.heads.p.matrices.items():
                        matrix.mul_(share if f"/{layer}/" in name else 1.0)
                return model

            monkeypatch.setattr("cora.runs.explain.load_model", loaded)
            less.append(explain(finished, "3", "7", neighbours=0).score_on)
        assert (less[0] - less[1]) / 1e-2 == pytest.approx(added, rel=0.05, abs=1e-4)


def test_neighbours_are_other_users_the_most_alike_first(finished: Path) -> None:
    found = explain(finished, "3", "7", neighbours=5).neighbours
    assert len(found) == 5 and 3 not in found["user_id"].tolist()
    assert (np.diff(found["similarity"]) <= 0).all() and found["similarity"].between(-1, 1).all()
    everyone = explain(finished, "3", "7", neighbours=100).neighbours
    assert sorted(everyone["user_id"]) == [one for one in range(20) if one != 3]
    pd.testing.assert_frame_equal(everyone.head(5), found)


def test_a_shared_delta_has_no_neighbours(settings: dict[str, Any], tmp_path: Path) -> None:
    fields = {name: value for name, value in settings["cora"].items() if name in ("r", "prompt", "max_history")}
    train(RunConfig(**(settings | dict(method="tallrec", steps=2, cora=fields))), tmp_path / "run")
    found = explain(tmp_path / "run", "3", "7")
    assert found.neighbours.empty and len(found.layers) == 2


def test_the_command(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--run", str(finished), "--user", "3", "--item", "7", "--neighbours", "2"]) == 0
    printed = capsys.readouterr().out
    assert "film 7, for user 3" in printed and "layer   1" in printed and printed.count("  user ") == 2
    picture = RunFolder(finished).path / "explain-user-3-item-7.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_ids_of_any_text_are_drawn(tmp_path: Path) -> None:
    user, other = "$_^$/" + "u" * 300, "$\\frac$"
    layers = pd.DataFrame({"layer": [0, 1], "added": [0.5, -0.25]})
    alike = pd.DataFrame({"user_id": [user, other], "similarity": [0.5, 0.25]})
    path = save(Explanation("Film", [], 0.5, 0.25, layers, alike), tmp_path, user, "i" * 300)
    assert path.parent == tmp_path and path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "user, item, neighbours, message",
    [("x", "7", 1, "user: expected a whole number"), ("3", "y", 1, "item: expected a whole number"),
     ("3", "77", 1, "item: '77' has no title"), ("3", "7", -1, "neighbours: expected")],
)  # fmt: skip
def test_errors(finished: Path, user: str, item: str, neighbours: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explain(finished, user, item, neighbours)
