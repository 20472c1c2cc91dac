"""Methods compared on the same rows, and how sure their differences are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cora.cli import main
from cora.runs.compare import Contestant, _summary, as_table, compare
from cora.runs.intervals import UserAUCs, differences
from cora.runs.metrics import metrics

METHODS = ["cora:offset=true", "cora", "tallrec:r=2"]


@pytest.fixture
def scored() -> pd.DataFrame:
    random = np.random.default_rng(0)
    users, labels = random.integers(0, 40, 900), random.integers(0, 2, 900)
    scores = np.round(random.normal(size=900) + labels, 1)  # many equal ones
    return pd.DataFrame({"user_id": users, "label": labels, "score": scores})


def aucs(frame: pd.DataFrame, scores: Any = None) -> UserAUCs:
    return UserAUCs(
        frame["user_id"], frame["label"].to_numpy(), np.asarray(frame["score"] if scores is None else scores)
    )


def test_aucs_are_those_of_the_metrics(scored: pd.DataFrame) -> None:
    found, expected = aucs(scored), metrics(scored, scored["score"].to_numpy())
    ones = np.ones(len(found.users))
    assert (found.auc(ones), found.uauc(ones)) == pytest.approx((expected["auc"], expected["uauc"]), abs=1e-12)


def test_a_weight_is_a_copy_of_the_rows(scored: pd.DataFrame) -> None:
    found = aucs(scored)
    weights = np.random.default_rng(1).integers(0, 4, len(found.users))
    rows = scored.loc[scored.index.repeat(weights[np.searchsorted(found.users, scored["user_id"])])]
    assert found.auc(weights.astype(float)) == pytest.approx(roc_auc_score(rows["label"], rows["score"]), abs=1e-12)
    own = metrics(scored, scored["score"].to_numpy())["uauc"]
    assert own is not None and found.uauc(2.0 * np.ones(len(weights))) == pytest.approx(own, abs=1e-12)


def test_an_interval_holds_what_it_should(scored: pd.DataFrame) -> None:
    noise = np.random.default_rng(2).normal(size=len(scored))
    same, worse = aucs(scored), aucs(scored, scored["score"] + 2 * noise)
    for one in differences([same], [aucs(scored)]).values():
        assert one == (0, 0, 0)
    for one in differences([same], [worse]).values():
        assert 0 < one.low < one.difference < one.high
    assert differences([same], [worse]) == differences([same], [worse])
    close = differences([same], [aucs(scored, scored["score"] + 0.2 * noise)])["auc"]
    assert close.low < 0 < close.high or close.difference > 0


def test_users_of_one_label_count_nowhere_in_the_uauc() -> None:
    frame = pd.DataFrame({"user_id": ["a", "a", "b", "b"], "label": [1, 0, 1, 1], "score": [2.0, 1.0, 0.0, 5.0]})
    found = aucs(frame)
    assert found.uauc(np.array([1.0, 3.0])) == 1 and np.isnan(found.uauc(np.array([0.0, 1.0])))
    assert np.isnan(found.auc(np.array([0.0, 1.0])))


def test_compare(settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = settings | dict(steps=4, eval_every=2, valid_rows=20)
    found = compare(given, METHODS, [0, 1], tmp_path)
    assert found == json.loads((tmp_path / "comparison.json").read_text())
    assert list(found["methods"])[:3] == ["collaborative", "same, fold-in", "LLM alone"]
    first = found["methods"][found["reference"]]
    assert found["reference"] == "CoRA, offset=True" and first["less_than_reference"] is None
    for seed in (0, 1):
        for folder in ("cora-offset=True", "cora", "tallrec-r=2"):
            assert (tmp_path / f"{folder}-seed{seed}" / "metrics.json").is_file()
    single = [json.loads((tmp_path / f"cora-seed{seed}" / "metrics.json").read_text()) for seed in (0, 1)]
    values = [one["methods"]["cora"]["auc"] for one in single]
    assert found["methods"]["CoRA"]["mean"]["auc"] == pytest.approx(np.mean(values))
    assert found["methods"]["CoRA"]["sd"]["auc"] == pytest.approx(np.std(values, ddof=1))
    gap, low, high = found["methods"]["CoRA"]["less_than_reference"]["auc"]
    assert gap == pytest.approx(first["mean"]["auc"] - np.mean(values)) and low <= gap <= high
    # Nothing is trained a second time, and the command prints the same.
    capsys.readouterr()
    options = ["--config", str(tmp_path / "settings.json"), "--out", str(tmp_path), "--seeds", "0", "1"]
    (tmp_path / "settings.json").write_text(json.dumps(given))
    assert main(["compare", "--methods", *METHODS, *options]) == 0
    printed = capsys.readouterr().out
    assert "steps of" not in printed and "CoRA, offset=True is better by" in printed


@pytest.mark.parametrize(
    "methods, seeds, cora, message",
    [
        ([], [0], {}, "methods: expected at least one"),
        (["cora", "cora"], [0], {}, "methods: expected at least one and each once"),
        (["cora"], [0, 0], {}, "seeds: expected at least one and each once"),
        (["magic"], [0], {}, "method: expected one of"),
        (["cora:offset"], [0], {}, "expected METHOD or METHOD:NAME=VALUE"),
        (["tallrec"], [0], {"generator": "mlp"}, "cora: none of the methods has generator"),
        (["tallrec:generator=mlp"], [0], {}, "unknown configuration fields: generator"),
    ],
)
def test_errors(
    settings: dict[str, Any], tmp_path: Path, methods: list[str], seeds: list[int], cora: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(settings | {"cora": cora}, methods, seeds, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_and_folders() -> None:
    one = Contestant.parse("cora:offset=true,prompt=a/b")
    assert (one.label, one.folder) == ("CoRA, offset=True, prompt=a/b", "cora-offset=True-prompt=a_b")
    assert Contestant.parse("cora:layers=[1,2],r=8").fields == {"layers": [1, 2], "r": 8}


def test_a_method_may_have_histories_of_its_own(settings: dict[str, Any]) -> None:
    given = settings | {"history": "recent"}
    config = Contestant.parse("tallrec:history=similar,similarity=text,r=3").config(given, 0)
    assert (config.history, config.similarity, config.cora["r"]) == ("similar", "text", 3)
    assert "history" not in config.cora and Contestant.parse("tallrec").config(given, 0).history == "recent"
    with pytest.raises(ValueError, match="history: expected one of recent, similar, got 'old'"):
        Contestant.parse("tallrec:history=old").config(given, 0)


def test_cold_items_have_a_table_of_their_own(settings: dict[str, Any], tmp_path: Path) -> None:
    given = settings | dict(steps=2, eval_every=2, valid_rows=20, split="cold-items", cold_share=0.3)
    found = compare(given, ["cora", "tallrec"], [0], tmp_path)
    run = pd.read_parquet(tmp_path / "cora-seed0" / "predictions.parquet")
    cold = run[run["cold_item"]]
    assert 0 < len(cold) < len(run)
    for label, column in (("CoRA", "cora"), ("same, fold-in", "fold_in")):
        mean = found["methods"][label]["mean"]["cold_items_auc"]
        assert mean == pytest.approx(roc_auc_score(cold["label"], cold[column]))
    lead = found["methods"]["same, fold-in"]["less_than_reference"]["cold_items_auc"]
    assert lead[0] == pytest.approx(
        roc_auc_score(cold["label"], cold["cora"]) - roc_auc_score(cold["label"], cold["fold_in"])
    )
    assert as_table(found).count("CoRA is better by") == 2 and "without a training row" in as_table(found)


@pytest.mark.parametrize("seeds", [1, 2])
def test_what_the_rows_do_not_tell_is_none(seeds: int) -> None:
    rows = pd.DataFrame({"user_id": [1, 2, 3, 4], "label": [0, 1, 0, 1], "warm": True, "cold_item": False})
    scored = {"CoRA": [0.1, 0.4, 0.2, 0.3], "other": [0.4, 0.1, 0.2, 0.3]}
    found = _summary({name: [rows.assign(score=one)] * seeds for name, one in scored.items()}, "CoRA")
    lead = found["methods"]["other"]["less_than_reference"]
    assert lead["auc"][0] == pytest.approx(0.75) and None not in lead["auc"]
    for name in ("uauc", "cold_items_auc", "cold_items_uauc"):  # no user has both labels, no row is of a cold item
        assert lead[name] == [None] * 3 and found["methods"]["other"]["mean"][name] is None
    json.dumps(found, allow_nan=False)
    assert "nan" not in as_table(found | {"seeds": list(range(seeds))})
