"""LC-Rec from data to recommendations: index, train, resume, recommend, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cora.cli import main
from cora.codes import ItemCodes
from cora.codes.assign import random_codes
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
    names = {"popularity", "item cosine", "Markov", "EASE", "GRU4Rec", "SASRec", "LC-Rec"}
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


def test_recommendations_are_unseen_items_the_whole_catalogue_through(
    run: Path, ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users, out = tmp_path / "users.txt", tmp_path / "best.parquet"
    users.write_text("7\n3\n99\n")
    command = ["recommend", "--run", str(run), "--users", str(users), "--out", str(out), "--top", "30"]
    assert main([*command, "--candidates", "30"]) == 0
    table, frame = pd.read_parquet(out), pd.read_csv(ratings)
    assert list(table.columns) == ["user_id", "rank", "item_id", "title", "probability"]
    for user in (7, 3, 99):
        own = table[table["user_id"] == user]
        seen = set(frame.loc[frame["user_id"] == user, "item_id"])
        assert set(own["item_id"]) == set(frame["item_id"]) - seen and list(own["rank"]) == list(range(1, len(own) + 1))
        assert (np.diff(own["probability"]) <= 0).all() and own["probability"].sum() <= 1 + 1e-6
        assert list(own["title"]) == [f"film {item}" for item in own["item_id"]]
    assert table.loc[table["user_id"] == 99, "probability"].sum() == pytest.approx(1, abs=1e-4)
    assert main([*command, "--candidates", "30"]) == 0 and "finished" in capsys.readouterr().out
    assert main(["score", "--run", str(run), "--user", "7", "--top", "3"]) == 0
    said = capsys.readouterr().out
    assert "user 7 liked" in said and "(candidate" not in said and said.count("film ") >= 3


def test_what_scores_users_and_items_is_refused_in_one_line(
    run: Path, settings: dict[str, Any], ratings: Path, base_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    expected = "method: expected one that scores users and items, got lcrec, whose task is the next item"
    for command in (["evaluate"], ["explain", "--user", "7", "--item", "4"], ["export", "--user", "7", "--out", "x"]):
        assert main([command[0], "--run", str(run), *command[1:]]) == 2
        assert expected in capsys.readouterr().err
    given = ["--data", str(ratings), "--model", str(base_folder), "--out", str(tmp_path / "all")]
    assert main(["compare", "--methods", "tallrec", "lcrec", *given]) == 2
    assert "methods: expected methods that score users and items, got lcrec" in capsys.readouterr().err
    assert not (tmp_path / "all").exists()


def test_info_prints_the_tables(run: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--run", str(run)]) == 0
    said = capsys.readouterr().out
    assert "seen items removed" in said and "seen items kept" in said and "EASE" in said
    assert main(["info", "--run", str(run), str(finished)]) == 2
    assert "run: expected runs that all score users and items" in capsys.readouterr().err


def test_with_a_generator_for_each_user_and_codes_made_by_the_run(
    lcrec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cora.runs import next_items

    short = next_items.Recipe(**RECIPE)  # type: ignore[arg-type]
    monkeypatch.setattr(next_items, "Recipe", lambda: short)
    cora = dict(r=2, max_history=3, beam=5, generator="mlp", user_rank=2, tasks=["seqrec"], targets="response")
    result = train_next_items(RunConfig(**lcrec | dict(cora=cora, steps=2, eval_every=1)), tmp_path / "run")
    assert result["steps"] == 2 and "LC-Rec" in result["seen kept"]
    assert len(ItemCodes.load(tmp_path / "run" / "index").item_ids) == 30
    assert (tmp_path / "run" / "model" / "embeddings.safetensors").is_file()


def test_time_splits_are_ranked_too(lcrec: dict[str, Any], tmp_path: Path) -> None:
    by_time = lcrec | dict(split="ratio", steps=1, eval_every=1)
    with pytest.raises(ValueError, match="index: the codes are made of .* split 'leave-last 1', the run's is 'ratio'"):
        train_next_items(RunConfig(**by_time), tmp_path / "run")
    ItemCodes(list(range(30)), random_codes(30, 2, 8, seed=0), 8).save(tmp_path / "random")
    cora = lcrec["cora"] | dict(index=str(tmp_path / "random"))
    result = train_next_items(RunConfig(**by_time | dict(cora=cora)), tmp_path / "run")
    assert result["rows"] == 40 and result["users"] < 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(index="nowhere"), "nowhere/index.json: there is no such file"),
        (dict(answer=[" Yes", " No"]), "unknown configuration fields: answer"),
        (dict(tasks=["chat"]), "tasks: expected one of seqrec"),
        (dict(max_history=60), "max_history: 60 items are up to .* tokens, the language model has 128 positions"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    lcrec: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_next_items(RunConfig(**lcrec | dict(cora=lcrec["cora"] | change)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_codes_of_other_items_are_refused(lcrec: dict[str, Any], tmp_path: Path) -> None:
    ItemCodes(list(range(100, 130)), ItemCodes.load(lcrec["cora"]["index"]).codes, 8).save(tmp_path / "other")
    cora = lcrec["cora"] | dict(index=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="index: 30 items of the data have no code, for example .*other data"):
        train_next_items(RunConfig(**lcrec | dict(cora=cora)), tmp_path / "run")


def test_index_from_the_command_line(
    ratings: Path, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ["--recipe", "codes=6", "--recipe", "levels=2", "--recipe", "steps=3"]
    command = ["index", "--data", str(ratings), "--dtype", "float32", *recipe]
    made = {}
    for kind in ("text", "collaborative", "both", "random"):
        out = tmp_path / kind
        assert main([*command, "--vectors", kind, "--model", str(base_folder), "--out", str(out)]) == 0
        assert sorted(one.name for one in out.iterdir()) == ["codes.png", "codes.safetensors", "index.json"]
        made[kind] = ItemCodes.load(out)
        assert made[kind].about["vectors"] == kind and made[kind].about["report"]["collisions_after"] == 0
        assert "30 items, 2 levels of 6 codes" in capsys.readouterr().out
        assert main([*command, "--vectors", kind, "--model", str(base_folder), "--out", str(out)]) == 2
        assert "exists and is no empty folder" in capsys.readouterr().err
        again = tmp_path / f"{kind} again"
        assert main([*command, "--vectors", kind, "--model", str(base_folder), "--out", str(again)]) == 0
        assert torch.equal(ItemCodes.load(again).codes, made[kind].codes)
        capsys.readouterr()
    assert main([*command, "--vectors", "text", "--out", str(tmp_path / "none")]) == 2
    assert "model: expected the name of a language model" in capsys.readouterr().err
    assert main([*command, "--recipe", "depth=3", "--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()


def test_codes_see_training_rows_alone(ratings: Path, tmp_path: Path) -> None:
    """The last rows of every user, whatever they are, change nothing of what is made of who did what."""
    from cora.runs.index import index as make

    frame = pd.read_csv(ratings)
    late = frame.groupby("user_id").cumcount(ascending=False) < 2
    changed = frame.copy()
    changed.loc[late, "item_id"] = changed.loc[late, "item_id"].to_numpy()[::-1]
    changed["title"] = [f"film {item}" for item in changed["item_id"]]
    made = []
    for name, one in (("as it is", frame), ("changed", changed)):
        one.to_csv(tmp_path / f"{name}.csv", index=False)
        settings = {"data": str(tmp_path / f"{name}.csv"), "split": "leave-last"}
        made.append(make(settings, "collaborative", RECIPE, tmp_path / name).codes)
    assert torch.equal(*made)


def test_baselines_are_ranked_in_parts_once_and_left_out_where_items_are_too_many(
    run: Path,
    lcrec: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cora.runs import next_items, next_items_baselines
    from cora.runs.folder import RunFolder

    finished = RunFolder(run)
    prepared = next_items.prepare_next_items(RunConfig(**lcrec), finished)
    events = prepared.targets("test", 0)
    monkeypatch.setattr(next_items, "_TOGETHER", 7)
    parts = next_items_baselines.baseline_ranks(RunFolder(tmp_path / "parts"), prepared, events)
    monkeypatch.setattr(next_items_baselines, "BASELINES", {})  # what the run has made is not made again
    monkeypatch.setattr(next_items_baselines, "READERS", {})
    whole = next_items_baselines.baseline_ranks(finished, prepared, events)
    assert set(parts) == set(whole) == {"removed", "kept"} and list(parts["kept"]) == list(whole["kept"])
    assert all((whole[kind][name] == parts[kind][name]).all() for kind in whole for name in whole[kind])
    monkeypatch.undo()
    monkeypatch.setattr(next_items_baselines, "_LARGEST", 29)
    few = next_items_baselines.baseline_ranks(RunFolder(tmp_path / "few"), prepared, events)
    assert set(few["kept"]) == {"popularity"}
    said = capsys.readouterr().out
    assert "EASE is left out: 30 items are too many for it (from 30)" in said and "SASRec is left out" in said
