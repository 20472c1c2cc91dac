"""SASRec reads its past as it says."""

from typing import Any

import pandas as pd
import pytest
import torch

from cora.collaborative import CollaborativeEmbeddings, train_sasrec, user_encoder
from cora.collaborative.past_encoder import PastEncoder
from cora.collaborative.pasts import Pasts

Frames = tuple[pd.DataFrame, pd.DataFrame]
_QUICK: dict[str, Any] = dict(learning_rate=5e-3, batch_size=128, max_epochs=3, max_length=5)


@pytest.fixture(scope="module")
def embeddings(tastes: Frames) -> CollaborativeEmbeddings:
    return train_sasrec(*tastes, 8, **_QUICK)[0]


def test_training_reads_no_row_at_or_after_its_own_time(tastes: Frames) -> None:
    """All rows at one moment have no past at all: the encoder is trained on its query alone, its labels on nothing."""
    train, valid = (frame.assign(timestamp=7) for frame in tastes)
    first = train_sasrec(train, valid, 6, **_QUICK)[0]
    torch.manual_seed(0)
    start = PastEncoder(4, 5, 2, 0.2)
    assert torch.equal(first.encoder_tensors["label"], start.label)
    assert not torch.equal(first.encoder_tensors["query"], start.query)


def test_likes_and_dislikes_are_read_apart(embeddings: CollaborativeEmbeddings) -> None:
    liked, disliked = user_encoder(embeddings).vectors([[101, 103], [101, 103]], [[1, 1], [0, 0]])
    assert (liked - disliked).norm() > 1e-3 * liked.norm()


def test_only_the_newest_rows_count(embeddings: CollaborativeEmbeddings) -> None:
    newest = [101, 102, 103, 104, 105]
    both = user_encoder(embeddings).vectors([newest, [110, 111, *newest]], [[1, 0, 1, 0, 1], [0, 0, 1, 0, 1, 0, 1]])
    torch.testing.assert_close(both[0], both[1])


def test_newest_rows_of_ragged_pasts() -> None:
    pasts_of = Pasts(torch.arange(6), torch.tensor([0, 1, 0, 1, 1, 0]), torch.tensor([0, 2, 2, 6]))
    items, labels, there = pasts_of.newest(torch.tensor([2, 0, 1]), 3)
    assert there.tolist() == [[True] * 3, [False, True, True], [False] * 3]
    assert items[there].tolist() == [3, 4, 5, 0, 1] and labels[there].tolist() == [1, 1, 0, 0, 1]
    assert pasts_of.newest(torch.tensor([1]), 3)[0].shape == (1, 0)


def test_the_order_of_users_changes_no_vector() -> None:
    torch.manual_seed(1)
    encoder, table = PastEncoder(4, 5, 2, 0.5), torch.randn(9, 4)
    items, labels = torch.randint(0, 9, (30,)), torch.randint(0, 2, (30,))
    one = encoder.users(table, Pasts(items, labels, torch.tensor([0, 4, 9, 30])))
    turned = Pasts(
        torch.cat([items[9:], items[:9]]), torch.cat([labels[9:], labels[:9]]), torch.tensor([0, 21, 25, 30])
    )
    torch.testing.assert_close(encoder.users(table, turned)[[1, 2, 0]], one)
