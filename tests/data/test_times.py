"""What counts as a time, and what is refused rather than guessed."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from cora.data import load_interactions

DAY = 1405641600  # 2014-07-18


def read(path: Path, values: list[Any], name: str = "t.csv") -> list[int]:
    """The timestamps of a file with one row for each value, in the order of the rows."""
    users = [str(row) for row in range(len(values))]
    if name.endswith(".csv"):
        rows = [f"{user},1,5,{value},Alien" for user, value in zip(users, values, strict=True)]
        (path / name).write_text("\n".join(["user_id,item_id,rating,timestamp,title", *rows, ""]), encoding="utf-8")
    else:
        one = dict(user_id=users, item_id=[1] * len(users), rating=[5.0] * len(users), title=["Alien"] * len(users))
        parquet.write_table(pa.table({**one, "timestamp": values}), path / name)
    frame = load_interactions(path / name).frame
    frame["user_id"] = frame["user_id"].astype(int)
    return frame.sort_values("user_id")["timestamp"].tolist()


@pytest.mark.parametrize(
    ("text", "second"),
    [
        ("2014-07-18", 0),
        ("20140718T00", 0),
        ("2014-199", 0),
        ("2014-W29-5", 0),
        ("2014W295T01:00", 3600),
        ("2014-07-18 10", 36000),
        ("2014-07-18T10:20", 37200),
        ("2014-07-18t10:20z", 37200),
        ("2014-07-18 10:20:30", 37230),
        ("20140718T102030Z", 37230),
        ("2014-07-18 10:20:30.5", 37230),
        ("2014-07-18T10:20:30.123456789012345", 37230),
        ('"2014-07-18T10:20:30,25"', 37230),
        ("2014-07-18 10:20:30 UTC", 37230),
        ("2014-07-18T10:20:30+02", 30030),
        ("2014-07-18T10:20:30.000+0200", 30030),
        ("2014-07-18 10:20:30.25 -09:30", 71430),
        ("2014-07-18T24:00", 86400),
        (" 2014-07-18 ", 0),
    ],
)
def test_iso_8601(tmp_path: Path, text: str, second: int) -> None:
    assert read(tmp_path, [text]) == [DAY + second]


def test_forms_of_dates_may_be_mixed(tmp_path: Path) -> None:
    texts = ["2014-07-18", "2014-07-18 00:00:01.25", "2014-07-18T00:00:02Z", "1969-12-31T23:59:59.5+00:00"]
    assert read(tmp_path, texts) == [DAY, DAY + 1, DAY + 2, -1]


@pytest.mark.parametrize(
    "text",
    ["2014-02-30", "2014-07-18T25:00", "2014-07-18T24:01", "2014-366", "2014-W53-1", "18.07.2014", "07/18/2014"]
    + ["2014-07", "2014-7-18", "2014-07-18T10:20:30+2", "2014-07-18T10:2030", "yesterday", "", "NaT", "inf", "1e400x"]
    + ["٢٠١٤-٠٧-١٨", "0000-01-01", "2014-07-18T10:20:60", "2014-07-18T10:20+24:00", "0x10", "1_000"],
)
def test_everything_else_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="t.csv, line 3: timestamp .*, got") as caught:
        read(tmp_path, ["2014-07-18", text])
    assert repr(text) in str(caught.value) and len(str(caught.value)) <= 300


def test_dates_and_numbers_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2: timestamp must be a number, as in other rows, got '2014-07-18'"):
        read(tmp_path, ["2014-07-18", "1405641600"])


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        (["0", "-1", "1405641600", "-1e3", "1.4056416e9"], [0, -1, DAY, -1000, DAY]),
        (["1405641600.0", "1405641600.999", "-0.5"], [DAY, DAY, -1]),
        (["1405641600000", "0", "-1405641600001"], [DAY, 0, -DAY - 1]),
        (["1405641600999999", "-1405641600000000"], [DAY, -DAY]),
        (["1405641600000000001", "1405641599999999999"], [DAY, DAY - 1]),
        (["99999999999", "-99999999999"], [99999999999, -99999999999]),
    ],
)
def test_the_unit_of_numbers_is_told_by_their_size(tmp_path: Path, values: list[str], seconds: list[int]) -> None:
    assert read(tmp_path, values) == seconds
    assert read(tmp_path, values, "text.parquet") == seconds
    floats = [float(value) for value in values]
    if max(map(abs, floats)) < 1e17:
        assert read(tmp_path, floats, "float.parquet") == seconds
    if all(value.lstrip("-").isdigit() for value in values):
        assert read(tmp_path, [int(value) for value in values], "int.parquet") == seconds
        decimals = pa.array([int(value) for value in values]).cast(pa.decimal128(19, 0)).cast(pa.decimal128(25, 3))
        assert read(tmp_path, decimals, "decimal.parquet") == seconds  # type: ignore[arg-type]


def test_two_units_in_a_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 4: .* one unit, and it is seconds in line 3, got '1405641600000'"):
        read(tmp_path, ["0", "1405641600", "1405641600000"])


@pytest.mark.parametrize("value", ["1e20", "1e999999999", "-9223372036854775809", "9223372036854775808.5"])
def test_numbers_beyond_int64(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match="line 3: timestamp must be within int64, got"):
        read(tmp_path, ["100", value])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e19, None])
def test_floats_that_are_no_time(tmp_path: Path, value: float | None) -> None:
    with pytest.raises(ValueError, match="t.parquet, row 2: timestamp must be a"):
        read(tmp_path, [100.0, value], "t.parquet")


@pytest.mark.parametrize("value", ["2014", "201407", "20140718", "2014071810", "201407181020", "20140718102030"])
def test_dates_without_separators_are_not_taken_for_seconds(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match=f"line 2: timestamp '{value}' may be a date without separators or "):
        read(tmp_path, [value])
    with pytest.raises(ValueError, match=f"row 1: timestamp {value} may be a date without separators or "):
        read(tmp_path, [int(value), int(value) + 1], "t.parquet")


def test_small_seconds_that_are_no_date_are_seconds(tmp_path: Path) -> None:
    assert read(tmp_path, ["2014", "3000"]) == [2014, 3000]
    assert read(tmp_path, ["20141318"]) == [20141318]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "+02:00"])
def test_parquet_timestamps(tmp_path: Path, unit: str, zone: str | None) -> None:
    values = pa.array([DAY, -1, 0], pa.timestamp("s")).cast(pa.timestamp(unit)).cast(pa.timestamp(unit, zone))
    moments = [one.as_py().timestamp() if zone else one.as_py() for one in values]
    seconds = [int(one) for one in moments] if zone else [DAY, -1, 0]
    assert read(tmp_path, values, "t.parquet") == seconds  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_parquet_dates(tmp_path: Path, kind: pa.DataType) -> None:
    values = pa.array([datetime.date(2014, 7, 18), datetime.date(1969, 12, 31)], kind)
    assert read(tmp_path, values, "t.parquet") == [DAY, -86400]  # type: ignore[arg-type]


def test_old_parquet_times_beyond_what_nanoseconds_hold(tmp_path: Path) -> None:
    frame = pd.DataFrame(dict(user_id=["a", "b"], item_id=1, rating=5.0, title="Alien"))
    frame["timestamp"] = pd.to_datetime(["1600-01-01", "2500-01-01"]).astype("datetime64[us]")
    frame.to_parquet(tmp_path / "t.parquet", use_deprecated_int96_timestamps=True)
    assert load_interactions(tmp_path / "t.parquet").frame["timestamp"].tolist() == [-11676096000, 16725225600]


def test_a_time_that_python_does_not_have_can_be_shown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="t.parquet, row 1: user_id must be integer or text, .*got -99999999999999"):
        table = pa.table({"user_id": pa.array([-99999999999999], pa.timestamp("s")), "item_id": [1], "rating": [5]})
        parquet.write_table(
            table.append_column("timestamp", [[1]]).append_column("title", [["Alien"]]), tmp_path / "t.parquet"
        )
        load_interactions(tmp_path / "t.parquet")


def test_other_types_are_no_times(tmp_path: Path) -> None:
    for values in ([True, False], [[1], [2]], [b"1", b"2"], [datetime.timedelta(1)] * 2, [datetime.time(1)] * 2):
        with pytest.raises(ValueError, match="t.parquet, row 1: timestamp must be a date .* not of the type"):
            read(tmp_path, values, "t.parquet")


def test_rows_of_one_second_stand_in_their_order(tmp_path: Path) -> None:
    frame = pd.DataFrame(dict(user_id=[1, 2, 3], item_id=1, rating=5, title="Alien"))
    frame["timestamp"] = np.array([1405641600900, 1405641600100, 1405641600500])
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert load_interactions(tmp_path / "t.csv").frame["user_id"].tolist() == [2, 3, 1]
