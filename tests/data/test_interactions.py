import datetime
from pathlib import Path

import pandas as pd
import pytest

from cora.data import Interactions, load_interactions, split


def test_recbole_folder(recbole: Path) -> None:
    loaded = load_interactions(recbole)
    assert loaded.name == "tiny"
    assert list(loaded.frame) == ["user_id", "item_id", "label", "timestamp", "rating"]
    assert loaded.frame["timestamp"].tolist() == [50, 100, 150, 200, 300]
    assert loaded.frame["user_id"].tolist() == [3, 1, 2, 1, 2]
    assert loaded.frame["item_id"].tolist() == [12, 10, 10, 11, 12]
    assert loaded.frame["label"].tolist() == [0, 1, 1, 0, 1]
    assert [str(loaded.frame[c].dtype) for c in ("user_id", "item_id", "label", "timestamp")] == ["int64"] * 4
    assert loaded.titles == {10: "Usual Suspects, The (1995)", 11: "Misérables, Les (1995)", 12: '"NA"'}


def test_recbole_inter_file_is_its_folder(recbole: Path) -> None:
    pd.testing.assert_frame_equal(load_interactions(recbole / "tiny.inter").frame, load_interactions(recbole).frame)


def test_positive_rating(recbole: Path) -> None:
    assert load_interactions(recbole, positive_rating=5).frame["label"].tolist() == [0, 1, 0, 0, 1]


def test_ids_that_are_no_whole_numbers_stay_text(recbole: Path) -> None:
    rewrite(recbole / "tiny.inter", "3\t12", "007\t12")
    rewrite(recbole / "tiny.item", "11\t", "tt11\t")
    rewrite(recbole / "tiny.inter", "1\t11", "1\ttt11")
    loaded = load_interactions(recbole)
    assert loaded.frame["user_id"].tolist() == ["007", "1", "2", "1", "2"]
    assert loaded.frame["item_id"].tolist() == ["12", "10", "10", "tt11", "12"]
    assert set(loaded.titles) == {"10", "tt11", "12"}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_one_table(table: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    loaded = load_interactions(write(table, tmp_path / f"mine{suffix}"))
    assert loaded.name == "mine"
    assert loaded.frame["timestamp"].tolist() == [100, 150, 200, 300]
    assert loaded.frame["label"].tolist() == [1, 1, 0, 0]
    assert list(loaded.frame) == ["user_id", "item_id", "label", "timestamp", "rating"]
    assert loaded.titles == {10: "Alien", 11: "NA", 12: "Brazil"}


def test_text_ids_of_parquet_stay_text(table: pd.DataFrame, tmp_path: Path) -> None:
    table["user_id"] = table["user_id"].astype(str)
    assert load_interactions(write(table, tmp_path / "t.parquet")).frame["user_id"].tolist() == ["1", "2", "1", "2"]


def test_label_goes_before_rating(table: pd.DataFrame, tmp_path: Path) -> None:
    table["label"] = [0, 1, 0, 1]
    frame = load_interactions(write(table, tmp_path / "t.csv")).frame
    assert frame["label"].tolist() == [0, 0, 1, 1]
    assert frame["rating"].tolist() == [5, 4, 3, 2]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("kind", ["datetime", "text", "date"])
def test_dates_become_seconds(table: pd.DataFrame, tmp_path: Path, suffix: str, kind: str) -> None:
    days = pd.Series(pd.to_datetime(["1970-01-02", "1970-01-03", "1970-01-04", "1970-01-05"]))
    table["timestamp"] = {
        "datetime": days,
        "text": days.dt.strftime("%Y-%m-%d %H:%M:%S"),
        "date": pd.Series([datetime.date(1970, 1, day) for day in (2, 3, 4, 5)]),
    }[kind]
    frame = load_interactions(write(table, tmp_path / f"t{suffix}")).frame
    assert frame["timestamp"].tolist() == [86400 * day for day in (1, 2, 3, 4)]
    assert frame["timestamp"].dtype == "int64"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("with_test", [True, False])
def test_folder_already_split(table: pd.DataFrame, tmp_path: Path, suffix: str, with_test: bool) -> None:
    write(table[:2], tmp_path / f"train{suffix}")
    write(table[2:3], tmp_path / f"valid{suffix}")
    if with_test:
        write(table[3:], tmp_path / f"test{suffix}")
    splits = split(load_interactions(tmp_path))
    assert splits.train["item_id"].tolist() == [10, 11]
    assert splits.valid["item_id"].tolist() == [10]
    assert "split" not in splits.train
    if with_test:
        assert splits.test is not None and splits.test["item_id"].tolist() == [12]
    else:
        assert splits.test is None and list(splits.parts()) == ["train", "valid"]


def test_repeated_event_counts_once_and_is_reported(recbole: Path) -> None:
    with (recbole / "tiny.inter").open("a") as file:
        file.write("1\t10\t2\t100\n")
    with pytest.warns(UserWarning, match="1 rows repeat the user, item and timestamp"):
        frame = load_interactions(recbole).frame
    assert len(frame) == 5
    assert frame.loc[frame["timestamp"] == 100, "rating"].tolist() == [2.0]


def test_movielens_100k() -> None:
    loaded = movielens()
    assert loaded.name == "movielens-100k"
    assert len(loaded.frame) == 100_000
    assert loaded.frame["user_id"].nunique() == 943 and loaded.frame["item_id"].nunique() == 1682
    assert loaded.frame["label"].sum() == 55_375
    assert loaded.titles[1] == "Toy Story (1995)" and loaded.titles[267] == "unkonwn"  # as RecBole has it
    assert len(loaded.titles) == 1682 > len(set(loaded.titles.values())), "films of one title keep their ids"


# Every wrong input has its own error, naming the file and what is wrong there.


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="named data sets .movielens-100k.*got 'movielens-1000k'"):
        load_interactions("movielens-1000k")
    with pytest.raises(FileNotFoundError, match="…x.*/missing.csv'") as caught:
        load_interactions(tmp_path / ("x" * 200) / "missing.csv")
    assert len(str(caught.value)) <= 300


