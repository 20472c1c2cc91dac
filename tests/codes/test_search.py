"""Decoding over the trie: items alone, the same as exhaustive scoring, probabilities that sum to one, seen items."""

import pytest
import torch
from torch import Tensor

from cora.codes.assign import random_codes
from cora.codes.search import Step, all_scores, beam_search
from cora.codes.trie import Trie

ITEMS, LEVELS, SIZE = 40, 3, 5
NORMALISES = ["level", "children"]


class Logits:
    """Random logits that depend on the whole beginning, whoever asks in whatever order."""

    def __init__(self, users: int, scale: float = 2.0, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        self.tables = [scale * torch.randn(users, SIZE**level, SIZE, generator=random) for level in range(LEVELS)]
        self.rows = torch.zeros(users, 1, dtype=torch.int64)

    def __call__(self, step: Step) -> Tensor:
        if step.level == 0:
            self.rows = torch.zeros_like(step.codes)
        else:
            self.rows = self.rows.gather(1, step.parents) * SIZE + step.codes
        return self.tables[step.level].gather(1, self.rows[..., None].expand(-1, -1, SIZE))


@pytest.fixture
def codes() -> Tensor:
    return random_codes(ITEMS, LEVELS, SIZE, seed=0)


@pytest.fixture
def trie(codes: Tensor) -> Trie:
    return Trie(codes, SIZE)


def score(codes: Tensor, logits: Logits, user: int, item: int, normalise: str) -> float:
    """The definition: a loop over the levels of one item."""
    total, row = 0.0, 0
    for level in range(LEVELS):
        behind = (codes[:, :level] == codes[item, :level]).all(1) if normalise == "children" else slice(None)
        allowed = torch.unique(codes[behind][:, level])
        values = logits.tables[level][user, row]
        code = int(codes[item, level])
        total += float(values[code] - values[allowed].logsumexp(0))
        row = row * SIZE + code
    return total


@pytest.mark.parametrize("normalise", NORMALISES)
def test_every_item_has_the_score_of_its_codes(codes: Tensor, trie: Trie, normalise: str) -> None:
    logits = Logits(2)
    found = all_scores(trie, logits, 2, normalise)
    expected = [[score(codes, logits, user, item, normalise) for item in range(ITEMS)] for user in range(2)]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("normalise", NORMALISES)
def test_a_beam_of_all_items_is_exhaustive_scoring(trie: Trie, normalise: str) -> None:
    logits = Logits(6)
    ranked = beam_search(trie, logits, 6, ITEMS, normalise)
    scores = all_scores(trie, logits, 6, normalise)
    assert torch.equal(ranked.items, scores.sort(descending=True, stable=True).indices)
    assert torch.equal(ranked.scores, scores.sort(descending=True).values)


def test_with_children_the_probabilities_of_the_items_sum_to_one(trie: Trie) -> None:
    total = all_scores(trie, Logits(6), 6, "children").exp().sum(1)
    torch.testing.assert_close(total, torch.ones(6))
    assert bool((all_scores(trie, Logits(6), 6, "level").exp().sum(1) < 0.999).all())


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("normalise", NORMALISES)
def test_any_logits_give_items_alone(codes: Tensor, trie: Trie, normalise: str, scale: float) -> None:
    """More than 10^5 random logits: (1 + 5 + 25) · 5 for each of 700 users."""
    users = 700
    logits = Logits(users, scale)
    assert sum(table.numel() for table in logits.tables) > 1e5
    ranked = beam_search(trie, logits, users, 7, normalise)
    assert ranked.items.shape == (users, 7)
    assert int(ranked.items.min()) >= 0 and int(ranked.items.max()) < ITEMS
    assert all(len(set(row)) == 7 for row in ranked.items.tolist())
    assert bool((ranked.scores[:, 1:] <= ranked.scores[:, :-1]).all())


@pytest.mark.parametrize("normalise", NORMALISES)
def test_seen_items_are_left_out_and_the_others_keep_their_order(trie: Trie, normalise: str) -> None:
    logits = Logits(5)
    seen = torch.rand(5, ITEMS, generator=torch.Generator().manual_seed(1)) < torch.linspace(0, 1, 5)[:, None]
    ranked = beam_search(trie, logits, 5, ITEMS, normalise, seen)
    every = beam_search(trie, logits, 5, ITEMS, normalise)
    for user in range(5):
        kept = [item for item in every.items[user].tolist() if not seen[user, item]]
        assert ranked.items[user].tolist() == kept + [-1] * (ITEMS - len(kept))
        assert ranked.scores[user, : len(kept)].tolist() == [
            value for item, value in zip(every.items[user].tolist(), every.scores[user].tolist(), strict=True)
            if not seen[user, item]
        ]  # fmt: skip
        assert bool((ranked.scores[user, len(kept) :] == -torch.inf).all())


@pytest.mark.parametrize("left", [0, 1, 3])
def test_a_narrow_beam_is_never_full_of_what_was_seen(trie: Trie, left: int) -> None:
    """As many as the beam is wide are found while there are so many, whatever lies on the way."""
    seen = torch.ones(20, ITEMS, dtype=torch.bool)
    for user in range(20):
        seen[user, torch.randperm(ITEMS, generator=torch.Generator().manual_seed(user))[:left]] = False
    ranked = beam_search(trie, Logits(20), 20, 2, seen=seen)
    found = (ranked.items >= 0).sum(1)
    assert bool((found == min(left, 2)).all())
    for user in range(20):
        assert not any(seen[user, item] for item in ranked.items[user].tolist() if item >= 0)


def test_equal_scores_stand_in_the_order_of_their_codes(trie: Trie, codes: Tensor) -> None:
    ranked = beam_search(trie, Logits(1, 0.0), 1, ITEMS, "level")
    key = (codes * SIZE ** torch.arange(LEVELS - 1, -1, -1)).sum(1)
    assert ranked.items[0].tolist() == key.argsort().tolist()


def test_all_items_of_a_path_are_found_and_no_others(trie: Trie, codes: Tensor) -> None:
    paths = {()}
    for level in range(LEVELS):
        behind = {tuple(row[: level + 1].tolist()) for row in codes}
        found = set()
        for path in paths:
            node = 0
            for depth, code in enumerate(path):
                node = int(trie.children[depth][node, code])
            for code in range(SIZE):
                if int(trie.children[level][node, code]) >= 0:
                    found.add((*path, code))
        assert found == behind
        paths = found
    for item, row in enumerate(codes.tolist()):
        node = 0
        for depth, code in enumerate(row):
            node = int(trie.children[depth][node, code])
            assert node == int(trie.node_of[depth][item])
        assert int(trie.item_of[node]) == item


def test_leaves_are_counted_below_every_node(trie: Trie, codes: Tensor) -> None:
    seen = torch.zeros(2, ITEMS, dtype=torch.bool)
    seen[1, codes[:, 0] == 2] = True
    first = trie.leaves(seen)[0]
    assert first.sum(1).tolist() == [ITEMS, ITEMS - int((codes[:, 0] == 2).sum())]
    assert int(first[1, int(trie.children[0][0, 2])]) == 0
    assert torch.equal(trie.leaves()[0][0], torch.bincount(codes[:, 0]))


def test_one_level_and_one_item() -> None:
    assert beam_search(Trie(torch.tensor([[2], [0]]), 3), lambda step: torch.ones(1, 1, 3), 1, 5).items.tolist() == [
        [1, 0]
    ]
    assert (
        beam_search(Trie(torch.tensor([[0]]), 1), lambda step: torch.zeros(3, 1, 1), 3, 1).items.tolist() == [[0]] * 3
    )


def test_errors_name_the_argument(trie: Trie) -> None:
    with pytest.raises(ValueError, match="width: expected at least 1, got 0"):
        beam_search(trie, Logits(1), 1, 0)
    with pytest.raises(ValueError, match="normalise: expected one of level, children, got 'tree'"):
        beam_search(trie, Logits(1), 1, 3, "tree")
    with pytest.raises(ValueError, match=r"codes: must be unique, items 0 and 2 share \[1, 1\]"):
        Trie(torch.tensor([[1, 1], [0, 1], [1, 1]]), 2)
    with pytest.raises(ValueError, match=r"codes: expected \[items, levels\] of numbers from 0 to 1, got 2 to 2"):
        Trie(torch.tensor([[2]]), 2)
