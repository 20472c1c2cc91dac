"""A run of RecLoRA whose gate reads DIN, from its settings to its recommendations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cora.runs.folder import RunFolder
from cora.runs.gates import collapse, samples_of, weights_of_users
from cora.runs.prepare import prepare
from cora.runs.recommend import recommend
from cora.runs.score import load_model
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


def test_its_gate_is_watched_and_drawn(reclora: Path) -> None:
    history = json.loads((reclora / "history.json").read_text())
    validations = [entry for entry in history if "eval_auc" in entry]
    assert [entry["step"] for entry in validations] == [0, 3, 6, 9]
    assert all(0 <= entry["eval_gate_entropy"] <= 1 and -1 <= entry["eval_b_cosine"] <= 1 for entry in validations)
    assert validations[0]["eval_b_cosine"] == 0 != validations[-1]["eval_b_cosine"]  # at the start every B is zero
    best = max(validations, key=lambda entry: entry["eval_auc"])
    watched = json.loads((reclora / "metrics.json").read_text())["watched"]
    assert watched == pytest.approx({name: best[f"eval_{name}"] for name in watched}) and len(watched) == 2
    assert (reclora / "gates.png").read_bytes().startswith(b"\x89PNG")


def test_the_weights_of_a_user_are_the_means_of_their_rows(reclora: Path) -> None:
    folder = RunFolder.existing(reclora)
    prepared, embeddings = prepare(folder.config()), folder.vectors()
    rows = prepared.with_histories(prepared.drawn("test", 0), None)
    samples = samples_of(prepared.prompts(rows, prepared.user_vectors(embeddings, rows)))
    model = load_model(folder, folder.config())
    found = weights_of_users(model, samples)
    every = model.gate_weights(samples)
    assert len(found) == len(every) == 4
    apart = []
    for name, one in found.items():
        assert one.index.tolist() == sorted(rows["user_id"].unique()) and one.shape[1] == 3
        for user, weights in one.iterrows():
            own = torch.tensor((rows["user_id"] == user).tolist())
            np.testing.assert_allclose(weights, every[name][own].mean(0), rtol=1e-5)
        apart.append(one.to_numpy().var(0).sum())
    assert apart == sorted(apart, reverse=True)


def test_a_collapse_is_said() -> None:
    assert collapse({}) is None and collapse({"gate_entropy": 0.98, "b_cosine": -0.1}) is None
    said = collapse({"gate_entropy": 0.9931, "b_cosine": 0.5})
    assert said == "gate_entropy is 0.993, and 1 at most: what the gate mixes is nearly one LoRA for all"


def test_prompt_vector_and_label_of_rows_in_another_order_stay_together(reclora: Path) -> None:
    folder = RunFolder.existing(reclora)
    prepared, embeddings = prepare(folder.config()), folder.vectors()
    rows = prepared.with_histories(prepared.drawn("test", 0), None)
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
