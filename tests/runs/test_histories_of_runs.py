"""What prompts tell of a past, and how many rows the language model is trained on, as the settings have it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cora.collaborative import most_similar
from cora.runs.families import families, rows_of_training
from cora.runs.folder import RunFolder
from cora.runs.prepare import prepare
from cora.runs.recommend import recommend
from cora.runs.score import evaluate
from cora.runs.settings import RunConfig
from cora.runs.train import train


@pytest.fixture(scope="module")
def similar(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]) -> Path:
    """A finished run whose prompts hold the two titles most similar to the one asked about."""
    out = tmp_path_factory.mktemp("similar") / "run"
    cora = settings["cora"] | {"max_history": 2}
    train(RunConfig(**settings | {"history": "similar", "llm_share": 0.25, "cora": cora}), out)
    return out


def test_prompts_hold_the_most_similar_titles_of_the_whole_past(similar: Path) -> None:
    folder = RunFolder.existing(similar)
    prepared, embeddings = prepare(folder.config()), folder.vectors()
    rows = prepared.with_histories(prepared.drawn("test", 0), embeddings)
    frame = prepared.data.frame
    recent = 0
    for row in rows.itertuples():
        past = frame[(frame["user_id"] == row.user_id) & (frame["timestamp"] < row.timestamp) & (frame["label"] == 1)]
        past = past[past["item_id"] != row.item_id].sort_values("timestamp", kind="stable")["item_id"].tolist()
        assert [row.history] == most_similar([past], [row.item_id], embeddings, 2)
        recent += row.history == past[-2:]
    assert 0 < recent < len(rows)


def test_scores_are_of_the_same_prompts_in_training_evaluation_and_recommendation(similar: Path) -> None:
    trained = json.loads((similar / "metrics.json").read_text())
    assert evaluate(similar)["methods"]["cora"]["auc"] == pytest.approx(trained["methods"]["cora"]["auc"], abs=0.03)
    prepared, embeddings = prepare(RunFolder.existing(similar).config()), RunFolder.existing(similar).vectors()
    seen = prepared.data.frame
    unseen = sorted(set(seen["item_id"]) - set(seen.loc[seen["user_id"] == 3, "item_id"]))
    rows = pd.DataFrame({"user_id": 3, "item_id": unseen, "timestamp": np.iinfo(np.int64).max})
    histories = prepared.with_histories(rows, embeddings)["history"]
    assert len(set(map(tuple, histories))) > 1
    assert len(recommend(similar, "3", top=2, candidates=4).table) == 2


def test_the_language_model_is_trained_on_its_share_and_the_table_says_so(
    similar: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig(**settings | {"llm_share": 0.25, "steps": 1000})
    prepared = prepare(config)
    rows = rows_of_training(prepared)
    assert len(rows) == round(0.25 * len(prepared.splits.train))
    assert rows.equals(rows_of_training(prepare(config)))
    assert not rows.equals(rows_of_training(prepare(replace(config, seed=config.seed + 1))))
    found = json.loads((similar / "metrics.json").read_text())["training_rows"]
    assert found["collaborative"] == len(prepared.splits.train) and 0 < found["cora"] <= len(rows)


def test_of_families_the_share_is_of_whole_families(settings: dict[str, Any]) -> None:
    cora = settings["cora"] | {"shared_prefix": True, "targets_per_prompt": 4}
    prepared = prepare(RunConfig(**settings | {"llm_share": 0.25, "steps": 1000, "cora": cora}))
    train_rows = prepared.splits.train
    family = families(train_rows, prepared.data.frame, prepared.method_config.family_size)
    chosen = np.isin(train_rows.index, rows_of_training(prepared).index)
    drawn = np.unique(family[chosen])
    assert len(drawn) == round(0.25 * (family.max() + 1)) and np.isin(family, drawn).sum() == chosen.sum()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"history": "newest"}, "history: expected one of recent, similar, got 'newest'"),
        ({"llm_share": 0}, "llm_share: expected a number above 0 and up to 1, got 0"),
        ({"llm_share": 1.5}, "llm_share: expected a number above 0 and up to 1, got 1.5"),
        ({"llm_share": "all"}, "llm_share: expected a number above 0 and up to 1, got 'all'"),
        ({"history": "similar", "cora": {"shared_prefix": True}}, "history: similar are other titles for every item"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RunConfig(**{"data": "d", "model": "m"} | wrong)
