"""Folders as people and programs write them: parts, splits, the hub's names, MovieLens' own files."""

from pathlib import Path

import pandas as pd
import pytest

from cora.data import load_interactions, split

ROWS = pd.DataFrame(
    dict(user_id=range(12), item_id=[10, 11] * 6, rating=5.0, timestamp=range(100, 112), title=["Alien", "Brazil"] * 6)
)


def fill(folder: Path, *names: str, rows: pd.DataFrame = ROWS) -> Path:
    """Rows 0 and 1 in the first file, 2 and 3 in the second, and so on."""
    for start, name in zip(range(0, 12, 2), names, strict=False):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = rows[start : start + 2]
        if ".parquet" in name:
            table.to_parquet(path, index=False)
        elif ".json" in name:
            table.to_json(path, orient="records", lines=True)
        elif path.suffix:
            table.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")
        else:
            path.write_text("")
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ["part-00000-8a6b-c000.snappy.parquet", "part-00001-8a6b-c000.snappy.parquet"],
        ["part.0.parquet", "part.1.parquet"],
        ["part-0.csv", "part-1.csv"],
        ["0000.parquet", "0001.parquet"],
        ["data-00000-of-00002.parquet", "data-00001-of-00002.parquet"],
        ["data/part-00000.csv.gz", "data/part-00001.csv.gz"],
        ["year=2014/part-0.parquet", "year=2015/part-0.parquet"],
        ["ratings_1.jsonl", "ratings_2.jsonl"],
        ["2.tsv", "10.tsv"],
        ["interactions.json.gz"],
    ],
)
def test_parts_of_a_source_that_is_not_split(tmp_path: Path, names: list[str]) -> None:
    folder = fill(tmp_path / "mine.parquet", *names, "_SUCCESS", ".part-0.crc", "README.md")
    loaded = load_interactions(folder)
    assert loaded.frame["user_id"].tolist() == list(range(2 * len(names)))
    assert loaded.name == "mine.parquet" and "split" not in loaded.frame


