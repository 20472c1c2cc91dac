"""Training rows that share a beginning: of one user and day, never of the future, in batches by tokens."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cora.data import with_histories
from cora.runs.families import FamilyBatches, families, families_of_prompts, rows_of_training
from cora.runs.fit import training_arguments
from cora.runs.folder import RunFolder
from cora.runs.prepare import prepare
from cora.runs.score import evaluate
from cora.runs.settings import RunConfig
from cora.runs.train import train
from tests.runs.test_training import KILLED, losses

DAY = 86_400


@pytest.fixture(scope="session")
def shared(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Users with many films each, several a day."""
    random = np.random.default_rng(1)
    users, films = np.divmod(random.permutation(12 * 30)[:300], 30)
    times = np.sort(random.integers(0, 20 * DAY, 300))
    ratings = np.where(random.random(300) < np.where(films % 2, 0.8, 0.2), 5, 2)
    frame = pd.DataFrame({"user_id": users, "item_id": films, "rating": ratings, "timestamp": times})
    path = tmp_path_factory.mktemp("shared") / "films.csv"
    frame.assign(title=[f"film {film}" for film in films]).to_csv(path, index=False)
    method = settings["cora"] | dict(shared_prefix=True, targets_per_prompt=3)
    return RunConfig(**(settings | dict(data=str(path), cora=method, steps=6, batch_size=4)))


def test_families_are_of_one_user_and_day() -> None:
    rows = pd.DataFrame(
        {
            "user_id": [1, 1, 2, 1, 1, 1, 1, 2, 1],
            "item_id": [1, 2, 1, 3, 4, 5, 6, 2, 7],
            "timestamp": [0, 5, 5, 5, 9, 20, DAY, DAY - 1, 10],
        }
    )
    assert families(rows, rows, 8).tolist() == [0, 0, 2, 0, 0, 0, 1, 2, 0]
    found = families(rows, rows, 2)
    assert [rows.index[found == one].tolist() for one in range(5)] == [[0, 1], [3, 4], [5, 8], [6], [2, 7]]
    assert families(rows, rows, 1).tolist() != found.tolist() and len(set(families(rows, rows, 1))) == 9


def test_a_row_whose_item_comes_again_is_alone() -> None:
    rows = pd.DataFrame({"user_id": 1, "item_id": [1, 2, 3], "timestamp": [10, 20, 30]})
    known = pd.concat([rows, pd.DataFrame({"user_id": [1], "item_id": [2], "timestamp": [5]})])
    found = families(rows, known, 8)
    assert found[0] == found[2] != found[1]


def test_the_history_is_that_of_the_first(shared: RunConfig) -> None:
    prepared = prepare(shared)
    rows = with_histories(rows_of_training(prepared), prepared.splits, 3)
    train_rows = prepared.splits.train.loc[rows.index]
    liked = prepared.data.frame[prepared.data.frame["label"] == 1]
    sizes = rows.groupby(["user_id", "timestamp"]).size()
    assert sizes.max() == 3 and sizes.mean() > 1.5
    for row, own in zip(rows.itertuples(), train_rows.itertuples(), strict=True):
        assert 0 <= own.timestamp - row.timestamp < DAY and own.item_id == row.item_id and own.label == row.label
        before = liked[(liked["user_id"] == row.user_id) & (liked["timestamp"] < row.timestamp)]
        assert list(row.history) == before["item_id"].tolist()[-3:] and row.item_id not in row.history


def test_batches_hold_whole_families_by_tokens(shared: RunConfig, tmp_path: Path) -> None:
    prepared = prepare(shared)
    prompts = prepared.prompts(with_histories(rows_of_training(prepared), prepared.splits, 3), None)
    arguments = training_arguments(shared, RunFolder(tmp_path))
    assert arguments.per_device_train_batch_size == 1
    made, again = (FamilyBatches(prompts, shared, arguments, True) for _ in range(2))
    assert made.batches == again.batches and len(made) == 6
    assert FamilyBatches(prompts, replace(shared, seed=1), arguments, True).batches == made.batches, (
        "the arguments' seed"
    )
    most = 4 * -(-prompts.lengths.sum() // len(prompts))
    parts = families_of_prompts(prompts)
    of = {row: number for number, part in enumerate(parts) for row in part}
    for batch in made.batches:
        order = [of[row] for row in batch]
        prefixes = {part: prompts.prefix_lengths[parts[part][0]] for part in order}
        tokens = sum(prefixes.values()) + sum(prompts.lengths[row] - prompts.prefix_lengths[row] for row in batch)
        assert 0 < tokens <= most
    assert sum(map(len, made.batches)) > 4 * 6, "more rows than batches of as many tokens that share nothing"
    for batch in FamilyBatches(prompts, shared, arguments, False).batches:
        assert sum(prompts.lengths[row] for row in batch) <= most, "where nothing is packed, all of it counts"


def test_a_killed_run_goes_on_to_the_same_losses(shared: RunConfig, settings: dict[str, Any], tmp_path: Path) -> None:
    from dataclasses import asdict

    whole, out = tmp_path / "whole", tmp_path / "killed"
    result = train(shared, whole)
    assert result["methods"]["cora"]["auc"] is not None
    command = [sys.executable, "-c", KILLED, json.dumps(asdict(shared)), str(out), "4"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert train(shared, out)["methods"] == result["methods"]
    assert losses(out) == losses(whole)
    found = evaluate(whole)["methods"]
    assert found["cora"]["auc"] == pytest.approx(result["methods"]["cora"]["auc"], abs=1e-6)
