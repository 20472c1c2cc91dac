"""The posterior against a general optimiser, and factors that know no label."""

import numpy as np
import pandas as pd
import pytest
import torch

from cora.collaborative import svd_logistic, train_svd_logistic
from cora.collaborative.fitting import TrainingRows
from cora.collaborative.item_factors import item_factors

Frames = tuple[pd.DataFrame, pd.DataFrame]


def test_factors_know_who_rated_what_and_no_label(tastes: Frames) -> None:
    train, valid = tastes
    turned = train.assign(label=1 - train["label"])
    first, second = (item_factors(TrainingRows.of(frame, valid), 3, seed=0) for frame in (train, turned))
    assert torch.equal(first, second)
    # People rate what is of their taste: the second factor tells the tastes apart.
    kinds = first[:, 1] > first[:, 1].median()
    assert abs(int((kinds == (torch.arange(24) % 2 == 0)).sum()) - 12) >= 10


def test_factors_are_the_singular_vectors(tastes: Frames) -> None:
    rows = TrainingRows.of(*tastes)
    rated = np.zeros((30, 24))
    rated[rows.user, rows.item] = 1
    of_user, of_item = rated.sum(1), rated.sum(0) + 5
    _, sizes, right = np.linalg.svd(rated / np.sqrt(of_user)[:, None] / np.sqrt(of_item))
    expected = (right[:3].T * sizes[:3]) / np.sqrt(of_item)[:, None]
    expected = expected / np.sqrt((expected**2).mean())
    found = item_factors(rows, 3, seed=0).numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-3, atol=1e-3)
    again = item_factors(rows, 3, seed=5).numpy()  # another start of the search, the same factors
    np.testing.assert_allclose(again, found, rtol=1e-3, atol=1e-3)


def test_columns_beyond_the_rank_are_zero(tastes: Frames) -> None:
    train, valid = tastes
    embeddings, _ = train_svd_logistic(train[train["item_id"] < 104], valid, 40)
    assert embeddings.items.shape == (4, 40)
    assert not embeddings.items[:, 4:38].any() and embeddings.items[:, :4].any()
    assert embeddings.users.isfinite().all()


def test_of_many_rows_a_part_of_the_users_decides_the_priors_and_all_have_vectors(
    tastes: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, valid = tastes
    whole, found = train_svd_logistic(train, valid, 4)
    monkeypatch.setattr(svd_logistic, "_ROWS", len(train) // 2)
    drawn = svd_logistic._drawn_users(TrainingRows.of(train, valid), 0)
    assert 5 < len(drawn) < 30 and len(drawn.unique()) == len(drawn)
    part, of_part = train_svd_logistic(train, valid, 4)
    assert torch.equal(part.items[:, :2], whole.items[:, :2]) and not torch.equal(part.users, whole.users)
    logits = [(one.users @ one.items.T).flatten() for one in (part, whole)]
    assert torch.corrcoef(torch.stack(logits))[0, 1] > 0.98
    assert of_part.valid_auc > found.valid_auc - 0.02
    again, _ = train_svd_logistic(train, valid, 4)
    assert torch.equal(again.users, part.users) and torch.equal(again.items, part.items)


def test_users_updated_together_have_what_they_have_alone(tastes: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    together, _ = train_svd_logistic(*tastes, 5)
    monkeypatch.setattr(svd_logistic, "_PADDED", 1)
    alone, _ = train_svd_logistic(*tastes, 5)
    torch.testing.assert_close(together.users, alone.users, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together.items, alone.items, atol=1e-6, rtol=1e-5)


def test_what_is_seldom_rated_stays_near_the_mean() -> None:
    frame = pd.DataFrame(
        {"user_id": list(range(40)) * 2 + [0, 1], "item_id": [0] * 40 + [1] * 40 + [2, 3],
         "label": [1] * 34 + [0] * 6 + [0] * 34 + [1] * 6 + [1, 0]}
    )  # fmt: skip
    embeddings, _ = train_svd_logistic(frame, frame, 3)
    often, seldom = embeddings.items[:2, 2], embeddings.items[2:, 2]
    assert often[0] > seldom[0] > seldom[1] > often[1]
