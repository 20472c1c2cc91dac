from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cora.collaborative import MFResult, train_mf
from cora.data import load_interactions, split

UNKNOWN = pytest.mark.filterwarnings("ignore:.*unknown .* ids get the mean embedding")


def ratings(rows: int, seed: int) -> pd.DataFrame:
    """20 users and 30 items of two tastes: who likes what is decided by the taste, with some noise."""
    random = np.random.default_rng(seed)
    users, items = random.integers(0, 20, rows), random.integers(0, 30, rows)
    label = ((users % 2 == items % 2) ^ (random.random(rows) < 0.05)).astype(int)
    return pd.DataFrame({"user_id": users, "item_id": items + 100, "label": label})


@pytest.fixture(scope="module")
def trained() -> MFResult:
    return train_mf(ratings(600, 0), ratings(200, 1), dim=8, learning_rate=0.02, batch_size=64)[1]


def test_learns_tastes_that_no_mean_could_tell(trained: MFResult) -> None:
    unseen = ratings(300, 2)
    assert roc_auc_score(unseen["label"], trained.score(unseen)) > 0.9


def test_the_score_is_the_dot_product(trained: MFResult) -> None:
    frame = ratings(50, 3)
    embeddings = trained.embeddings
    assert embeddings.users.shape == (20, 8) and embeddings.items.shape == (30, 8)
    users = embeddings.users[embeddings.lookup_users(frame["user_id"].tolist())]
    items = embeddings.items[embeddings.lookup_items(frame["item_id"].tolist())]
    np.testing.assert_allclose(trained.score(frame), (users * items).sum(1), rtol=1e-6)


@UNKNOWN
def test_an_unknown_user_scores_as_the_mean_user(trained: MFResult) -> None:
    known = pd.DataFrame({"user_id": range(20), "item_id": 103})
    unknown = pd.DataFrame({"user_id": [77], "item_id": [103]})
    np.testing.assert_allclose(trained.score(unknown)[0], trained.score(known).mean(), rtol=1e-4)


@UNKNOWN
def test_the_best_epoch_is_kept() -> None:
    train, valid = ratings(300, 0), ratings(100, 1)
    valid.loc[0, "user_id"] = 77
    embeddings, result = train_mf(train, valid, dim=8, learning_rate=0.1, patience=3)
    assert result.embeddings is embeddings
    assert len(result.valid_aucs) == result.best_epoch + 4
    assert result.valid_auc == max(result.valid_aucs) == result.valid_aucs[result.best_epoch]
    assert roc_auc_score(valid["label"], result.score(valid)) == pytest.approx(result.valid_auc, abs=1e-12)


def test_same_seed_same_vectors() -> None:
    train, valid = ratings(200, 0), ratings(100, 1)

    def run(seed: int) -> torch.Tensor:
        return train_mf(train, valid, dim=4, max_epochs=2, seed=seed)[0].users

    state = torch.get_rng_state()
    first = run(0)
    torch.rand(5)
    assert torch.equal(first, run(0)) and not torch.equal(first, run(1))
    torch.set_rng_state(state)
    run(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_text_ids() -> None:
    train, valid = (
        ratings(rows, 0).assign(user_id=lambda frame: "u" + frame["user_id"].astype(str)) for rows in (200, 50)
    )
    embeddings, result = train_mf(train, valid, dim=4, max_epochs=1)
    assert embeddings.lookup_users(["u3"]).item() == embeddings.user_ids.index("u3")
    assert result.score(valid).shape == (50,)


@pytest.mark.parametrize("part", ["train", "valid"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda frame: frame.drop(columns="label"), "missing column label; found"),
        (lambda frame: frame[:0], "no rows"),
        (lambda frame: frame.assign(label=1), r"label must hold both 0 and 1 and nothing else, found \[1\]"),
        (lambda frame: frame.assign(label=frame["label"] * 2), r"label must hold .* found \[0, 2\]"),
    ],
)
def test_wrong_frame(part: str, spoil: Callable[[pd.DataFrame], pd.DataFrame], message: str) -> None:
    frames = {"train": ratings(50, 0), "valid": ratings(50, 1)}
    frames[part] = spoil(frames[part])
    with pytest.raises(ValueError, match=f"{part}: {message}"):
        train_mf(frames["train"], frames["valid"])


def test_wrong_dim() -> None:
    with pytest.raises(ValueError, match="dim: expected at least 3, .*, got 2"):
        train_mf(ratings(50, 0), ratings(50, 1), dim=2)


@UNKNOWN
def test_movielens_100k() -> None:
    """The figures of the literature on a global time split: test AUC 0.70 to 0.72."""
    try:
        splits = split(load_interactions("movielens-100k"))
    except RuntimeError as error:
        pytest.skip(f"MovieLens-100k could not be fetched: {error}")
    _, result = train_mf(splits.train, splits.valid, dim=32)
    assert splits.test is not None
    assert roc_auc_score(splits.test["label"], result.score(splits.test)) > 0.715
