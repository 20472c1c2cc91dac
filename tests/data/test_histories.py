import random

import numpy as np
import pandas as pd
import pytest

from cora.data import Splits, add_histories, liked_before, pasts


def test_histories_hold_only_the_past() -> None:
    frame = pd.DataFrame(
        {
            "user_id": [1, 2, 1, 1, 1, 2, 1],
            "item_id": [10, 10, 11, 12, 13, 14, 15],
            "label": [1, 1, 0, 1, 1, 0, 1],
            "timestamp": [1, 1, 2, 3, 3, 4, 5],
        }
    )
    splits = add_histories(Splits(frame[:3], frame[3:6].reset_index(drop=True), frame[6:].reset_index(drop=True)))
    histories = [part["history"].tolist() for part in splits.parts().values()]
    # Items 12 and 13 were liked in the same second: neither is the other's past. The past goes on over the borders.
    assert histories == [[[], [], [10]], [[10], [10], [10]], [[10, 12, 13]]]
    assert "history" not in frame
    newest = add_histories(Splits(frame, frame[:0], None), max_history=2)
    assert newest.train["history"].tolist()[-1] == [12, 13]
    assert newest.test is None


def test_history_never_holds_the_item_itself() -> None:
    frame = pd.DataFrame({"user_id": [1] * 4, "item_id": [10, 11, 10, 12], "label": [1] * 4, "timestamp": [1, 2, 3, 4]})
    histories = add_histories(Splits(frame, frame[:0], None), max_history=1).train["history"].tolist()
    assert histories == [[], [10], [11], [10]]


def test_no_history_asked_for() -> None:
    frame = pd.DataFrame({"user_id": [1] * 4, "item_id": range(4), "label": [1] * 4, "timestamp": range(4)})
    splits = add_histories(Splits(frame, frame[:0], None), max_history=0)
    assert splits.train["history"].tolist() == [[]] * 4
    with pytest.raises(ValueError, match="max_history: expected at least 0, got -1"):
        add_histories(splits, max_history=-1)


@pytest.mark.parametrize("text_ids", [False, True])
def test_histories_equal_the_definition(text_ids: bool) -> None:
    random.seed(0)
    rows = [(random.randrange(5), random.randrange(12), random.randrange(2), random.randrange(40)) for _ in range(200)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "label", "timestamp"]).sort_values(
        "timestamp", kind="stable", ignore_index=True
    )
    if text_ids:
        frame["user_id"] = frame["user_id"].astype(str)
        frame["item_id"] = frame["item_id"].astype(str)
    parts = np.array_split(np.arange(200), 3)
    splits = add_histories(Splits(*(frame.iloc[part].reset_index(drop=True) for part in parts)), max_history=3)
    histories = [history for part in splits.parts().values() for history in part["history"]]
    events = list(frame.itertuples(index=False))
    for row, history in zip(events, histories, strict=True):
        past = [
            other.item_id
            for other in events
            if other.user_id == row.user_id
            and other.label == 1
            and other.timestamp < row.timestamp
            and other.item_id != row.item_id
        ]
        assert history == past[-3:]


@pytest.mark.parametrize("text_ids", [False, True])
def test_pasts_equal_the_definition_whatever_the_order_of_what_is_known(text_ids: bool) -> None:
    random.seed(1)
    rows = [(random.randrange(5), random.randrange(9), random.randrange(2), random.randrange(-9, 9)) for _ in range(90)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "label", "timestamp"])
    if text_ids:
        frame = frame.astype({"user_id": str, "item_id": str})
    known = frame[20:]
    items, labels = pasts(frame, known)
    events = sorted(known.itertuples(index=False), key=lambda one: one.timestamp)
    for row, item, label in zip(frame.itertuples(index=False), items, labels, strict=True):
        past = [
            (other.item_id, other.label)
            for other in events
            if other.user_id == row.user_id and other.timestamp < row.timestamp and other.item_id != row.item_id
        ]
        assert list(zip(item, label, strict=True)) == past


def test_the_whole_past_is_that_before_the_last_moment() -> None:
    known = pd.DataFrame({"user_id": [1, 1, 2], "item_id": [3, 4, 5], "label": [1, 1, 1], "timestamp": [-5, 8, 9]})
    last = np.iinfo(np.int64).max
    rows = pd.DataFrame({"user_id": [1, 2, 3], "item_id": [7, 7, 7], "timestamp": [last, last, last]})
    assert liked_before(rows, known, 10) == [[3, 4], [5], []]
    assert liked_before(rows, known[:0], 10) == [[], [], []]


@pytest.mark.parametrize("newest", [0, 1, 3, 100])
def test_the_newest_of_a_past_are_its_end(newest: int) -> None:
    random.seed(2)
    rows = [(random.randrange(3), random.randrange(4), random.randrange(2), random.randrange(30)) for _ in range(80)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "label", "timestamp"])
    whole, parts = pasts(frame, frame), pasts(frame, frame, newest)
    for all_of_it, part in zip(whole, parts, strict=True):
        assert part.tolist() == [one[max(0, len(one) - newest) :] for one in all_of_it.tolist()]
        assert len(part) == 80 and part.offsets.dtype == np.int64 and part[-1].tolist() == part.tolist()[-1]
    with pytest.raises(IndexError):
        whole[0][80]
