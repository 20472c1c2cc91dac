"""What must hold of every collaborative model, and what is special to each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cora.collaborative import COLLABORATIVE, USER_ENCODERS, CollaborativeEmbeddings, pasts, user_encoder

NAMES = sorted(COLLABORATIVE)
# Few epochs, and rates at which a few suffice on data this small.
QUICK: dict[str, dict[str, Any]] = {
    "mf": dict(learning_rate=0.02, batch_size=256, max_epochs=15),
    "mf-published": dict(learning_rate=0.02, batch_size=256, max_epochs=40),
    "lightgcn": dict(learning_rate=0.05, batch_size=256, max_epochs=40),
    "sasrec": dict(learning_rate=5e-3, batch_size=128, max_epochs=6, max_length=10),
    "din": dict(learning_rate=0.015, batch_size=128, max_epochs=14, patience=14, max_length=10),
}
Frames = tuple[pd.DataFrame, pd.DataFrame]


def trained(name: str, train: pd.DataFrame, valid: pd.DataFrame, dim: int = 8, **more: Any) -> Any:
    return COLLABORATIVE[name](train, valid, dim, **QUICK.get(name, {}), **more)


@pytest.fixture(scope="module", params=NAMES)
def made(request: pytest.FixtureRequest, tastes: Frames) -> Any:
    embeddings, result = trained(request.param, *tastes)
    return request.param, embeddings, result


def encoded(embeddings: CollaborativeEmbeddings, rows: pd.DataFrame, known: pd.DataFrame) -> np.ndarray:
    vectors = user_encoder(embeddings).vectors(*pasts(rows, known), rows["item_id"].tolist())
    return embeddings.score(rows["user_id"].tolist(), rows["item_id"].tolist(), vectors).numpy()


def test_users_in_training_and_users_unseen_are_told_apart_by_their_past(made: Any, tastes: Frames) -> None:
    _, embeddings, _ = made
    train, valid = tastes
    known = pd.concat([train, valid])
    assert roc_auc_score(valid["label"], encoded(embeddings, valid, known)) > 0.8
    strangers = [frame.assign(user_id=frame["user_id"] + 1000) for frame in (valid, known)]
    vectors = user_encoder(embeddings).vectors(*pasts(*strangers), valid["item_id"].tolist())
    items = embeddings.item_table[embeddings.lookup_items(valid["item_id"].tolist())]
    assert roc_auc_score(valid["label"], (vectors * items).sum(1)) > 0.8


def test_shapes_the_inner_product_and_the_best_epoch(made: Any, tastes: Frames) -> None:
    name, embeddings, result = made
    assert embeddings.users.shape == (30, 8) and embeddings.items.shape == (24, 8)
    assert embeddings.users.dtype == embeddings.items.dtype == torch.float32
    assert embeddings.user_encoder in USER_ENCODERS and result.embeddings is embeddings
    if name in ("bayes", "svd-logistic"):  # nothing is chosen by valid
        assert result.best_epoch == len(result.valid_aucs) - 1
    else:
        assert result.valid_auc == max(result.valid_aucs)
    valid, (e_u, e_i) = tastes[1], (embeddings.users, embeddings.items)
    rows = embeddings.lookup_users(valid["user_id"].tolist()), embeddings.lookup_items(valid["item_id"].tolist())
    np.testing.assert_allclose(result.score(valid), (e_u[rows[0]] * e_i[rows[1]]).sum(1), rtol=1e-5, atol=1e-6)


def test_saved_and_loaded_it_makes_the_same_vectors(made: Any, tastes: Frames, tmp_path: Path) -> None:
    _, embeddings, _ = made
    embeddings.save(tmp_path / "vectors.safetensors")
    loaded = CollaborativeEmbeddings.load(tmp_path / "vectors.safetensors")
    assert loaded.user_encoder == embeddings.user_encoder
    past = pasts(tastes[1], tastes[0])
    assert torch.equal(user_encoder(loaded).vectors(*past), user_encoder(embeddings).vectors(*past))


def test_neighbours_change_no_vector_and_no_past_has_one(made: Any) -> None:
    _, embeddings, _ = made
    encoder = user_encoder(embeddings)
    alone = encoder.vectors([[103, 104, 110]], [[1, 0, 1]])
    both = encoder.vectors([[], [103, 104, 110], list(range(100, 124))], [[], [1, 0, 1], [1] * 24])
    torch.testing.assert_close(both[1:2], alone, rtol=1e-4, atol=1e-5)
    assert both.isfinite().all() and encoder.vectors([], []).shape == (0, 8)


@pytest.mark.filterwarnings("ignore:.*unknown .* ids get the mean embedding")
def test_an_unknown_item_is_read_as_the_mean(made: Any) -> None:
    _, embeddings, _ = made
    assert user_encoder(embeddings).vectors([[103, 999]], [[1, 0]]).isfinite().all()


def test_lengths_must_fit(made: Any) -> None:
    with pytest.raises(ValueError, match="labels: expected one for each"):
        user_encoder(made[1]).vectors([[103, 104]], [[1]])


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_vectors_and_the_global_state_is_left_alone(name: str, tastes: Frames) -> None:
    torch.manual_seed(7)
    state, few = torch.get_rng_state(), [frame[:300] for frame in tastes]
    first = trained(name, *few, dim=4)[0]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again, other = trained(name, *few, dim=4)[0], trained(name, *few, dim=4, seed=1)[0]
    assert torch.equal(first.users, again.users) and torch.equal(first.items, again.items)
    if name != "svd-logistic":  # whose factors are unique: the seed is that of the search for them
        assert not torch.equal(first.users, other.users)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda frame: frame.drop(columns="label"), "missing column label; found"),
        (lambda frame: frame[:0], "no rows"),
        (lambda frame: frame.assign(label=1), r"label must hold both 0 and 1 and nothing else, found \[1\]"),
    ],
)
def test_wrong_frames(name: str, tastes: Frames, spoil: Callable[[pd.DataFrame], pd.DataFrame], message: str) -> None:
    train, valid = tastes
    for part, frames in (("train", (spoil(train), valid)), ("valid", (train, spoil(valid)))):
        with pytest.raises(ValueError, match=f"{part}: {message}"):
            COLLABORATIVE[name](*frames, 4)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_dim(name: str, tastes: Frames) -> None:
    with pytest.raises(ValueError, match="dim: expected at least"):
        COLLABORATIVE[name](*tastes, 0)


def test_the_published_recipe_starts_at_large_logits_and_ours_at_none(tastes: Frames) -> None:
    """Why the first is weak: its first epochs go into the noise that the tables start with."""
    untrained = dict(learning_rate=1e-9, max_epochs=1)
    published, ours = (COLLABORATIVE[name](*tastes, 64, **untrained)[1] for name in ("mf-published", "mf"))
    assert 6 < published.score(tastes[1]).std() < 10 and np.abs(ours.score(tastes[1])).max() < 0.01


def test_an_encoder_that_nobody_knows() -> None:
    embeddings = CollaborativeEmbeddings([1], [1], torch.ones(1, 3), torch.ones(1, 3), "crystal-ball")
    with pytest.raises(ValueError, match="user_encoder: expected one of fold-in, sasrec, din, got 'crystal-ball'"):
        user_encoder(embeddings)


def test_weights_of_another_kind(tastes: Frames) -> None:
    embeddings, _ = trained("sasrec", *tastes)
    embeddings.encoder_tensors["query"] = embeddings.encoder_tensors["query"].long()
    with pytest.raises(ValueError, match="do not fit sasrec's encoder: 1 tensors that are not float: query"):
        user_encoder(embeddings)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [({}, "do not hold the weights"), ({"position": torch.zeros(2, 1)}, "do not fit sasrec's encoder: ")],
)
def test_an_encoder_without_its_weights(tensors: dict[str, torch.Tensor], message: str) -> None:
    embeddings = CollaborativeEmbeddings([1], [1], torch.ones(1, 3), torch.ones(1, 3), "sasrec", tensors)
    with pytest.raises(ValueError, match=message):
        user_encoder(embeddings)
