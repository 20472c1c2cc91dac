from itertools import pairwise
from typing import Any

import pandas as pd
import pytest

from cora.data import Interactions, Splits, split


def interactions(times: list[int], users: list[int] | None = None) -> Interactions:
    """Rows in the order given; item = row number, every second row positive."""
    frame = pd.DataFrame(
        {
            "user_id": users or [1] * len(times),
            "item_id": range(len(times)),
            "label": [row % 2 for row in range(len(times))],
            "timestamp": times,
        }
    )
    return Interactions(frame, {row: f"film {row}" for row in range(len(times))}, "mine")


def items(splits: Splits) -> list[list[int]]:
    return [frame["item_id"].tolist() for frame in splits.parts().values()]


def test_ratio() -> None:
    assert items(split(interactions(list(range(10))))) == [[0, 1, 2, 3, 4, 5, 6, 7], [8], [9]]
    halves = split(interactions(list(range(10))), ratios=(0.5, 0.3, 0.2))
    assert items(halves) == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9]]
    assert halves.valid.index.tolist() == [0, 1, 2]


def test_ratio_tears_no_moment() -> None:
    splits = split(interactions([0, 1, 2, 3, 4, 5, 7, 7, 7, 9]))
    assert items(splits) == [[0, 1, 2, 3, 4, 5], [6, 7, 8], [9]]
    for earlier, later in pairwise(splits.parts().values()):
        assert earlier["timestamp"].max() < later["timestamp"].min()


def test_dates() -> None:
    days = [86400 * day for day in (0, 1, 1, 2, 3)]
    splits = split(interactions(days), "dates", valid_from="1970-01-02", test_from="1970-01-03")
    assert items(splits) == [[0], [1, 2], [3, 4]]
    shifted = split(interactions(days), "dates", valid_from="1970-01-02T01:00+01:00", test_from="1970-01-03")
    assert items(shifted) == items(splits)


def test_leave_last() -> None:
    users = [1, 2, 1, 3, 1, 2, 1, 2, 3]
    splits = split(interactions([0, 1, 2, 3, 4, 5, 6, 6, 7], users), "leave-last")
    assert items(splits) == [[0, 1, 2, 3, 8], [4, 5], [6, 7]]  # user 3 has too few rows to leave any
    splits = split(interactions(list(range(7)), [1] * 6 + [2]), "leave-last", last=2)
    assert items(splits) == [[0, 1, 6], [2, 3], [4, 5]]


def test_a_source_already_split_keeps_its_split() -> None:
    source = interactions([0, 1, 2, 3])
    source.frame["split"] = ["train", "test", "train", "valid"]
    assert items(split(source)) == [[0, 2], [3], [1]]
    with pytest.raises(ValueError, match="mine is already split.*got by='leave-last'"):
        split(source, "leave-last")


def test_unknown_by() -> None:
    with pytest.raises(ValueError, match="by: expected 'ratio', 'dates' or 'leave-last', got 'random'"):
        split(interactions([0, 1, 2]), "random")


@pytest.mark.parametrize("ratios", [(0.8, 0.2), (0.8, 0.1, 0.2), (1.0, 0.1, -0.1)])
def test_wrong_ratios(ratios: Any) -> None:
    with pytest.raises(ValueError, match="ratios: expected three positive shares that sum to 1, got"):
        split(interactions(list(range(10))), ratios=ratios)


def test_wrong_dates() -> None:
    source = interactions([0, 1, 2])
    with pytest.raises(ValueError, match="test_from: by='dates' needs it"):
        split(source, "dates", valid_from="1970-01-01")
    with pytest.raises(ValueError, match="valid_from: expected a date such as 2002-04-01, got 'soon'"):
        split(source, "dates", valid_from="soon", test_from="1970-01-01")
    with pytest.raises(ValueError, match="valid_from must be before test_from, got 1970-01-02 and 1970-01-01"):
        split(source, "dates", valid_from="1970-01-02", test_from="1970-01-01")


def test_wrong_last() -> None:
    with pytest.raises(ValueError, match="last: expected at least 1, got 0"):
        split(interactions([0, 1, 2]), "leave-last", last=0)


@pytest.mark.parametrize(
    ("times", "by", "options", "empty"),
    [
        ([5, 5, 5, 5], "ratio", {}, "train, valid"),
        ([1, 2], "ratio", {}, "valid"),
        ([0, 1], "dates", {"valid_from": "1970-01-01", "test_from": "1980-01-01"}, "train, test"),
        ([0, 1], "leave-last", {}, "valid, test"),
    ],
)
def test_empty_part(times: list[int], by: str, options: dict[str, Any], empty: str) -> None:
    with pytest.raises(ValueError, match=f"splitting mine by '{by}' leaves {empty} empty: rows are"):
        split(interactions(times), by, **options)