@pytest.mark.parametrize(
    "names",
    [
        ["train.tsv", "valid.tsv", "test.tsv"],
        ["train.parquet", "dev.parquet", "test.parquet"],
        ["TRAIN.csv", "Val.csv", "Test.csv"],
        ["train-00000-of-00001.parquet", "validation-00000-of-00001.parquet", "test-00000-of-00001.parquet"],
        ["data/train-00000-of-00001.parquet", "data/val-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
        ["train/part-00000.parquet", "valid/part-00000.parquet", "test/part-00000.parquet"],
        ["default/train/0000.parquet", "default/validation/0000.parquet", "default/test/0000.parquet"],
        ["split=train/a.parquet", "split=validation/a.parquet", "split=test/a.parquet"],
        ["train.csv.gz", "valid.csv.gz", "test.csv.gz"],
        ["train.parquet/part-0-x-c0.parquet", "valid.parquet/part-0-y-c0.parquet", "test.parquet/part-0-z-c0.parquet"],
        ["train.jsonl", "dev.jsonl", "test.jsonl"],
    ],
)
def test_splits(tmp_path: Path, names: list[str]) -> None:
    splits = split(load_interactions(fill(tmp_path, *names, "notes.csv", "_SUCCESS")))
    assert [part["user_id"].tolist() for part in splits.parts().values()] == [[0, 1], [2, 3], [4, 5]]


def test_a_part_of_several_files(tmp_path: Path) -> None:
    names = ["train-00000-of-00002-8a6b.parquet", "train-00001-of-00002-c9d4.parquet", "dev/b.parquet", "dev/c.parquet"]
    splits = split(load_interactions(fill(tmp_path, *names)))
    assert [part["user_id"].tolist() for part in splits.parts().values()] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_recbole_files_of_a_split(tmp_path: Path) -> None:
    for start, part in ((0, "train"), (2, "valid"), (4, "test")):
        rows = ROWS[start : start + 2][["user_id", "item_id", "rating", "timestamp"]]
        rows.columns = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
        rows.to_csv(tmp_path / f"x.{part}.inter", sep="\t", index=False)
    (tmp_path / "x.item").write_text("item_id:token\ttitle:token_seq\n10\tAlien\n11\tBrazil\n")
    splits = split(load_interactions(tmp_path))
    assert [part["user_id"].tolist() for part in splits.parts().values()] == [[0, 1], [2, 3], [4, 5]]
    (tmp_path / "y.inter").write_text("")
    with pytest.raises(ValueError, match="expected one .inter file, or NAME.train.inter .*found .*'y.inter'"):
        load_interactions(tmp_path)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["train.csv", "valid.csv", "train.parquet"], "train is there twice: .*train.csv"),
        (["train.csv", "valid.csv", "val.csv"], "valid is there twice: .*val.csv"),
        (["train.csv", "valid.csv", "train-0.csv"], "train is there twice"),
        (["train.csv", "valid.csv", "train/part-0.csv"], "train is there twice: .*train/part-0.csv"),
        (["train.csv", "valid.csv", "data/train.csv"], "train is there twice"),
        (["train/a.csv", "train/b.parquet", "dev/a.csv"], "train is there twice"),
        (["train-00000-of-00003.csv", "train-00002-of-00003.csv", "valid.csv"], "train: expected 3 files, .* got 2"),
        (["data-00000-of-00002.parquet"], "expected 2 files, as their names say, got 1"),
        (["train.csv", "test.csv"], "needs train and valid, found"),
        (["train.csv", "valid.csv", "part-0.csv"], "files of a split and others that are not: .*part-0.csv"),
        (["part-0.csv", "part-1.parquet"], "the source is there twice"),
        (["train.csv", "valid.csv", "x.inter"], "expected files of one form, found those of RecBole and tables"),
        (["ratings.dat", "part-0.csv"], "found those of MovieLens and tables"),
        (["ratings.dat", "u.data"], "expected the ratings once, found .*u.data"),
        (["a.csv", "b.csv.gz"], "nothing to read: found .*a.csv"),
        (["a.csv", "users.csv"], "nothing to read"),
        (["_SUCCESS"], "nothing to read"),
    ],
)
def test_folders_that_are_not_clear(tmp_path: Path, names: list[str], match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        load_interactions(fill(tmp_path, *names))
    assert str(tmp_path)[-60:] in str(caught.value) and len(str(caught.value)) <= 300


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_parts_with_other_columns_or_kinds(tmp_path: Path, suffix: str) -> None:
    fill(tmp_path, f"part-0{suffix}")
    fill(tmp_path, f"part-1{suffix}", rows=ROWS.rename(columns={"rating": "label"}).assign(label=1))
    with pytest.raises(ValueError, match=f"part-1{suffix}: expected the columns of part-0{suffix}, .*differs in"):
        load_interactions(tmp_path)
    fill(tmp_path, f"part-1{suffix}", rows=ROWS.rename(columns={"title": "movie_title"}))
    with pytest.raises(ValueError, match=f"part-1{suffix}: expected the columns of"):
        load_interactions(tmp_path)
    fill(tmp_path, f"part-1{suffix}", rows=ROWS.assign(user_id="x"))
    if suffix == ".parquet":
        with pytest.raises(ValueError, match="part-1.parquet: user_id is text, but part-0.parquet .* has int64 there"):
            load_interactions(tmp_path)
    else:
        assert set(load_interactions(tmp_path).frame["user_id"]) == {"0", "1", "x"}


def test_parts_may_differ_in_width_and_unit(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "part-0.parquet",
        rows=ROWS.assign(timestamp=pd.to_datetime(ROWS["timestamp"], unit="s").dt.as_unit("s")),
    )
    other = ROWS[2:].astype({"user_id": "int32", "rating": "float32"})
    times = pd.to_datetime(other["timestamp"], unit="s", utc=True).dt.as_unit("ns")
    fill(tmp_path, "part-1.parquet", rows=other.assign(timestamp=times))
    assert load_interactions(tmp_path).frame["timestamp"].tolist() == [100, 101, 102, 103]


def test_errors_name_the_part_and_its_own_row(tmp_path: Path) -> None:
    fill(tmp_path, "part-0.csv", "part-1.csv", rows=ROWS.astype({"rating": object}).replace({"rating": {5.0: "5"}}))
    (tmp_path / "part-1.csv").write_text((tmp_path / "part-1.csv").read_text().replace("3,11,5", "3,11,good"))
    with pytest.raises(ValueError, match="part-1.csv, line 3: rating must be .*, got 'good'"):
        load_interactions(tmp_path)


def test_empty_parts_count_as_no_rows(tmp_path: Path) -> None:
    fill(tmp_path, "part-0.csv", "part-1.csv")
    (tmp_path / "part-2.csv").write_text("")
    assert len(load_interactions(tmp_path).frame) == 4
    for name in ("part-0.csv", "part-1.csv"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="the files are empty"):
        load_interactions(tmp_path)


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 hello")
    with pytest.raises(ValueError, match="t.parquet: cannot be read as parquet"):
        load_interactions(tmp_path / "t.parquet")


RATINGS = [("1", "10", "5", "978300760"), ("1", "11", "3", "978302109"), ("2", "11", "4.5", "978301968")]
TITLES = {10: "Léon: The Professional (1994)", 11: 'Brother, The "Good" (2000)'}


def movielens(folder: Path, form: str, encoding: str = "utf-8") -> Path:
    folder.mkdir(exist_ok=True)
    if form == ".csv":
        pd.DataFrame(RATINGS, columns=["userId", "movieId", "rating", "timestamp"]).to_csv(
            folder / "ratings.csv", index=False
        )
        movies = pd.DataFrame({"movieId": list(TITLES), "title": list(TITLES.values()), "genres": "Drama|War"})
        movies.to_csv(folder / "movies.csv", index=False)
        (folder / "links.csv").write_text("movieId,imdbId,tmdbId\n10,1,2\n")
        (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n")
    elif form == ".dat":
        (folder / "ratings.dat").write_text("".join("::".join(row) + "\n" for row in RATINGS))
        lines = "".join(f"{item}::{title}::Drama|War\n" for item, title in TITLES.items())
        (folder / "movies.dat").write_text(lines, encoding=encoding)
        (folder / "users.dat").write_text("1::F::1::10::48067\n")
    else:
        (folder / "u.data").write_text("".join("\t".join(row) + "\n" for row in RATINGS))
        lines = "".join(
            f"{item}|{title}|01-Jan-1994||http://x|{'|'.join('0' * 19)}\n" for item, title in TITLES.items()
        )
        (folder / "u.item").write_text(lines, encoding=encoding)
        (folder / "u1.base").write_text("")
    return folder


@pytest.mark.parametrize(
    ("form", "encoding"), [(".csv", "utf-8"), (".dat", "utf-8"), (".dat", "latin-1"), ("u", "latin-1")]
)
def test_movielens_as_it_is_given_out(tmp_path: Path, form: str, encoding: str) -> None:
    folder = movielens(tmp_path / "ml", form, encoding)
    file = folder / {".csv": "ratings.csv", ".dat": "ratings.dat", "u": "u.data"}[form]
    for source in (folder, file):
        loaded = load_interactions(source)
        assert loaded.frame["user_id"].tolist() == [1, 2, 1] and loaded.frame["item_id"].tolist() == [10, 11, 11]
        assert loaded.frame["rating"].tolist() == [5, 4.5, 3] and loaded.titles == TITLES
        assert loaded.frame["timestamp"].tolist() == [978300760, 978301968, 978302109]


def test_movielens_errors(tmp_path: Path) -> None:
    folder = movielens(tmp_path / "ml", ".dat")
    with (folder / "ratings.dat").open("a") as file:
        file.write("3::10::5\n")
    with pytest.raises(ValueError, match="ratings.dat, line 4: expected 4 fields"):
        load_interactions(folder)
    (folder / "movies.dat").unlink()
    with pytest.raises(FileNotFoundError, match="titles are missing, expected them in movies.dat"):
        load_interactions(folder)
    folder = movielens(tmp_path / "latest", ".csv")
    (folder / "ratings.csv").write_text("user,movie\n1,2\n")
    with pytest.raises(ValueError, match="ratings.csv: missing column userId, movieId, rating, timestamp; found"):
        load_interactions(folder)


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        (["brand_name", "title", "movie_title"], "title"),
        (["brand_name", "movie_title"], "movie_title"),
        (["original_title", "name", "product_name"], "product_name"),
        (["original_title", "name"], "name"),
        (["author_name", "original_title", "label_name"], "original_title"),
        (["venue_name", "venue_category_name", "city_name"], "venue_name"),
    ],
)
def test_the_column_of_titles_is_the_best_match_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: list[str], chosen: str
) -> None:
    table = pd.DataFrame({column: [f"{column} of Alien", f"{column} of Brazil"] for column in columns})
    header = "\t".join(["item_id:token", *(f"{column}:token_seq" for column in columns)])
    rows = table.assign(item_id=[10, 11])[["item_id", *columns]].to_csv(sep="\t", index=False, header=False)
    (tmp_path / "x.item").write_text(header + "\n" + rows)
    (tmp_path / "x.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t5\t100\n2\t11\t3\t101\n"
    )
    expected = {10: f"{chosen} of Alien", 11: f"{chosen} of Brazil"}
    assert load_interactions(tmp_path).titles == expected
    said = capsys.readouterr().err
    assert said.count("\n") == (chosen != "title") and (chosen == "title" or f"column {chosen}\n" in said)
    for name in ("train.csv", "valid.csv"):
        ROWS[:2].drop(columns="title").join(table).to_csv(tmp_path.parent / name, index=False)
    other = tmp_path / "tables"
    other.mkdir()
    for name in ("train.csv", "valid.csv"):
        (tmp_path.parent / name).rename(other / name)
    with pytest.warns(UserWarning, match="repeat"):
        assert load_interactions(other).titles == expected
    assert capsys.readouterr().err.count("\n") == (chosen != "title")


@pytest.mark.parametrize("columns", [["movie_title", "book_title"], ["venue_name", "spot_name"]])
def test_two_columns_that_may_be_the_titles(tmp_path: Path, columns: list[str]) -> None:
    ROWS.drop(columns="title").assign(**dict.fromkeys(columns, "x")).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=f"t.csv: the titles may be in any of the columns .*{columns[1]}.* rename"):
        load_interactions(tmp_path / "t.csv")
