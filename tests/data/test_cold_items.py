"""Items without a training row: drawn, gone from train and from the past, half for selection, half for the report."""

import numpy as np
import pandas as pd
import pytest

from cora.data import Splits, split, with_cold_items, with_histories
from cora.data.interactions import Interactions


@pytest.fixture
def splits() -> Splits:
    """30 items, 900 rows; item 99 comes new in valid and test."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame({
        "user_id": random.integers(0, 10, 900), "item_id": random.integers(0, 30, 900),
        "label": random.integers(0, 2, 900), "timestamp": np.arange(900),
    })  # fmt: skip
    frame.loc[[750, 850], "item_id"] = 99
    return split(Interactions(frame, {}, "mine"))


def items(frame: pd.DataFrame | None) -> set[int]:
    assert frame is not None
    return set(frame["item_id"])


def test_a_fifth_of_the_items_has_no_training_row(splits: Splits) -> None:
    cold = with_cold_items(splits, 0.2, seed=3)
    gone = items(splits.train) - items(cold.train)
    assert len(gone) == 6 and not cold.train["cold_item"].any()
    assert cold.train.drop(columns="cold_item").equals(
        splits.train[~splits.train["item_id"].isin(gone)].reset_index(drop=True)
    )
    again, other = with_cold_items(splits, 0.2, seed=3), with_cold_items(splits, 0.2, seed=4)
    assert again.train.equals(cold.train) and items(other.train) != items(cold.train)


def test_no_part_sees_the_cold_items_of_the_other(splits: Splits) -> None:
    cold = with_cold_items(splits, 0.2)
    test = cold.test
    assert test is not None
    gone = items(splits.train) - items(cold.train)
    of_valid, of_test = (items(frame) & gone for frame in (cold.valid, test))
    assert not of_valid & of_test and 1 <= len(of_valid) <= 3 and 1 <= len(of_test) <= 3
    for frame in (cold.valid, test):
        assert (frame["cold_item"] == frame["item_id"].isin(gone | {99})).all()
    others = splits.valid[~splits.valid["item_id"].isin(gone - of_valid)].reset_index(drop=True)
    assert cold.valid.drop(columns="cold_item").equals(others)


def test_the_draw_is_by_the_items_of_train_alone(splits: Splits) -> None:
    """What train loses does not depend on what else lies beside it: other rows may be scored later."""
    without = with_cold_items(Splits(splits.train, splits.valid[:20], None), 0.2)
    cold = with_cold_items(splits, 0.2)
    assert without.train.equals(cold.train) and without.test is None
    assert without.valid.equals(cold.valid[: len(without.valid)])


def test_training_rows_of_cold_items_are_nobodys_past(splits: Splits) -> None:
    cold = with_cold_items(splits, 0.2)
    test = cold.test
    assert test is not None
    gone = items(splits.train) - items(cold.train)
    histories = with_histories(cold.train, cold, 100)["history"]
    assert not {item for history in histories for item in history} & gone
    past = {item for history in with_histories(test, cold, 100)["history"] for item in history}
    assert past & gone <= items(cold.valid) | items(test) and past & gone


def test_text_ids(splits: Splits) -> None:
    named = [frame.astype({"item_id": str}) for frame in splits.parts().values()]
    cold = with_cold_items(Splits(*named), 0.2)
    assert len(items(named[0]) - items(cold.train)) == 6


@pytest.mark.parametrize(("share", "match"), [
    (0.0, "above 0 and below 1, got 0.0"), (1.0, "above 0 and below 1"), (0.01, "expected 2 items at least, .* of 30"),
    (0.99, "leaves train empty"),
])  # fmt: skip
def test_wrong_shares(splits: Splits, share: float, match: str) -> None:
    with pytest.raises(ValueError, match=f"cold_share: .*{match}"):
        with_cold_items(splits, share)
