"""The metrics against their definitions."""

import itertools

import numpy as np
import pandas as pd
import pytest

from cora.runs.metrics import as_table, metrics, summary


def rows_of(users: list[int], labels: list[int], warm: list[bool] | None = None) -> pd.DataFrame:
    return pd.DataFrame({"user_id": users, "label": labels, "warm": warm or [True] * len(users)})


def auc_by_pairs(labels: np.ndarray, scores: np.ndarray) -> float:
    """The share of (positive, negative) pairs in the right order, ties half."""
    pairs = itertools.product(scores[labels == 1], scores[labels == 0])
    return float(np.mean([1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs]))


def test_against_the_definitions() -> None:
    random = np.random.default_rng(0)
    rows = rows_of(random.integers(0, 9, 200).tolist(), random.integers(0, 2, 200).tolist())
    rows["warm"] = random.random(200) < 0.4
    scores = random.integers(-3, 4, 200).astype(np.float32)
    found = metrics(rows, scores)
    for name, part in (("", slice(None)), ("warm_", rows["warm"].to_numpy()), ("cold_", ~rows["warm"].to_numpy())):
        chosen, values = rows[part] if name else rows, scores[part]
        labels = chosen["label"].to_numpy()
        assert found[name + "auc"] == pytest.approx(auc_by_pairs(labels, values))
        each = [
            auc_by_pairs(labels[of_user], values[of_user])
            for user in chosen["user_id"].unique()
            if len(set(labels[of_user := (chosen["user_id"] == user).to_numpy()])) == 2
        ]
        assert found[name + "uauc"] == pytest.approx(np.mean(each))
    probability = 1 / (1 + np.exp(-scores.astype(np.float64)))
    right = np.where(rows["label"] == 1, probability, 1 - probability)
    assert found["log_loss"] == pytest.approx(-np.log(right).mean())


def test_rows_of_cold_items_have_their_own() -> None:
    rows = rows_of([1, 1, 1, 2], [1, 0, 1, 0], [True, False, False, False]).assign(cold_item=[False, True, True, True])
    scores = np.array([9.0, 1.0, 2.0, 5.0])
    found = metrics(rows, scores)
    assert (found["cold_items_auc"], found["cold_items_uauc"]) == (0.5, 1.0)
    table = summary(rows.assign(cora=scores))
    assert table["cold_item_rows"] == 3 and table["methods"].keys() == {"cora"}
    head, line, count = as_table(table).splitlines()
    assert head.endswith("  cold items auc  cold items uauc") and line.split()[-2:] == ["0.5000", "1.0000"]
    assert len(head) == len(line) and count.endswith(", 1 warm, 3 of cold items")
    assert "cold_items_auc" not in metrics(rows.drop(columns="cold_item"), scores)


def test_leads_are_those_of_the_first_that_is_no_baseline() -> None:
    random = np.random.default_rng(0)
    rows = rows_of(np.repeat(np.arange(20), 10).tolist(), random.integers(0, 2, 200).tolist())
    rows = rows.assign(cold_item=random.random(200) < 0.3)
    rows = rows.assign(fold_in=random.random(200), cora=rows["label"] + random.normal(size=200), tallrec=0.0)
    found = summary(rows)
    assert found["leads"]["of"] == "cora" and found["leads"]["over"].keys() == {"fold_in", "tallrec"}
    for name, lead in found["leads"]["over"].items():
        for measure, (difference, low, high) in lead.items():
            apart = found["methods"]["cora"][measure] - found["methods"][name][measure]
            assert difference == pytest.approx(apart) and low < difference < high
    assert "leads" not in summary(rows.drop(columns=["cora", "tallrec"])), "baselines alone have no leads"


def test_users_of_one_label_do_not_count() -> None:
    found = metrics(rows_of([1, 1, 2, 2, 3], [1, 0, 1, 1, 0]), np.array([2.0, 1.0, 0.0, 5.0, 9.0]))
    assert found["uauc"] == 1.0


def test_what_is_undefined_is_none() -> None:
    found = metrics(rows_of([1, 2], [1, 1], [True, False]), np.array([0.0, 1.0]))
    assert [found[name] for name in ("auc", "uauc", "warm_auc", "cold_uauc")] == [None] * 4
    assert found["log_loss"] is not None


def test_extreme_scores_have_a_finite_log_loss() -> None:
    found = metrics(rows_of([1, 1], [1, 0]), np.array([-2000.0, 2000.0]))
    assert found["log_loss"] is not None and np.isfinite(found["log_loss"]) and found["log_loss"] > 30


@pytest.mark.parametrize("scores", [[1.0], [1.0, np.nan], [np.inf, 0.0]], ids=["count", "nan", "inf"])
def test_bad_scores(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="^scores: "):
        metrics(rows_of([1, 2], [0, 1]), np.array(scores))


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="at least one"):
        metrics(rows_of([], []), np.array([]))


def test_summary_and_table() -> None:
    rows = rows_of([1, 1, 2], [1, 0, 1], [True, True, False]).assign(
        collaborative=[0.0, 1.0, 2.0], cora=[1.0, 0.0, 2.0]
    )
    found = summary(rows)
    assert (found["rows"], found["positives"], found["users"], found["warm_rows"]) == (3, 2, 2, 2)
    assert found["methods"].keys() == {"collaborative", "cora"}
    assert (found["methods"]["collaborative"]["auc"], found["methods"]["cora"]["auc"]) == (0.5, 1.0)
    lines = as_table(found).splitlines()
    assert lines[-2].split() == ["than", "auc", "uauc"] and lines[-1].startswith("collaborative +0.5000 [")
    assert lines[1].split()[:2] == ["collaborative", "0.5000"] and lines[2].split()[:2] == ["CoRA", "1.0000"]
    assert "-" in lines[1].split()
