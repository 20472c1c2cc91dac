"""Items without a row's own rating, against a general optimiser."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize_scalar

from cora.collaborative import CollaborativeEmbeddings, items_without_own_rating
from cora.data.histories import raters


def test_an_item_without_own_rating_is_as_others_rated_it() -> None:
    random = np.random.default_rng(0)
    train = pd.DataFrame(
        {"user_id": random.integers(0, 12, 90), "item_id": random.integers(0, 6, 90),
         "label": random.integers(0, 2, 90), "timestamp": np.arange(90)}
    ).drop_duplicates(["user_id", "item_id"])  # fmt: skip
    torch.manual_seed(0)
    users, items = torch.randn(12, 4), torch.randn(6, 4)
    users[:, 2] = 1.0
    vectors = CollaborativeEmbeddings(list(range(12)), list(range(6)), users, items)
    rows = train.sample(20, random_state=1)
    found = items_without_own_rating(vectors, rows, train)
    prior = items[:, 2].double().numpy()

    def bias(ratings: pd.DataFrame, item: int) -> float:
        logits = (users[ratings["user_id"].tolist()] @ items[item]).numpy() - float(items[item, 2])
        signs = 2 * ratings["label"].to_numpy() - 1

        def loss(c: Any) -> float:
            return np.logaddexp(0, -signs * (logits + c)).sum() + (c - prior.mean()) ** 2 / (2 * prior.var())

        return float(minimize_scalar(loss, bounds=(-20, 20), method="bounded", options={"xatol": 1e-8}).x)

    for at, (user, item) in enumerate(zip(rows["user_id"], rows["item_id"], strict=True)):
        of_item = train[train["item_id"] == item]
        change = bias(of_item[of_item["user_id"] != user], item) - bias(of_item, item)
        torch.testing.assert_close(found[at], items[item] + torch.tensor([0, 0, change, 0]), atol=1e-4, rtol=1e-4)
    # A row that says yes is all that its own vector loses.
    said, change = torch.tensor(rows["label"].to_numpy()), found[:, 2] - items[rows["item_id"].tolist(), 2]
    assert bool((change[said == 1] < 0).all()) and bool((change[said == 0] > 0).all())


def test_without_a_bias_or_for_unknown_items_nothing_changes() -> None:
    torch.manual_seed(0)
    users, items = torch.randn(2, 3), torch.randn(2, 3)
    rows = pd.DataFrame({"user_id": [1, 2], "item_id": [5, 7], "label": [1, 0], "timestamp": [0, 1]})
    for column in (users[:, 1], torch.ones(2)):
        users[:, 1] = column
        vectors = CollaborativeEmbeddings([1, 2], [5, 6], users, items)
        with pytest.warns(UserWarning):
            found = items_without_own_rating(vectors, rows, rows)
        assert torch.equal(found[1], vectors.item_table[2])
        assert torch.equal(found[0], items[0]) == bool((users[:, 1] != 1).any())


def test_raters_are_all_others_at_any_time() -> None:
    known = pd.DataFrame(
        {"user_id": [1, 2, 3, 1], "item_id": [7, 7, 7, 8], "label": [1, 0, 1, 1], "timestamp": [5, 1, 9, 2]}
    )  # fmt: skip
    users, labels = raters(pd.DataFrame({"user_id": [1, 9], "item_id": [7, 7]}), known)
    assert users.tolist() == [[2, 3], [2, 1, 3]] and labels.tolist() == [[0, 1], [0, 1, 1]]
