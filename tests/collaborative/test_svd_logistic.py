"""The posterior against a general optimiser, and factors that know no label."""

import numpy as np
import pandas as pd
import torch

from cora.collaborative import train_svd_logistic
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


def test_what_is_seldom_rated_stays_near_the_mean() -> None:
    frame = pd.DataFrame(
        {"user_id": list(range(40)) * 2 + [0, 1], "item_id": [0] * 40 + [1] * 40 + [2, 3],
         "label": [1] * 34 + [0] * 6 + [0] * 34 + [1] * 6 + [1, 0]}
    )  # fmt: skip
    embeddings, _ = train_svd_logistic(frame, frame, 3)
    often, seldom = embeddings.items[:2, 2], embeddings.items[2:, 2]
    assert often[0] > seldom[0] > seldom[1] > often[1]
