"""DIN reads a past in the light of the item asked about."""

from typing import Any

import pandas as pd
import pytest
import torch

from cora.collaborative import CollaborativeEmbeddings, train_din, user_encoder
from cora.collaborative.pair_encoder import PairEncoder

Frames = tuple[pd.DataFrame, pd.DataFrame]
_QUICK: dict[str, Any] = dict(learning_rate=5e-3, batch_size=128, max_epochs=3, max_length=5)


@pytest.fixture(scope="module")
def embeddings(tastes: Frames) -> CollaborativeEmbeddings:
    return train_din(*tastes, 8, **_QUICK)[0]


def test_training_reads_no_row_at_or_after_its_own_time(tastes: Frames) -> None:
    """All rows at one moment have no past at all: what reads one is as it was at the start."""
    train, valid = (frame.assign(timestamp=7) for frame in tastes)
    made = train_din(train, valid, 8, weight_decay=0.0, **_QUICK)[0].encoder_tensors
    torch.manual_seed(0)
    start = PairEncoder(3, 4, 64, 5, 0.1).state_dict()
    for name, one in made.items():
        idle = name.startswith(("label", "rated", "attention", "max_length"))
        assert torch.equal(one, start[name]) == idle, name


def prelu(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, 0.25 * x)


def test_the_reading_of_a_past_one_row_at_a_time() -> None:
    torch.manual_seed(1)
    encoder = PairEncoder(3, 4, 16, 5, 0.5).double().eval()
    q, past, labels = torch.randn(3).double(), torch.randn(4, 3).double(), [1, 0, 0, 1]
    there = torch.tensor([[True, False, True, True]])
    total = torch.zeros(3).double()
    for row in (0, 2, 3):
        told = torch.cat([past[row], encoder.label[labels[row]]])
        h = prelu(encoder.rated[0].weight @ told + encoder.rated[0].bias)
        first, _, last = encoder.attention
        hidden = prelu(first.weight @ torch.cat([q, h, q - h, q * h]) + first.bias)
        total += (last.weight @ hidden + last.bias) * h
    c = torch.cat([q, total, q * total])
    for layer in (encoder.layers[0], encoder.layers[3], encoder.layers[6]):
        c = prelu(layer.weight @ c + layer.bias)
    torch.testing.assert_close(encoder(q[None], past[None], torch.tensor([labels]), there)[0], c)


def test_the_vector_is_of_the_pair_and_only_the_newest_rows_count(embeddings: CollaborativeEmbeddings) -> None:
    encoder, newest = user_encoder(embeddings), [101, 102, 103, 104, 105]
    items, labels = [newest, newest, [110, 111, *newest]], [[1, 0, 1, 0, 1], [1, 0, 1, 0, 1], [0, 0, 1, 0, 1, 0, 1]]
    first, other, longer = encoder.vectors(items, labels, [106, 107, 106])
    torch.testing.assert_close(first, longer)
    assert (first - other).norm() > 1e-3 * first.norm()
    (turned,) = encoder.vectors([newest], [[0, 1, 0, 1, 0]], [106])
    assert (first - turned).norm() > 1e-3 * first.norm()


def test_its_errors(embeddings: CollaborativeEmbeddings) -> None:
    with pytest.raises(ValueError, match="asked: expected 1 items, one for each past, got 2"):
        user_encoder(embeddings).vectors([[103]], [[1]], [104, 105])
    bare = CollaborativeEmbeddings([1], [1], torch.ones(1, 8), torch.ones(1, 8), "din", {"label": torch.ones(2, 9)})
    with pytest.raises(ValueError, match="do not hold the weights of din's encoder"):
        user_encoder(bare)
