"""Published splits: their days, their labels, whom they leave out."""

from typing import Any

import pandas as pd
import pytest

from cora.data import RECIPES, Interactions, load_interactions, split, with_histories
from cora.data.recipes import Recipe


def interactions(rows: list[tuple[Any, Any, float, str]]) -> Interactions:
    """(user, item, rating, time), in time order."""
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    frame["timestamp"] = [int(pd.Timestamp(time, tz="UTC").timestamp()) for time in frame["timestamp"]]
    frame["label"] = (frame["rating"] >= 3).astype("int64")
    return Interactions(frame, {item: f"film {item}" for item in frame["item_id"]}, "mine")


def test_collm_ml_1m_goes_by_months_and_drops_the_rest() -> None:
    times = ["2001-05-31 23:59:59", "2001-06-01", "2002-03-31 23:59:59", "2002-04-01", "2002-08-31 23:59:59"]
    times += ["2002-09-01", "2003-01-31 23:59:59", "2003-02-01"]
    splits = split(interactions([(1, item, 3 + item % 3, time) for item, time in enumerate(times)]), "collm-ml-1m")
    assert [part["item_id"].tolist() for part in splits.parts().values()] == [[1, 2], [3, 4], [5, 6]]
    assert splits.train["label"].tolist() == [1, 1] and splits.valid["label"].tolist() == [0, 1]
    test = splits.test
    assert test is not None
    histories = with_histories(test, splits, 10)["history"].tolist()
    assert histories == [[1, 2, 4], [1, 2, 4, 5]]  # row 0, before the window, is nobody's past


def test_more_than_is_counted_once_in_the_window() -> None:
    recipe = Recipe("mine", "2017-01-01", "2017-12-01", None, "2018-01-01", 5.0, more_than=2)
    rows = [("a", "x", 5.0, "2016-12-31"), ("b", "x", 5.0, "2016-12-31")]
    rows += [(user, item, 5.0, "2017-03-01") for user in "abc" for item in "xy"]  # x and y have 3, a and b and c 2
    rows += [("a", "z", 4.0, "2017-12-03"), ("b", "x", 4.0, "2017-12-04"), ("b", "y", 5.0, "2018-01-01")]
    frame = interactions(rows).frame
    part = recipe.parts(frame)
    # a has 3 rows in the window, one of them of z, which has 1; b has 3 there; c has 2.
    assert [(one.user_id, one.item_id) for one in frame[part == 0].itertuples()] == [*zip("aabb", "xyxy", strict=True)]
    assert part[8:].tolist() == [3, 2, 3]  # of one row left from December on the first half is none
    assert recipe.labelled(frame)["label"].tolist() == [1] * 8 + [0, 0, 1]


def test_amazon_books_halve_december() -> None:
    december = [(user, item, 5.0, f"2017-12-{1 + user:02}") for user in range(22) for item in range(3)]
    rows = [(user, item, 4.0, "2017-06-01") for user in range(22) for item in range(22)]
    splits = split(interactions(rows + december), "collm-amazon-book")
    assert [len(part) for part in splits.parts().values()] == [22 * 22, 33, 33]
    assert splits.train["label"].sum() == 0 and splits.valid["label"].sum() == 33


def test_labels_stay_where_there_are_no_ratings() -> None:
    source = interactions([(1, item, 5, time) for item, time in enumerate(["2001-07-01", "2002-05-01", "2002-10-01"])])
    source.frame["label"] = [0, 1, 0]
    splits = split(Interactions(source.frame.drop(columns="rating"), source.titles, "mine"), "collm-ml-1m")
    assert [part["label"].tolist() for part in splits.parts().values()] == [[0], [1], [0]]


def test_other_data_leave_it_empty() -> None:
    with pytest.raises(ValueError, match="splitting mine by 'collm-ml-1m' leaves train, valid, test empty: rows are"):
        split(interactions([(1, 2, 5, "2014-07-18"), (1, 3, 5, "2014-07-19")]), "collm-ml-1m")


@pytest.mark.slow
def test_movielens_1m_as_published() -> None:
    try:
        loaded = load_interactions("movielens-1m")
    except RuntimeError as error:
        pytest.skip(f"MovieLens-1M could not be fetched: {error}")
    assert len(loaded.frame) == 1_000_209 and loaded.frame["user_id"].nunique() == 6040
    assert loaded.frame["item_id"].nunique() == 3706 and loaded.frame["label"].sum() == 575_281
    assert loaded.titles["Toy Story (1995)"] == "Toy Story (1995)"
    splits = split(loaded, "collm-ml-1m")
    assert [len(part) for part in splits.parts().values()] == [33_891, 10_401, 7_331]
    together = pd.concat(splits.parts().values())
    assert (together["user_id"].nunique(), together["item_id"].nunique()) == (838, 3_255)
    assert RECIPES["collm-ml-1m"].positive_rating == 4
