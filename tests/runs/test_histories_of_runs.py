"""What prompts tell of a past, and how many rows the language model is trained on, as the settings have it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cora.llm.loading import load_base, load_tokenizer
from cora.runs.families import families, rows_of_training
from cora.runs.folder import RunFolder
from cora.runs.prepare import prepare
from cora.runs.recommend import recommend
from cora.runs.score import evaluate
from cora.runs.settings import RunConfig
from cora.runs.similarity import directions_of
from cora.runs.train import train


@pytest.fixture(scope="module", params=["collaborative", "text", "both"])
def similar(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]) -> Path:
    """A finished run whose prompts hold the two titles most similar to the one asked about."""
    out = tmp_path_factory.mktemp("similar") / "run"
    given = {"history": "similar", "similarity": request.param, "llm_share": 0.25, "steps": 2}
    train(RunConfig(**settings | given | {"cora": settings["cora"] | {"max_history": 2}}), out)
    return out


def cosines(run: RunFolder) -> np.ndarray:
    """Of every two items 0 to 29, by the vectors that the run compares."""
    kind, found = run.config().similarity, []
    embeddings = run.vectors()
    if kind != "text":
        assert sorted(embeddings.item_ids) == list(range(30))
        found.append(embeddings.items[embeddings.lookup_items(list(range(30)))].double())
    if kind != "collaborative":
        base, tokenizer = load_base(run.config().model, dtype=torch.float32), load_tokenizer(run.config().model)
        states = []
        for item in range(30):
            ids = tokenizer(f'"film {item}"', add_special_tokens=False, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                states.append(base.base_model(ids).last_hidden_state[0].mean(0).double())
        found.append(torch.stack(states))
    else:
        assert not run.titles.exists()
    standard = [(one - one.mean(0)) / one.std(0, correction=0).where(one.std(0) > 1e-6, 1.0) for one in found]
    units = [torch.nn.functional.normalize(one) for one in standard]
    return sum(one @ one.T for one in units).numpy()


def test_prompts_hold_the_most_similar_titles_of_the_past_and_none_of_a_later_one(similar: Path) -> None:
    folder = RunFolder.existing(similar)
    prepared = prepare(folder.config())
    rows = prepared.with_histories(prepared.drawn("test", 0), directions_of(folder, folder.vectors()))
    frame, alike = prepared.data.frame, cosines(folder)
    recent = 0
    for row in rows.itertuples():
        past = frame[(frame["user_id"] == row.user_id) & (frame["timestamp"] < row.timestamp) & (frame["label"] == 1)]
        past = past[past["item_id"] != row.item_id].sort_values("timestamp", kind="stable")["item_id"].tolist()
        # An item of the past may be there twice; its later rows first.
        best = sorted(range(len(past)), key=lambda place: (-round(alike[past[place], row.item_id], 6), -place))[:2]
        assert row.history == [past[place] for place in sorted(best)]
        assert [row.history[place] for place in row.history_order] == [past[place] for place in best]
        recent += row.history == past[-2:]
    assert 0 < recent < len(rows)


def test_a_prompt_that_is_too_long_keeps_the_most_similar_titles(settings: dict[str, Any], similar: Path) -> None:
    folder = RunFolder.existing(similar)
    directions = directions_of(folder, folder.vectors())
    # A title is three tokens with its quotes, the template with none some fifteen.
    cora = settings["cora"] | {"max_history": 100, "max_length": 26}
    prepared = prepare(replace(folder.config(), cora=cora))
    rows = prepared.with_histories(prepared.drawn("test", 0), directions)
    with pytest.warns(UserWarning, match="tokens: their least similar titles are left out"):
        prompts = prepared.prompts(rows, None)
    seen = set()
    for place, row in enumerate(rows.itertuples()):
        text = prepared.tokenizer.decode(prompts[place]["input_ids"])
        told = [int(one) for one in re.findall(r"film (\d+)", text.partition("Asked")[0])]
        assert told == [row.history[one] for one in sorted(row.history_order[: len(told)])]
        assert len(prompts[place]["input_ids"]) <= 26
        seen.add(len(told) < len(row.history))
    assert seen == {True, False}


def test_scores_are_of_the_same_prompts_in_training_evaluation_and_recommendation(similar: Path) -> None:
    trained = json.loads((similar / "metrics.json").read_text())
    assert evaluate(similar)["methods"]["cora"]["auc"] == pytest.approx(trained["methods"]["cora"]["auc"], abs=0.03)
    folder = RunFolder.existing(similar)
    prepared, directions = prepare(folder.config()), directions_of(folder, folder.vectors())
    seen = prepared.data.frame
    unseen = sorted(set(seen["item_id"]) - set(seen.loc[seen["user_id"] == 3, "item_id"]))
    rows = pd.DataFrame({"user_id": 3, "item_id": unseen, "timestamp": np.iinfo(np.int64).max})
    histories = prepared.with_histories(rows, directions)["history"]
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
        ({"similarity": "text"}, "similarity: text needs history similar, got history recent"),
        ({"history": "similar", "similarity": "title"}, "similarity: expected one of collaborative, text, both, got"),
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
