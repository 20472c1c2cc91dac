"""What must hold of the models whose users are what an encoder reads of their past: none of them reads the future."""

from typing import Any

import pandas as pd
import pytest
import torch

from cora.collaborative import COLLABORATIVE, CollaborativeEmbeddings, pasts, user_encoder

Frames = tuple[pd.DataFrame, pd.DataFrame]
_QUICK: dict[str, Any] = dict(learning_rate=5e-3, batch_size=128, max_epochs=3, max_length=5)
NAMES = ("din", "sasrec")


@pytest.fixture(scope="module", params=NAMES)
def embeddings(request: pytest.FixtureRequest, tastes: Frames) -> CollaborativeEmbeddings:
    return COLLABORATIVE[request.param](*tastes, 8, **_QUICK)[0]


def vectors_of(embeddings: CollaborativeEmbeddings, rows: pd.DataFrame, known: pd.DataFrame) -> torch.Tensor:
    return user_encoder(embeddings).vectors(*pasts(rows, known), rows["item_id"].tolist())


def test_what_comes_at_the_same_moment_or_later_changes_nothing(
    embeddings: CollaborativeEmbeddings, tastes: Frames
) -> None:
    known = tastes[1]
    rows = known[known["timestamp"] == known["timestamp"].iloc[300]]
    now = rows["timestamp"].iloc[0]
    turned = known.assign(label=known["label"].where(known["timestamp"] < now, 1 - known["label"]))
    moved = turned.assign(item_id=known["item_id"].where(known["timestamp"] < now, 100))
    expected = vectors_of(embeddings, rows, known)
    assert torch.equal(vectors_of(embeddings, rows, moved), expected)
    # A row of the same user at the same moment, as of a list rated at once, is no past either.
    beside = pd.concat([known, rows.assign(item_id=100, label=1)])
    assert torch.equal(vectors_of(embeddings, rows, beside), expected)
    earlier = known.assign(label=known["label"].where(known["timestamp"] >= now, 1 - known["label"]))
    assert not torch.equal(vectors_of(embeddings, rows, earlier), expected)


def test_the_table_holds_users_after_their_last_row(embeddings: CollaborativeEmbeddings, tastes: Frames) -> None:
    train = tastes[0]
    for user in (0, 17):
        past = train[train["user_id"] == user]
        (vector,) = user_encoder(embeddings).vectors([past["item_id"].tolist()], [past["label"].tolist()])
        torch.testing.assert_close(embeddings.users[embeddings.lookup_users([user])[0]], vector)


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_without_times(name: str, tastes: Frames) -> None:
    train, valid = tastes
    for part, frames in (
        ("train", (train.drop(columns="timestamp"), valid)),
        ("valid", (train, valid.drop(columns="timestamp"))),
    ):
        with pytest.raises(ValueError, match=f"{part}: missing column timestamp; found"):
            COLLABORATIVE[name](*frames, 8)
