"""Matrix factorisation by variational Bayes: it learns tastes, shrinks what it knows little of, and has no knobs."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits

from cora.collaborative import train_bayes, train_mf


@pytest.fixture(scope="module")
def tastes() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two groups of users with opposite tastes in two groups of items; train and valid."""
    random = np.random.default_rng(0)
    users, items = random.integers(0, 60, 4000), random.integers(0, 50, 4000)
    logits = 2.0 * np.where(users % 2 == items % 2, 1, -1) + 0.5 * random.normal(size=60)[users]
    labels = (random.random(4000) < 1 / (1 + np.exp(-logits))).astype(int)
    frame = pd.DataFrame({"user_id": users, "item_id": items, "label": labels})
    return frame[:3000].reset_index(drop=True), frame[3000:].reset_index(drop=True)


def test_it_learns_tastes_and_the_score_is_the_inner_product(tastes: Any) -> None:
    train, valid = tastes
    embeddings, result = train_bayes(train, valid, 5)
    assert result.valid_auc > 0.85 and result.valid_auc == result.valid_aucs[-1]
    scores = embeddings.score(valid["user_id"].tolist(), valid["item_id"].tolist())
    assert roc_auc_score(valid["label"], scores) == pytest.approx(result.valid_auc, abs=1e-6)
    assert np.allclose(result.score(valid), scores)
    # The logits are those of probabilities: on another scale their loss is larger.
    labels = torch.tensor(valid["label"]).float()
    half, whole, double = (binary_cross_entropy_with_logits(scale * scores, labels) for scale in (0.5, 1.0, 2.0))
    assert whole < min(half, double)


def test_factors_without_evidence_fall_to_zero() -> None:
    random = np.random.default_rng(1)
    users, items = random.integers(0, 40, 1500), random.integers(0, 30, 1500)
    liked = random.random(1500) < np.where(items % 3, 0.7, 0.3)
    frame = pd.DataFrame({"user_id": users, "item_id": items, "label": liked.astype(int)})
    embeddings, _ = train_bayes(frame, frame, 6)
    factors, biases = embeddings.items[:, :4], embeddings.items[:, 5]
    assert factors.std(0).max() < 0.2 * biases.std()


def test_what_is_seldom_rated_stays_near_the_mean() -> None:
    frame = pd.DataFrame(
        {"user_id": list(range(40)) * 2 + [0, 1], "item_id": [0] * 40 + [1] * 40 + [2, 3],
         "label": [1] * 34 + [0] * 6 + [0] * 34 + [1] * 6 + [1, 0]}
    )  # fmt: skip
    embeddings, _ = train_bayes(frame, frame, 3)
    often, seldom = embeddings.items[:2, 2], embeddings.items[2:, 2]
    assert often[0] > seldom[0] > seldom[1] > often[1]


def test_it_is_deterministic_and_touches_no_global_state(tastes: Any) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (train_bayes(*tastes, 4, seed=3)[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.users, again.users) and torch.equal(first.items, again.items)


def test_a_repeated_row_counts_twice(tastes: Any) -> None:
    train, valid = tastes
    once, twice = (train_bayes(pd.concat([train.head(400)] * n), valid, 3)[0] for n in (1, 2))
    assert twice.items[:, 2].std() > once.items[:, 2].std()


@pytest.mark.parametrize("change, message", [({"label": 1}, "train: label"), ({}, "dim: expected at least 3")])
def test_errors(tastes: Any, change: dict[str, Any], message: str) -> None:
    train, valid = tastes
    with pytest.raises(ValueError, match=message):
        train_bayes(train.assign(**change), valid, 4 if change else 2)


def test_it_beats_early_stopped_factorisation_in_loss(tastes: Any) -> None:
    train, valid = tastes
    losses = [
        binary_cross_entropy_with_logits(
            fitted(train.head(800), valid, 5)[0].score(valid["user_id"].tolist(), valid["item_id"].tolist()),
            torch.tensor(valid["label"]).float(),
        )
        for fitted in (train_bayes, train_mf)
    ]
    assert losses[0] < losses[1]
