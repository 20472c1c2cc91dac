"""Ranks with ties against the target, HR and NDCG by their definitions, intervals over users; baselines by loops."""

import numpy as np
import pytest

from cora.sequences import BASELINES, Ranking, as_table
from cora.sequences.baselines import ease, item_cosine, markov, popularity
from cora.sequences.ranking import ranks_by_score, ranks_in_list


def test_ties_count_against_the_target() -> None:
    scores = np.array([[3.0, 2.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    assert ranks_by_score(scores, np.array([1, 0])).tolist() == [3, 4]


def test_seen_items_are_no_candidates_and_a_seen_target_is_never_found() -> None:
    scores = np.array([[3.0, 2.0, 2.0, 1.0]] * 2)
    seen = np.array([[True, False, True, False], [False, True, False, False]])
    ranks = ranks_by_score(scores, np.array([1, 1]), seen)
    assert ranks[0] == 1 and ranks[1] > 4
    assert Ranking(ranks, np.arange(2)).values("ndcg", 20).tolist() == [1.0, 0.0]


def test_a_score_that_is_not_finite_is_never_found() -> None:
    ranks = ranks_by_score(np.array([[np.nan, 1.0], [-np.inf, 1.0]]), np.array([0, 0]))
    assert (ranks > 2).all()


def test_a_list_ranks_as_all_scores_do_as_far_as_it_goes() -> None:
    random = np.random.default_rng(0)
    scores = random.integers(0, 5, (50, 12)).astype(float)  # with ties
    targets = random.integers(0, 12, 50)
    order = np.argsort(-scores, axis=1, kind="stable")
    every = ranks_in_list(order, np.take_along_axis(scores, order, 1), targets)
    assert every.tolist() == ranks_by_score(scores, targets).tolist()
    short = ranks_in_list(order[:, :4], np.take_along_axis(scores, order, 1)[:, :4], targets)
    found = (order[:, :4] == targets[:, None]).any(1)
    assert (short[~found] > 12).all() and (short[found] <= every[found]).all()
    assert ranks_in_list(np.array([[2, -1]]), np.array([[0.5, -np.inf]]), np.array([1]))[0] > 12


def test_hr_and_ndcg() -> None:
    ranking = Ranking(np.array([1, 3, 10, 11]), np.array([0, 1, 2, 3]))
    found = ranking.metrics()
    assert found["hr@1"]["value"] == 0.25 and found["hr@10"]["value"] == 0.75
    assert found["ndcg@10"]["value"] == pytest.approx((1 + 1 / 2 + 1 / np.log2(11)) / 4)
    assert set(found) == {f"{measure}@{cut}" for measure in ("hr", "ndcg") for cut in (1, 5, 10, 20)}


def test_intervals_draw_users_not_rows() -> None:
    """Rows of one user say the same: a hundred of each make nothing surer than one."""
    hits = np.random.default_rng(0).integers(0, 2, 40)
    ranks = np.where(hits == 1, 1, 100)
    one = Ranking(ranks, np.arange(40)).metrics()["hr@1"]
    many = Ranking(np.repeat(ranks, 100), np.repeat(np.arange(40), 100)).metrics()["hr@1"]
    assert many["error"] == pytest.approx(one["error"]) and many["low"] == pytest.approx(one["low"])
    assert one["error"] == pytest.approx(hits.std() / np.sqrt(40), rel=0.1)


def test_a_lead_is_paired() -> None:
    ranks = np.random.default_rng(0).integers(1, 30, 60)
    better = np.where(np.arange(60) % 3 == 0, 1, ranks)
    lead = Ranking(better, np.arange(60)).lead(Ranking(ranks, np.arange(60)), "hr", 10)
    assert lead["low"] > 0 and lead["value"] == pytest.approx(np.mean((better <= 10) * 1.0 - (ranks <= 10)))
    same = Ranking(ranks, np.arange(60))
    assert same.lead(same, "ndcg", 10) == dict(value=0.0, low=0.0, high=0.0, error=0.0)


def test_the_table_has_a_line_for_each() -> None:
    lines = as_table({"ours": Ranking(np.array([1, 2]), np.array([0, 1])).metrics()}).split("\n")
    assert lines[0].split() == ["hr@1", "hr@5", "hr@10", "hr@20", "ndcg@1", "ndcg@5", "ndcg@10", "ndcg@20"]
    assert lines[1].split()[:3] == ["ours", "0.5000", "1.0000"]


TRAINING = [np.array([0, 1, 2, 1]), np.array([1, 2]), np.array([0, 3, 2]), np.zeros(0, dtype=np.int64)]


def test_popularity_and_cosine_by_hand() -> None:
    assert popularity(TRAINING, 5)([np.array([4])]).tolist() == [[2, 3, 3, 1, 0]]
    has = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=float)
    sizes = np.maximum(np.linalg.norm(has, axis=0), 1)
    cosine = has.T @ has / sizes[:, None] / sizes
    np.fill_diagonal(cosine, 0)
    scores = item_cosine(TRAINING, 5, newest=2)([np.array([1, 2, 3]), np.zeros(0)])
    np.testing.assert_allclose(scores, [cosine[2] + cosine[3], np.zeros(5)])


def test_markov_counts_what_comes_right_behind() -> None:
    scores = markov(TRAINING, 5, newest=1)([np.array([3, 1])])
    assert scores.round(6).tolist() == [[0, 0, 1, 0, 0]]
    scores = markov(TRAINING, 5, newest=2)([np.array([3, 0])])
    assert scores.round(6).tolist() == [[0, 0.5, 1, 0.5, 0]]
    assert scores[0, 4] < markov(TRAINING, 5)([np.array([4])])[0, 1]  # popularity breaks ties


def test_ease_is_the_ridge_regression_of_each_item_on_the_others() -> None:
    has = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=float)
    scores = ease(TRAINING, 5, newest=1, regularisation=0.7)
    found = np.concatenate([scores([np.array([item])]) for item in range(5)])
    for item in range(5):
        others = [one for one in range(5) if one != item]
        x = has[:, others]
        weights = np.linalg.solve(x.T @ x + 0.7 * np.eye(4), x.T @ has[:, item])
        np.testing.assert_allclose(found[others, item], weights, atol=1e-12)
        assert found[item, item] == 0


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_serves_empty_histories_and_unknown_items(name: str) -> None:
    scores = np.asarray(BASELINES[name](TRAINING, 5)([np.zeros(0, dtype=np.int64), np.array([4])]))
    assert scores.shape == (2, 5) and np.isfinite(scores).all()
