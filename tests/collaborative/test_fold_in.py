"""Folded-in vectors against a general optimiser, and their histories against the rows they may know."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

from cora.collaborative import CollaborativeEmbeddings, FoldIn, pasts


def embeddings(size: float = 1.0) -> CollaborativeEmbeddings:
    torch.manual_seed(0)
    users, items = size * torch.randn(40, 4).double(), torch.randn(9, 4).double()
    users[:, 3] = 1.0  # a column that does not vary, as the item's bias has: the prior is singular there
    return CollaborativeEmbeddings(list(range(40)), list(range(9)), users, items)


def mode(made: CollaborativeEmbeddings, items: list[int], labels: list[int]) -> np.ndarray:
    """The maximum, by scipy, of the posterior over the columns that vary."""
    users, features = made.users.numpy(), made.items.numpy()[items]
    mean, precision = users.mean(0), np.linalg.inv(np.cov(users[:, :3].T, bias=True))
    signs = 2 * np.array(labels) - 1

    def loss(free: np.ndarray) -> float:
        logits = features @ (mean + np.append(free, 0))
        return float(np.logaddexp(0, -signs * logits).sum() + free @ precision @ free / 2)

    return mean + np.append(minimize(loss, np.zeros(3), tol=1e-12).x, 0)


@pytest.mark.parametrize("size", [0.1, 1.0, 5.0])
def test_it_is_the_posterior_mode(size: float) -> None:
    made = embeddings(size)
    histories = [([0, 3, 5, 8, 3], [1, 0, 1, 1, 0]), ([2], [0]), ([1, 4, 6, 7] * 5, [1, 0, 0, 1] * 5)]
    found = FoldIn(made).vectors(*map(list, zip(*histories, strict=True)))
    for vector, (items, labels) in zip(found, histories, strict=True):
        np.testing.assert_allclose(vector, mode(made, items, labels), atol=1e-3 * size)


def test_without_a_past_it_is_the_mean_and_neighbours_change_nothing() -> None:
    made = embeddings()
    alone = FoldIn(made).vectors([[3, 4]], [[1, 0]])
    both = FoldIn(made).vectors([[], [3, 4], list(range(9))], [[], [1, 0], [1] * 9])
    torch.testing.assert_close(both[0], made.users.mean(0))
    torch.testing.assert_close(both[1:2], alone)


def test_huge_vectors_stay_finite_and_unknown_items_count_as_the_mean() -> None:
    made = embeddings(1e4)
    with pytest.warns(UserWarning, match="unknown item ids"):
        found = FoldIn(made).vectors([[0, 1, 77]], [[1, 0, 1]])
    assert found.isfinite().all()


def test_lengths_must_fit() -> None:
    with pytest.raises(ValueError, match="labels: expected one for each"):
        FoldIn(embeddings()).vectors([[1, 2]], [[1]])


@pytest.mark.parametrize(("user", "item", "time", "expected"), [
    (1, 9, 5, ([], [])),
    (1, 9, 6, ([3, 4], [1, 0])),
    (1, 3, 9, ([4, 5], [0, 1])),
    (2, 9, 9, ([3], [0])),
    (7, 9, 9, ([], [])),
], ids=["nothing-before", "not-its-own-moment", "not-its-own-item", "other-user", "unknown-user"])  # fmt: skip
def test_pasts_know_the_past_alone(user: int, item: int, time: int, expected: Any) -> None:
    known = pd.DataFrame(
        {"user_id": [1, 1, 2, 1], "item_id": [3, 4, 3, 5], "label": [1, 0, 0, 1], "timestamp": [5, 5, 6, 8]}
    ).sample(frac=1, random_state=1).sort_values("timestamp", kind="stable")  # fmt: skip
    items, labels = pasts(pd.DataFrame({"user_id": [user], "item_id": [item], "timestamp": [time]}), known)
    assert sorted(zip(items[0], labels[0], strict=True)) == sorted(zip(*expected, strict=True))


def test_users_of_one_past_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fold, seen = FoldIn(embeddings()), []
    modes = fold._modes
    monkeypatch.setattr(fold, "_modes", lambda rows, labels: seen.append(len(rows)) or modes(rows, labels))
    items, labels = [[1, 2], [1], [1, 2], [2, 1], [], [1, 2], []], [[1, 0], [1], [1, 0], [0, 1], [], [0, 1], []]
    found = fold.vectors(items, labels)
    assert seen == [5]
    assert torch.equal(found[0], found[2]) and torch.equal(found[4], found[6])
    for one, other in ((0, 5), (0, 1), (0, 4)):
        assert not torch.allclose(found[one], found[other], atol=1e-3)
    torch.testing.assert_close(found[0], found[3])