def test_folder_with_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(
        ValueError, match=r"nothing to read: found \['readme.txt'\], expected one .inter file.*; train and valid"
    ):
        load_interactions(tmp_path)


def test_unknown_file_type(tmp_path: Path) -> None:
    (tmp_path / "data.xlsx").write_text("{}")
    with pytest.raises(ValueError, match="expected a .inter, .parquet, .csv, .tsv or .jsonl file, got '.xlsx'"):
        load_interactions(tmp_path / "data.xlsx")


def test_split_folder_without_valid(table: pd.DataFrame, tmp_path: Path) -> None:
    write(table, tmp_path / "train.csv")
    with pytest.raises(ValueError, match=r"needs train and valid, found \['train.csv'\]"):
        load_interactions(tmp_path)


def test_split_folder_with_a_part_twice(table: pd.DataFrame, tmp_path: Path) -> None:
    for name in ("train.csv", "train.parquet", "valid.csv"):
        write(table, tmp_path / name)
    with pytest.raises(ValueError, match="train is there twice"):
        load_interactions(tmp_path)


@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp", "title"])
def test_missing_column(table: pd.DataFrame, tmp_path: Path, column: str) -> None:
    path = write(table.drop(columns=column), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=rf"t.parquet: missing column {column}; found \['.*comment'\]"):
        load_interactions(path)


