"""Ids come back as they were written, or not at all."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from cora.data import load_interactions

BORDERS = [2**63 - 1, -(2**63), 0, -1]


def from_text(path: Path, ids: list[str]) -> list[Any]:
    rows = ["user_id,item_id,rating,timestamp,title", *(f'"{one}",1,5,{row},A' for row, one in enumerate(ids, 100))]
    (path / "t.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return list(load_interactions(path / "t.csv").frame["user_id"])


def from_parquet(path: Path, ids: Any) -> list[Any]:
    n = len(ids)
    more = dict(item_id=[1] * n, rating=[5] * n, timestamp=list(range(100, 100 + n)), title=["A"] * n)
    parquet.write_table(pa.table({"user_id": ids, **more}), path / "t.parquet")
    return list(load_interactions(path / "t.parquet").frame["user_id"])


def from_json(path: Path, ids: list[Any]) -> list[Any]:
    rows = [dict(user_id=one, item_id=1, rating=5, timestamp=row, title="A") for row, one in enumerate(ids, 100)]
    (path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(load_interactions(path / "t.jsonl").frame["user_id"])


def test_whole_numbers_in_text_are_integers_up_to_the_borders(tmp_path: Path) -> None:
    assert from_text(tmp_path, list(map(str, BORDERS))) == BORDERS


@pytest.mark.parametrize(
    "ids",
    [["1", "01"], ["1", "+1"], ["0", "-0"], ["1", "1.0"], ["1", "1e0"], ["9223372036854775808", "1"], ["1", "１"]]
    + [["1", "٣"], ["é", "e\u0301"], ["a\rb", "a\nb"], ["NA", "nan"], ["None", "null"], ["a", "A"], ["\ufeff1", "1"]],
)
def test_ids_that_are_no_whole_numbers_stay_the_text_they_are(tmp_path: Path, ids: list[str]) -> None:
    assert from_text(tmp_path, ids) == ids
    assert from_parquet(tmp_path, ids) == ids
    assert from_json(tmp_path, ids) == ids


@pytest.mark.parametrize("one", [" 1", "1 ", "\ta", "a\n", "\u2003a", "a\u2028", "a\0b"])
def test_ids_with_blanks_around_them_or_a_zero_byte_are_refused(tmp_path: Path, one: str) -> None:
    with pytest.raises(ValueError, match="user_id must not begin or end in a blank or hold a zero byte, got"):
        from_text(tmp_path, ["1", one])
    with pytest.raises(ValueError, match="t.parquet, row 2: user_id must not begin or end"):
        from_parquet(tmp_path, ["1", one])


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()])
def test_integers_of_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    assert from_parquet(tmp_path, pa.array([1, 0, 127], kind)) == [1, 0, 127]


def test_integers_beyond_int64_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="t.parquet, row 2: user_id must be within int64 .*, got 9223372036854775808"):
        from_parquet(tmp_path, pa.array([1, 2**63], pa.uint64()))
    with pytest.raises(ValueError, match="t.jsonl, line 2: user_id must be within int64, got 9223372036854775808"):
        from_json(tmp_path, [1, 2**63])


def test_encodings_of_parquet_do_not_show(tmp_path: Path) -> None:
    assert from_parquet(tmp_path, pa.array(["b", "a", "b"]).dictionary_encode()) == ["b", "a", "b"]
    assert from_parquet(tmp_path, pa.array([5, 4, 5]).dictionary_encode()) == [5, 4, 5]
    assert from_parquet(tmp_path, pa.array(["b", "a"], pa.large_string())) == ["b", "a"]
    assert from_parquet(tmp_path, pa.array(BORDERS).cast(pa.decimal128(19, 0))) == BORDERS


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        ([1.0, 2.0], pa.float64()),
        ([1.5, 2.0], pa.float32()),
        ([True, False], pa.bool_()),
        ([b"a", b"b"], pa.binary()),
        ([b"a", b"b"], pa.binary(1)),
        ([[1], [2]], pa.list_(pa.int64())),
        ([1, 2], pa.decimal128(9, 2)),
        ([1, 2], pa.timestamp("s")),
        ([1, 2], pa.date32()),
    ],
)
def test_other_types_are_refused(tmp_path: Path, ids: list[Any], kind: pa.DataType) -> None:
    with pytest.raises(ValueError, match="t.parquet, row 1: user_id must be integer or text, not .*, got") as caught:
        from_parquet(tmp_path, pa.array(ids, kind))
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("odd", [1.0, True, "2", [1], {"a": 1}, 1.5])
def test_json_ids_are_of_one_type(tmp_path: Path, odd: Any) -> None:
    with pytest.raises(ValueError, match=r"t.jsonl, line [12]: user_id must be .*, got"):
        from_json(tmp_path, [1, odd])


def test_json_text_that_is_no_unicode(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="t.jsonl, line 2: user_id must be Unicode text, got"):
        from_json(tmp_path, ["a", "\ud800"])


@pytest.mark.parametrize("ids", [[None, "a"], ["a", ""], [1, None]])
def test_missing_ids(tmp_path: Path, ids: list[Any]) -> None:
    row = 1 + [one in (None, "") for one in ids].index(True)
    with pytest.raises(ValueError, match=f"t.parquet, row {row}: user_id is missing in 1 of 2 rows"):
        from_parquet(tmp_path, ids)
    with pytest.raises(ValueError, match=f"t.jsonl, line {row}: user_id is missing in 1 of 2 rows"):
        from_json(tmp_path, ids)


def test_ids_are_numbers_in_both_files_or_in_neither(tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t5\t100\n")
    (tmp_path / "x.item").write_text("item_id:token\ttitle:token_seq\n10\tFoo\n010\tBar\n")
    loaded = load_interactions(tmp_path)
    assert loaded.frame["item_id"].tolist() == ["10"] and loaded.titles == {"10": "Foo", "010": "Bar"}
