"""Histories hold what came before, in the order of the source; training never sees what is asked about."""

import numpy as np
import pandas as pd
import pytest

from cora.data import Interactions, split
from cora.sequences import Sequences


def interactions(rows: list[tuple[str, str, int]]) -> Interactions:
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).assign(label=1)
    frame = frame.sort_values("timestamp", kind="stable").reset_index(drop=True)
    return Interactions(frame, {item: item for item in frame["item_id"]}, "made")


@pytest.fixture
def many() -> Interactions:
    random = np.random.default_rng(0)
    rows = [(f"u{random.integers(6)}", f"i{random.integers(15)}", int(random.integers(40))) for _ in range(150)]
    return interactions(rows)


def names(sequences: Sequences, items: np.ndarray) -> list[str]:
    return [sequences.item_ids[item] for item in items]


def test_leave_one_out_in_the_order_of_the_source() -> None:
    data = interactions([("a", "w", 5), ("b", "q", 1), ("a", "x", 5), ("a", "y", 5), ("a", "z", 5), ("b", "r", 2)])
    s = Sequences.of(split(data, "leave-last"))
    (test,), (valid,) = s.targets("test"), s.targets("valid")
    assert names(s, s.item[[test]]) == ["z"] and names(s, s.history(test)) == ["w", "x", "y"]
    assert names(s, s.item[[valid]]) == ["y"] and names(s, s.history(valid)) == ["w", "x"]
    assert names(s, s.history(test, 2)) == ["x", "y"]
    assert [names(s, one) for one in s.training()] == [["w", "x"], ["q", "r"]]
    assert names(s, np.flatnonzero(s.seen(np.array([test]))[0])) == ["w", "x", "y"]


@pytest.mark.parametrize("by", ["leave-last", "ratio"])
def test_training_holds_train_rows_alone_and_histories_what_came_before(many: Interactions, by: str) -> None:
    parts = split(many, by)
    s = Sequences.of(parts)
    for user, items in zip(s.user_ids, s.training(), strict=True):
        own = parts.train[parts.train["user_id"] == user]
        assert names(s, items) == own["item_id"].tolist()
    for part in ("valid", "test"):
        for event in s.targets(part):
            user = s.user_ids[s.user[event]]
            whole = many.frame.loc[many.frame["user_id"] == user, "item_id"].tolist()
            history = names(s, s.history(event))
            assert whole[: len(history) + 1] == [*history, s.item_ids[s.item[event]]]
            if part == "valid" and by == "leave-last":
                assert len(history) == (parts.train["user_id"] == user).sum()


def test_a_first_row_is_no_target() -> None:
    data = interactions([("a", "x", 1), ("a", "y", 2), ("a", "z", 3), ("a", "w", 4), ("b", "z", 5), ("b", "x", 6)])
    s = Sequences.of(split(data, "ratio", ratios=(0.5, 0.2, 0.3)))
    assert [(s.user_ids[s.user[event]], s.item_ids[s.item[event]]) for event in s.targets("test")] == [("b", "x")]


def test_a_catalogue_of_ones_own() -> None:
    data = interactions([("a", "x", 1), ("a", "y", 2), ("a", "z", 3)])
    s = Sequences.of(split(data, "leave-last"), ["z", "q", "y", "x"])
    assert names(s, s.item) == ["x", "y", "z"] and s.item.tolist() == [3, 2, 0]
    with pytest.raises(ValueError, match="item_ids: 'x' is not among the items"):
        Sequences.of(split(data, "leave-last"), ["z", "y"])