def test_neither_rating_nor_label(table: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing column rating or label"):
        load_interactions(write(table.drop(columns="rating"), tmp_path / "t.csv"))


def test_missing_recbole_column(recbole: Path) -> None:
    rewrite(recbole / "tiny.inter", "timestamp:float", "when:float")
    with pytest.raises(ValueError, match=r"tiny.inter: missing column timestamp; found .*'when'"):
        load_interactions(recbole)


def test_recbole_header_without_types(recbole: Path) -> None:
    rewrite(recbole / "tiny.inter", "rating:float", "rating")
    with pytest.raises(ValueError, match=r"a header of `name:type` expected .*found \['rating'\]"):
        load_interactions(recbole)


def test_no_item_file(recbole: Path) -> None:
    (recbole / "tiny.item").unlink()
    with pytest.raises(FileNotFoundError, match="titles are missing, expected them in .*tiny.item"):
        load_interactions(recbole)


def test_no_title_column(recbole: Path) -> None:
    rewrite(recbole / "tiny.item", "movie_title:", "film:")
    with pytest.raises(ValueError, match=r"expected the columns item_id and title .*'film'"):
        load_interactions(recbole)


def test_no_rows(table: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="t.csv: no rows"):
        load_interactions(write(table[:0], tmp_path / "t.csv"))


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(ValueError, match="t.csv: the file is empty"):
        load_interactions(tmp_path / "t.csv")


def test_not_utf8(table: pd.DataFrame, tmp_path: Path) -> None:
    path = write(table, tmp_path / "t.csv")
    path.write_bytes(path.read_bytes().replace(b"Brazil", b"Br\xe9sil"))
    with pytest.raises(ValueError, match="t.csv, line 5: expected UTF-8 text"):
        load_interactions(path)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("tiny.item", "11\t", "10\t", "tiny.item, line 3: item_id must be unique, got 10 again"),
        ("tiny.item", "11\t", "99\t", r"1 items have no title, for example \[11\]"),
        ("tiny.inter", "3\t12", "\t12", "tiny.inter, line 5: user_id is missing in 1 of 5 rows"),
    ],
    ids=["duplicate item id", "item missing from the item file", "missing id"],
)
def test_ids_of_recbole_files(recbole: Path, file: str, old: str, new: str, message: str) -> None:
    rewrite(recbole / file, old, new)
    with pytest.raises(ValueError, match=message):
        load_interactions(recbole)


def test_item_with_two_titles(table: pd.DataFrame, tmp_path: Path) -> None:
    table.loc[2, "title"] = "Aliens"
    with pytest.raises(
        ValueError, match="t.csv, line 4: .* must have one title, got 'Aliens' for 10, .*'Alien' in line 2"
    ):
        load_interactions(write(table, tmp_path / "t.csv"))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_item_without_title(table: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    table.loc[3, "title"] = None
    with pytest.raises(ValueError, match=r"1 items have no title, for example \[12\]"):
        load_interactions(write(table, tmp_path / f"t{suffix}"))


def test_float_ids(table: pd.DataFrame, tmp_path: Path) -> None:
    table["user_id"] = table["user_id"] + 0.5
    with pytest.raises(ValueError, match="t.parquet, row 1: user_id must be integer or text, not float64, got 1.5"):
        load_interactions(write(table, tmp_path / "t.parquet"))


def test_rating_that_is_no_number(recbole: Path) -> None:
    rewrite(recbole / "tiny.inter", "1\t50", "good\t50")
    with pytest.raises(ValueError, match="tiny.inter, line 5: rating must be a finite number.*, got 'good'"):
        load_interactions(recbole)


def test_label_that_is_neither_0_nor_1(table: pd.DataFrame, tmp_path: Path) -> None:
    table["label"] = [0, 1, 2, 1]
    with pytest.raises(ValueError, match="t.csv, line 4: label must be 0 or 1, got '2'"):
        load_interactions(write(table, tmp_path / "t.csv"))


def test_timestamp_that_is_no_time(table: pd.DataFrame, tmp_path: Path) -> None:
    table["timestamp"] = ["1970-01-02", "yesterday", "1970-01-02", "1970-01-02"]
    with pytest.raises(ValueError, match="t.csv, line 3: timestamp must be a date .* or a number .*, got 'yesterday'"):
        load_interactions(write(table, tmp_path / "t.csv"))


def write(table: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path, index=False)
    return path


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def movielens() -> Interactions:
    try:
        return load_interactions("movielens-100k")
    except RuntimeError as error:
        pytest.skip(f"MovieLens-100k could not be fetched: {error}")
