"""A finished run scores other data: a whole split, or a test part alone, whose past is then the run's own data."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cora.collaborative import items_without_own_rating
from cora.runs.folder import RunFolder
from cora.runs.prepare import prepare_scored
from cora.runs.score import evaluate
from cora.runs.settings import RunConfig
from cora.runs.train import train


@pytest.fixture(scope="module")
def parts(ratings: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    frame = pd.read_csv(ratings)
    return {"train": frame[:300], "valid": frame[300:350], "test": frame[350:]}


def written(folder: Path, parts: dict[str, pd.DataFrame]) -> Path:
    folder.mkdir()
    for name, frame in parts.items():
        frame.to_parquet(folder / f"{name}.parquet", index=False)
    return folder


@pytest.fixture(scope="module")
def run(settings: dict[str, Any], parts: dict[str, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    data = written(folder / "data", {name: parts[name] for name in ("train", "valid")})
    train(RunConfig(**(settings | dict(data=str(data), steps=4, eval_every=2))), folder / "run")
    return folder / "run"


def test_a_test_part_alone_is_scored_as_within_its_split(
    run: Path, parts: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    whole = evaluate(run, str(written(tmp_path / "whole", parts)))
    assert whole["part"] == "test" and whole["rows"] == 50
    alone = written(tmp_path / "alone", {"test": parts["test"]})
    assert evaluate(run, str(alone)) == whole
    assert evaluate(run, str(alone / "test.parquet")) == whole
    # What the users did before counts: with other labels in the past the vectors and the scores are others.
    other = parts["train"].assign(rating=np.where(parts["train"]["rating"] > 3, 2, 5))
    turned = evaluate(run, str(written(tmp_path / "turned", parts | {"train": other})))
    assert turned["methods"]["fold_in"]["auc"] != whole["methods"]["fold_in"]["auc"]


def test_training_rows_are_scored_without_their_own_ratings(run: Path) -> None:
    folder = RunFolder.existing(run)
    prepared, vectors = prepare_scored(folder.config()), folder.vectors()
    rows = prepared.splits.train
    users = prepared.user_vectors(vectors, rows)
    items = items_without_own_rating(vectors, rows, rows)
    found = evaluate(run, part="train")
    auc = [
        roc_auc_score(rows["label"], vectors.score(rows["user_id"], rows["item_id"], users, one))
        for one in (None, items)
    ]
    assert auc[0] > auc[1] == pytest.approx(found["methods"]["fold_in"]["auc"], abs=1e-9)
    assert evaluate(run, str(run.parent / "data"), part="train") == found


def test_rows_that_the_vectors_have_not_seen_are_scored_as_they_are(
    run: Path, parts: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    # As another's train part the run's own test rows have the vectors of the tables, as they have in the test part.
    swapped = {"train": parts["test"], "valid": parts["valid"], "test": parts["train"]}
    found = evaluate(run, str(written(tmp_path / "swapped", swapped)), part="train")
    alone = evaluate(run, str(written(tmp_path / "alone", {"test": parts["test"]})))
    for name in ("collaborative", "fold_in"):
        assert found["methods"][name]["auc"] == alone["methods"][name]["auc"]


def test_data_without_a_split_is_split_as_the_run_says(run: Path, ratings: Path) -> None:
    assert evaluate(run, str(ratings))["rows"] == 40


def test_errors(run: Path, parts: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    alone = written(tmp_path / "alone", {"test": parts["test"]})
    with pytest.raises(ValueError, match="a split folder needs train and valid, found"):
        train(RunConfig(**{"data": str(alone), "model": "x"}), tmp_path / "run")
    named = parts["test"].assign(user_id="u" + parts["test"]["user_id"].astype(str))
    with pytest.raises(ValueError, match="data: user_id is text in named, but whole numbers in data"):
        evaluate(run, str(written(tmp_path / "named", {"test": named})))


def test_cold_items_of_a_test_part_alone_are_those_of_the_run(
    settings: dict[str, Any], parts: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    data = written(tmp_path / "data", {name: parts[name] for name in ("train", "valid")})
    changes = dict(data=str(data), steps=1, cold_share=0.3)
    result = train(RunConfig(**(settings | changes)), tmp_path / "run")
    whole = evaluate(tmp_path / "run", str(written(tmp_path / "whole", parts)))
    assert 0 < whole["cold_item_rows"] < whole["rows"] and 0 < result["cold_item_rows"] < result["rows"]
    assert evaluate(tmp_path / "run", str(written(tmp_path / "alone", {"test": parts["test"]}))) == whole
