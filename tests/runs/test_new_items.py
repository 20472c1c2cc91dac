"""What the titles of new items say of their vectors, from the settings of a run to its scores."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cora.collaborative import CollaborativeEmbeddings
from cora.runs.folder import RunFolder
from cora.runs.score import evaluate
from cora.runs.settings import RunConfig
from cora.runs.train import train

PREDICTED = ["collaborative", "fold_in", "titles", "llm", "cora"]


@pytest.fixture(scope="module")
def changes(settings: dict[str, Any]) -> dict[str, Any]:
    cora = settings["cora"] | dict(offset=True, item_dropout=0.5)
    return settings | dict(steps=2, eval_every=2, cold_share=0.3, new_items="titles", cora=cora)


@pytest.fixture(scope="module")
def run(changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("new-items") / "run"
    train(RunConfig(**changes), out)
    return RunFolder.existing(out)


def test_titles_are_a_baseline_of_their_own(run: RunFolder) -> None:
    found = pd.read_parquet(run.predictions)
    assert [name for name in found if name in PREDICTED] == PREDICTED
    cold = found["cold_item"].to_numpy()
    assert 0 < cold.sum() < len(cold)
    assert np.array_equal(found["titles"][~cold], found["fold_in"][~cold])
    assert (found["titles"][cold] != found["fold_in"][cold]).all()
    # New items without a guess would score one user's rows alike; by their titles they differ.
    assert found[cold].groupby("user_id")["titles"].nunique().max() > 1


def test_the_model_starts_from_them_and_is_told_of_them_again(run: RunFolder) -> None:
    vectors, models = run.vectors(), CollaborativeEmbeddings.load(run.model / "embeddings.safetensors")
    items = pd.read_parquet(run.predictions)["item_id"].unique().tolist()
    assert vectors.guesses is not None and torch.equal(vectors.guessed(items), models.guessed(items))
    whole = evaluate(run.path)
    again = pd.read_parquet(run.predictions)
    assert whole["rows"] == len(again) and whole["methods"].keys() == set(PREDICTED)


def test_an_item_that_came_later_is_guessed_by_its_title(run: RunFolder, ratings: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(ratings)
    test = frame.tail(40).reset_index(drop=True)
    new = test.assign(item_id=test["item_id"] + 1000)
    for name, rows in (("old", test), ("new", new)):
        (tmp_path / name).mkdir()
        rows.to_parquet(tmp_path / name / "test.parquet", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluate(run.path, str(tmp_path / "new"), out=tmp_path / "new.parquet")
    found = pd.read_parquet(tmp_path / "new.parquet")
    assert len(found) == 40 and (found["titles"] != found["fold_in"]).all()
    # By its title alone: as the same film was guessed that was there, had it been without a vector.
    evaluate(run.path, str(tmp_path / "old"), out=tmp_path / "old.parquet")
    both = found.assign(item_id=found["item_id"] - 1000).merge(
        pd.read_parquet(tmp_path / "old.parquet"), on=["user_id", "item_id", "timestamp"], suffixes=("", "_old")
    )
    learned = run.vectors().has_items(both["item_id"].tolist()).numpy()
    # Of whoever has rated the film before, its own id leaves that rating out of the past: another vector of the user.
    alike = ~learned & np.isclose(both["fold_in"], both["fold_in_old"], atol=1e-6)
    assert alike.any() and np.allclose(both["titles"][alike], both["titles_old"][alike], atol=1e-5)


def test_guesses_in_a_file_of_vectors_are_not_those_of_another_run(
    run: RunFolder, changes: dict[str, Any], tmp_path: Path
) -> None:
    told = changes | dict(embeddings=str(run.embeddings), new_items="mean")
    train(RunConfig(**told), tmp_path / "run")
    assert run.vectors().guesses is not None and RunFolder(tmp_path / "run").vectors().guesses is None


def test_it_is_refused_for_too_few_items(changes: dict[str, Any], ratings: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(ratings)
    frame[frame["item_id"].isin(frame["item_id"].unique()[:2])].to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(ValueError, match="new_items: expected three or more that have a vector, got 2 of 2"):
        train(RunConfig(**(changes | dict(data=str(tmp_path / "few.csv"), cold_share=0.0))), tmp_path / "run")
    with pytest.raises(ValueError, match="new_items: expected one of mean, titles, got 'text'"):
        RunConfig(**(changes | dict(new_items="text")))


@pytest.mark.parametrize("method", ["tallrec", "collm"])
def test_every_method_stands_beside_the_baseline(changes: dict[str, Any], method: str, tmp_path: Path) -> None:
    slots = "<slot> <slot> " if method == "collm" else ""
    cora = dict(r=2, prompt=slots + changes["cora"]["prompt"], max_history=3)
    train(RunConfig(**(changes | dict(method=method, cora=cora))), tmp_path / "run")
    found = evaluate(tmp_path / "run", out=tmp_path / "scores.parquet")
    assert {"titles", method} <= found["methods"].keys()
    assert np.isfinite(pd.read_parquet(tmp_path / "scores.parquet")[["titles", method]]).all(axis=None)
