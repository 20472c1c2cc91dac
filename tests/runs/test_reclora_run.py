"""A run of RecLoRA whose gate reads DIN, from its settings to its recommendations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cora.runs.folder import RunFolder
from cora.runs.prepare import prepare
from cora.runs.recommend import recommend
from cora.runs.settings import RunConfig
from cora.runs.train import train


@pytest.fixture(scope="module")
def reclora(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = {name: settings["cora"][name] for name in ("r", "prompt", "max_history")} | dict(meta_loras=3)
    out = tmp_path_factory.mktemp("runs") / "reclora"
    train(RunConfig(**(settings | dict(method="reclora", collaborative="din", cora=fields))), out)
    return out


def test_it_is_trained_and_scored_beside_its_recommender(reclora: Path) -> None:
    found = json.loads((reclora / "metrics.json").read_text())
    assert found["methods"].keys() == {"collaborative", "fold_in", "llm", "reclora"}
    scores = pd.read_parquet(reclora / "predictions.parquet")
    assert not np.allclose(scores["reclora"], scores["llm"], atol=1e-6)
    assert scores.groupby("user_id")["fold_in"].nunique().max() > 1


def test_prompt_vector_and_label_of_rows_in_another_order_stay_together(reclora: Path) -> None:
    folder = RunFolder.existing(reclora)
    prepared, embeddings = prepare(folder.config()), folder.vectors()
    rows = prepared.with_histories(prepared.drawn("test", 0), embeddings)
    order = np.random.default_rng(0).permutation(len(rows))
    turned = rows.iloc[order]
    first, other = (prepared.prompts(some, prepared.user_vectors(embeddings, some)) for some in (rows, turned))
    for place, row in enumerate(order):
        one, same = other[place], first[int(row)]
        torch.testing.assert_close(one.pop("user_vector"), same.pop("user_vector"))
        assert one == same


def test_the_recommender_ranks_every_candidate_by_its_own_vector(reclora: Path) -> None:
    folder = RunFolder.existing(reclora)
    prepared, embeddings = prepare(folder.config()), folder.vectors()
    table = recommend(reclora, "3", top=4, candidates=4).table
    seen = prepared.data.frame
    unseen = sorted(set(seen["item_id"]) - set(seen.loc[seen["user_id"] == 3, "item_id"]))
    rows = pd.DataFrame({"user_id": 3, "item_id": unseen, "timestamp": np.iinfo(np.int64).max})
    vectors = prepared.user_vectors(embeddings, rows)
    alone = embeddings.score([3] * len(rows), unseen, vectors).numpy()
    best = [unseen[row] for row in np.argsort(-alone, kind="stable")[:4]]
    assert table.sort_values("collaborative_rank")["item_id"].tolist() == best
