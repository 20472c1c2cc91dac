"""The items of a past that speak to the item asked about."""

import numpy as np
import pytest
import torch

from cora.collaborative import CollaborativeEmbeddings, most_similar


def embeddings(items: torch.Tensor, ids: list | None = None) -> CollaborativeEmbeddings:
    ids = list(range(len(items))) if ids is None else ids
    return CollaborativeEmbeddings([0], ids, torch.zeros(1, items.shape[1]), items)


def test_the_items_of_the_highest_cosine_in_the_order_of_the_past() -> None:
    vectors = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9, 1, 1, 0.1, 1]) + 3
    standard = (vectors - vectors.mean(0)) / vectors.std(0)
    standard = torch.nn.functional.normalize(standard, dim=1)
    histories, asked = [list(range(1, 30)), [7, 5, 30, 9], []], [0, 33, 2]
    found = most_similar(histories, asked, embeddings(vectors), 3)
    for history, item, some in zip(histories, asked, found, strict=True):
        cosines = {other: float(standard[other] @ standard[item]) for other in history}
        best = sorted(history, key=lambda other: -cosines[other])[:3]
        assert some == [other for other in history if other in best]


def test_items_of_equal_similarity_are_taken_from_the_end() -> None:
    vectors = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [1, 0], [-1, 0], [1, 0]])
    assert most_similar([[2, 1, 3, 4, 5]], [0], embeddings(vectors), 2) == [[3, 5]]


@pytest.mark.parametrize("asked", [99, 3])
def test_an_item_without_a_vector_has_the_newest(asked: int) -> None:
    vectors = torch.tensor([[1.0, 0], [-1, 0], [0, 2], [0, -2]])
    history = [99, 3, 0, 1] if asked == 99 else [99, 98, 97]
    assert most_similar([history], [asked], embeddings(vectors), 2) == [history[-2:]]


def test_a_column_that_is_the_same_for_all_items_does_not_count() -> None:
    vectors = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    history = [list(range(1, 20))]
    ones = torch.cat([vectors, torch.full((20, 1), 1000.1, dtype=torch.float64)], 1)
    assert most_similar(history, [0], embeddings(vectors), 4) == most_similar(history, [0], embeddings(ones), 4)


def test_ids_of_text_and_bounds() -> None:
    vectors = torch.tensor([[1.0, 1], [-1, -1], [2, 2]])
    of_text = embeddings(vectors, ["a", "b", "c"])
    assert most_similar([["b", "c", "x"], []], ["a", "b"], of_text, 1) == [["c"], []]
    assert most_similar([["b"]], ["a"], of_text, 0) == [[]]
    assert most_similar([], [], of_text, 5) == []
    with pytest.raises(ValueError, match="most: expected at least 0, got -1"):
        most_similar([["b"]], ["a"], of_text, -1)
    with pytest.raises(ValueError, match="histories: expected 2, one for each item asked about, got 1"):
        most_similar([["b"]], np.array(["a", "b"]), of_text, 1)
