"""Vectors of items guessed from vectors of their texts."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cora.collaborative import CollaborativeEmbeddings, guessed_items
from cora.collaborative.guesses import _STRENGTHS


def told(items: int = 60, noise: float = 0.1) -> tuple[CollaborativeEmbeddings, Tensor, list[int], list[int]]:
    """Items whose vectors are linear in their texts but for noise, texts of ten more, and how often each was rated."""
    torch.manual_seed(0)
    texts = torch.randn(items + 10, 12) * torch.logspace(0, 2, 12) + 5
    vectors = (texts / torch.logspace(0, 2, 12)) @ torch.randn(12, 4) + noise * torch.randn(items + 10, 4)
    embeddings = CollaborativeEmbeddings([1, 2, 3], list(range(items)), torch.randn(3, 4), vectors[:items])
    return embeddings, texts, list(range(items + 10)), [1 + place % 7 for place in range(items)] + [0] * 10


def by_hand(embeddings: CollaborativeEmbeddings, texts: Tensor, ratings: list[int], strength: float) -> Tensor:
    """[n, d]: ê of all texts by the normal equations, of the items with a vector; each of those without itself."""
    known = len(embeddings.items)
    z = texts.double()
    z = (z - z[:known].mean(0)) / z[:known].std(0, correction=0)
    counts = torch.tensor(ratings[:known]).double()
    c, centre = counts / (counts + 5), embeddings.items.double().mean(0)
    rest, found = embeddings.items.double() - centre, []
    for row in range(len(texts)):
        use = torch.arange(known) != row
        gram = (z[:known][use] * c[use, None]).T @ z[:known][use] + strength * torch.eye(z.shape[1]).double()
        found.append(centre + z[row] @ torch.linalg.solve(gram, (z[:known][use] * c[use, None]).T @ rest[use]))
    return torch.stack(found)


def test_guesses_are_those_of_a_regression_without_the_item() -> None:
    embeddings, texts, ids, ratings = told()
    guesses = guessed_items(embeddings, ids, texts, ratings)
    counts = torch.tensor(ratings[:60]).double()
    users, made = embeddings.users.double(), [by_hand(embeddings, texts, ratings, one) for one in _STRENGTHS]
    errors = [
        float((counts / (counts + 5) * ((one[:60] - embeddings.items) @ users.T).square().sum(1)).sum()) for one in made
    ]
    best = made[errors.index(min(errors))]
    torch.testing.assert_close(guesses.vectors.double(), best, atol=1e-4, rtol=1e-4)
    assert min(errors) < 0.5 * errors[-1]  # one strength is not as good as another


def test_new_items_are_guessed_better_than_by_the_mean() -> None:
    torch.manual_seed(1)
    embeddings, texts, ids, ratings = told()
    truth = (texts / torch.logspace(0, 2, 12))[60:]
    guesses = guessed_items(embeddings, ids, texts, ratings)
    weights = torch.linalg.lstsq((texts / torch.logspace(0, 2, 12))[:60], embeddings.items).solution
    error = (guesses.vectors[60:] - truth @ weights).square().mean()
    assert error < 0.2 * (embeddings.items.mean(0) - truth @ weights).square().mean()


def test_texts_that_say_nothing_give_the_mean() -> None:
    embeddings, texts, ids, ratings = told()
    guesses = guessed_items(embeddings, ids, torch.ones_like(texts), ratings)
    torch.testing.assert_close(guesses.vectors[60:], embeddings.items.mean(0).expand(10, -1))


def test_the_order_of_items_does_not_matter_and_further_ones_are_guessed_alike() -> None:
    embeddings, texts, ids, ratings = told()
    whole = guessed_items(embeddings, ids, texts, ratings)
    turned = guessed_items(embeddings, ids[::-1], texts.flip(0), ratings[::-1])
    torch.testing.assert_close(turned.vectors.flip(0), whole.vectors, atol=1e-5, rtol=1e-5)
    few = guessed_items(embeddings, ids[:60], texts[:60], ratings[:60]).beside(ids[60:], texts[60:])
    torch.testing.assert_close(few.vectors, whole.vectors)
    assert few.rows.ids == ids


@pytest.mark.filterwarnings("ignore:.*unknown")
def test_embeddings_keep_them_and_score_without_them(tmp_path: Path) -> None:
    embeddings, texts, ids, ratings = told()
    with_them = embeddings.with_guesses(guessed_items(embeddings, ids, texts, ratings))
    with_them.save(tmp_path / "e.safetensors")
    again = CollaborativeEmbeddings.load(tmp_path / "e.safetensors")
    assert torch.equal(again.guessed([65, 3]), with_them.guesses.vectors[[65, 3]])
    assert torch.equal(again.score([1, 1], [65, 3]), embeddings.score([1, 1], [65, 3]))
    assert again.has_items([3, 65]).tolist() == [True, False]
    torch.testing.assert_close(again.guessed([999]), embeddings.items.mean(0, keepdim=True))
    assert torch.equal(embeddings.guessed([3, 65]), embeddings.items.mean(0).expand(2, -1))
    assert again.of_items(torch.tensor([0, 1])).guesses is not None


def test_errors() -> None:
    embeddings, texts, ids, ratings = told()
    with pytest.raises(ValueError, match="item_ids: expected three or more that have a vector, got 2 of 12"):
        guessed_items(embeddings, ids[58:], texts[58:], ratings[58:])
    guesses = guessed_items(embeddings, ids, texts, ratings)
    with pytest.raises(ValueError, match="guesses must be as wide as items, 3, got 4"):
        CollaborativeEmbeddings([1], [2], torch.ones(1, 3), torch.ones(1, 3), guesses=guesses)
