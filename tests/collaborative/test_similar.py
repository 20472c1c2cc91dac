"""The items of a past that speak to the item asked about."""

import numpy as np
import pytest
import torch

from cora.collaborative import Directions, most_similar


def chosen(histories: list[list], asked: list, vectors: torch.Tensor, most: int, ids: list | None = None) -> list[list]:
    """The items in the order of their history."""
    directions = Directions.of(range(len(vectors)) if ids is None else ids, vectors)
    found = most_similar(histories, asked, directions, most)
    return [[history[place] for place in sorted(places)] for history, places in zip(histories, found, strict=True)]


def test_the_items_of_the_highest_cosine_the_highest_first() -> None:
    vectors = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9, 1, 1, 0.1, 1]) + 3
    standard = (vectors - vectors.mean(0)) / vectors.std(0)
    standard = torch.nn.functional.normalize(standard, dim=1)
    histories, asked = [list(range(1, 30)), [7, 5, 30, 9], []], [0, 33, 2]
    found = most_similar(histories, asked, Directions.of(range(40), vectors), 3)
    for history, item, some in zip(histories, asked, found, strict=True):
        cosines = {other: float(standard[other] @ standard[item]) for other in history}
        assert [history[place] for place in some] == sorted(history, key=lambda other: -cosines[other])[:3]


def test_items_of_equal_similarity_are_taken_from_the_end() -> None:
    vectors = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [1, 0], [-1, 0], [1, 0]])
    assert most_similar([[2, 1, 3, 4, 5]], [0], Directions.of(range(6), vectors), 2) == [[4, 2]]


@pytest.mark.parametrize("asked", [99, 3])
def test_an_item_without_a_vector_has_the_newest(asked: int) -> None:
    vectors = torch.tensor([[1.0, 0], [-1, 0], [0, 2], [0, -2]])
    history = [99, 3, 0, 1] if asked == 99 else [99, 98, 97]
    assert chosen([history], [asked], vectors, 2) == [history[-2:]]


def test_a_column_that_is_the_same_for_all_items_does_not_count() -> None:
    vectors = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    history = [list(range(1, 20))]
    ones = torch.cat([vectors, torch.full((20, 1), 1000.1, dtype=torch.float64)], 1)
    assert chosen(history, [0], vectors, 4) == chosen(history, [0], ones, 4)


def test_ids_of_text_and_bounds() -> None:
    vectors = torch.tensor([[1.0, 1], [-1, -1], [2, 2]])
    ids = ["a", "b", "c"]
    assert chosen([["b", "c", "x"], []], ["a", "b"], vectors, 1, ids) == [["c"], []]
    assert chosen([["b"]], ["a"], vectors, 0, ids) == [[]]
    assert chosen([], [], vectors, 5, ids) == []
    of_text = Directions.of(ids, vectors)
    with pytest.raises(ValueError, match="most: expected at least 0, got -1"):
        most_similar([["b"]], ["a"], of_text, -1)
    with pytest.raises(ValueError, match="histories: expected 2, one for each item asked about, got 1"):
        most_similar([["b"]], np.array(["a", "b"]), of_text, 1)


def test_two_kinds_of_vectors_count_alike() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randn(20, 3, generator=generator), 100 * torch.randn(25, 7, generator=generator)
    alone = Directions.of(range(20), first), Directions.of(range(5, 30), second)
    both = alone[0].beside(alone[1])
    assert both.item_ids == list(range(30))
    similarity = both.units @ both.units.T
    halves = [0.5 * one.units[:-1] @ one.units[:-1].T for one in alone]
    np.testing.assert_allclose(similarity[5:20, 5:20], halves[0][5:, 5:] + halves[1][:15, :15], atol=1e-12)
    np.testing.assert_allclose(similarity[:5, :5], halves[0][:5, :5], atol=1e-12)
    np.testing.assert_allclose(similarity[20:30, 20:30], halves[1][15:, 15:], atol=1e-12)
    assert not similarity[30].any() and not similarity[:5, 20:].any()
