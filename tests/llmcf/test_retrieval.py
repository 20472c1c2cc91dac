"""No row is told of itself, of its own moment or of what comes later; the rest is the nearest of each label."""

from typing import Any

import numpy as np
import pytest

from cora.methods.llmcf.retrieval import Examples, Retrieved, retrieve


def made(seed: int = 0, examples: int = 60, rows: int = 90, moments: int = 25) -> tuple[tuple[Any, ...], Examples]:
    """Rows and examples at few moments, so that many share theirs, with vectors of which many are alike."""
    random = np.random.default_rng(seed)
    times = np.sort(random.integers(0, moments, examples))
    vectors = [random.integers(-1, 2, (count, 3)) / 4 for count in (examples, examples, rows, rows)]
    labels = random.integers(0, 2, examples)
    return (random.integers(0, moments, rows), vectors[2], vectors[3]), Examples(times, labels, *vectors[:2])


def by_hand(rows: tuple[Any, ...], examples: Examples, k: int) -> list[set[int]]:
    """Of each row the places of its examples, one row and one label at a time."""
    found = []
    for time, history, target in zip(*rows, strict=True):
        chosen: set[int] = set()
        for label in (0, 1):
            allowed = [
                (-(0.5 * history @ examples.history[place] + 0.5 * target @ examples.target[place]), place)
                for place in range(len(examples.times))
                if examples.labels[place] == label and examples.times[place] < time
            ]
            chosen |= {place for _, place in sorted(allowed)[: k // 2]}
        found.append(chosen)
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [2, 4, 6])
def test_brute_force(seed: int, k: int) -> None:
    rows, examples = made(seed)
    found = retrieve(*rows, examples, k)
    assert [{place for place in row if place >= 0} for row in found.places.tolist()] == by_hand(rows, examples, k)
    assert (found.places < 0).any()  # some rows have too few


def test_no_example_is_of_the_rows_moment_or_later() -> None:
    rows, examples = made()
    found = retrieve(*rows, examples, 4)
    for time, places in zip(rows[0], found.places, strict=True):
        assert (examples.times[places[places >= 0]] < time).all()


def test_a_row_that_is_an_example_is_not_told_of_itself() -> None:
    """A row's own example would be the most similar of all."""
    _, examples = made(moments=1000)
    found = retrieve(examples.times, examples.history, examples.target, examples, 4)
    assert not (found.places == np.arange(len(examples.times))[:, None]).any()
    assert (found.places[10:] >= 0).any(1).all()


def test_later_examples_change_nothing() -> None:
    rows, examples = made(moments=1000)
    expected = retrieve(*rows, examples, 4)
    for moment in (200, 500, 900):
        later = examples.times >= moment
        random = np.random.default_rng(1)
        other = Examples(
            examples.times,
            np.where(later, 1 - examples.labels, examples.labels),
            np.where(later[:, None], random.normal(size=examples.history.shape), examples.history),
            np.where(later[:, None], random.normal(size=examples.target.shape), examples.target),
        )
        found, earlier = retrieve(*rows, other, 4), rows[0] <= moment
        assert_same(Retrieved(*(one[earlier] for one in found)), Retrieved(*(one[earlier] for one in expected)))
        assert (found.places != expected.places).any()


def assert_same(found: Retrieved, expected: Retrieved) -> None:
    assert np.array_equal(found.places, expected.places)
    np.testing.assert_allclose(found.similarities, expected.similarities, rtol=0, atol=1e-7)


def test_half_of_each_label_at_most_and_what_is_not_there_is_first() -> None:
    rows, examples = made()
    found = retrieve(*rows, examples, 6)
    there = found.places >= 0
    for label in (0, 1):
        assert (((examples.labels[found.places] == label) & there).sum(1) <= 3).all()
    assert (np.diff(there.astype(int), axis=1) >= 0).all()
    assert (found.similarities[~there] == 0).all()
    alike = np.where(there, found.similarities, -9)
    assert (np.diff(alike, axis=1) >= 0).all()


def test_of_equal_ones_the_older_is_nearer() -> None:
    same = np.ones((6, 2)) / 2
    examples = Examples(np.arange(6), np.array([0, 1, 0, 1, 0, 1]), same, same)
    found = retrieve(np.array([9, 3, 1, 0]), same[:4], same[:4], examples, 4)
    assert found.places.tolist() == [[3, 2, 1, 0], [-1, 2, 1, 0], [-1, -1, -1, 0], [-1, -1, -1, -1]]


def test_in_batches_and_alone_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, examples = made()
    expected = retrieve(*rows, examples, 4)
    monkeypatch.setattr("cora.methods.llmcf.retrieval._ROWS", 7)
    assert_same(retrieve(*rows, examples, 4), expected)
    for row in range(0, 90, 11):
        alone = retrieve(*(one[row : row + 1] for one in rows), examples, 4)
        assert_same(alone, Retrieved(*(one[row : row + 1] for one in expected)))


def test_none_at_all() -> None:
    rows, examples = made()
    none = Examples(*(one[:0] for one in examples))
    assert (retrieve(*rows, none, 4).places == -1).all()
    assert retrieve(*rows, examples, 0).places.shape == (90, 0)
    assert retrieve(*(one[:0] for one in rows), examples, 4).places.shape == (0, 4)


def test_its_errors() -> None:
    rows, examples = made()
    for k in (3, -2):
        with pytest.raises(ValueError, match=f"k: expected an even number from 0, half of it of each label, got {k}"):
            retrieve(*rows, examples, k)
    with pytest.raises(ValueError, match="examples: expected in time order"):
        retrieve(*rows, examples._replace(times=examples.times[::-1]), 4)
