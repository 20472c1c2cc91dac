"""LC-Rec from data to recommendations: index, train, resume, recommend, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cora.runs.next_items_train import as_text, train_next_items
from cora.runs.settings import RunConfig

RECIPE = dict(levels=2, codes=8, hidden=(8,), dim=4, steps=5)


@pytest.fixture(scope="module")
def index(ratings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cora.runs.index import index as make

    out = tmp_path_factory.mktemp("codes") / "index"
    make({"data": str(ratings), "split": "leave-last"}, "collaborative", RECIPE, out)
    return out


@pytest.fixture(scope="module")
def lcrec(settings: dict[str, Any], index: Path) -> dict[str, Any]:
    cora = dict(r=2, index=str(index), max_history=6, beam=5)
    return settings | dict(method="lcrec", split="leave-last", steps=6, eval_every=3, batch_size=4, cora=cora)


@pytest.fixture(scope="module")
def run(lcrec: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "lcrec"
    train_next_items(RunConfig(**lcrec), out)
    return out


def test_a_run_leaves_its_numbers_its_rows_and_its_model(run: Path, lcrec: dict[str, Any]) -> None:
    result = json.loads((run / "metrics.json").read_text())
    assert result["rows"] == result["users"] == 20 and result["part"] == "test" and result["steps"] == 6
    names = {"popularity", "item cosine", "Markov", "EASE", "LC-Rec"}
    for kind in ("seen removed", "seen kept"):
        assert set(result[kind]) == names
        for of in result[kind].values():
            assert 0 <= of["ndcg@10"]["low"] <= of["ndcg@10"]["value"] <= of["ndcg@10"]["high"] <= 1
            assert of["hr@1"]["value"] <= of["hr@5"]["value"] <= of["hr@10"]["value"] <= of["hr@20"]["value"]
    rows = pd.read_parquet(run / "predictions.parquet")
    hits = (rows["LC-Rec, seen removed"] <= 10).mean()
    assert hits == pytest.approx(result["seen removed"]["LC-Rec"]["hr@10"]["value"])
    assert (run / "training.png").stat().st_size > 1000 and (run / "model" / "codes.safetensors").is_file()
    assert "LC-Rec" in as_text(result) and "20 test rows of 20 users" in as_text(result)
    assert train_next_items(RunConfig(**lcrec), run) == result  # finished: nothing is done again


def test_a_killed_training_goes_on_to_the_same_weights(
    run: Path, lcrec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cora.runs import next_items_fit

    class Killed(Exception):
        pass

    calls = {"n": 0}
    validate = next_items_fit.RankingTrainer.training_step

    def dies(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == 5:
            raise Killed
        return validate(self, *args, **kwargs)

    monkeypatch.setattr(next_items_fit.RankingTrainer, "training_step", dies)
    with pytest.raises(Killed):
        train_next_items(RunConfig(**lcrec), tmp_path / "again")
    assert not (tmp_path / "again" / "metrics.json").exists()
    train_next_items(RunConfig(**lcrec), tmp_path / "again")
    assert calls["n"] == 5 + 3  # from the checkpoint of step 3 on
    both = [json.loads((one / "history.json").read_text()) for one in (run, tmp_path / "again")]
    losses = [[entry["loss"] for entry in history if "loss" in entry] for history in both]
    assert losses[0] == losses[1]
    assert (run / "metrics.json").read_text() == (tmp_path / "again" / "metrics.json").read_text()
