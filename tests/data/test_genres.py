"""Genres of items, as the files of MovieLens and RecBole write them."""

from pathlib import Path

import pytest

from cora.data import load_interactions


def test_of_recbole(tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t1\t5\t10\n1\t2\t3\t11\n1\t3\t3\t12\n"
    )
    (tmp_path / "x.item").write_text(
        "item_id:token\tmovie_title:token_seq\tclass:token_seq\n1\tA b\tDrama Film-Noir\n2\tC\t\n3\tD\tunknown\n"
    )
    assert load_interactions(tmp_path).genres == {1: ("Drama", "Film-Noir")}


@pytest.mark.parametrize(("ratings", "movies", "separator"), [
    ("ratings.dat", "movies.dat", "::"), ("ratings.csv", "movies.csv", ","),
])  # fmt: skip
def test_of_movielens(tmp_path: Path, ratings: str, movies: str, separator: str) -> None:
    rows = [["userId", "movieId", "rating", "timestamp"], ["1", "1", "5", "10"], ["1", "2", "3", "11"]]
    items = [["movieId", "title", "genres"], ["1", "A", "Drama|Sci-Fi Noir"], ["2", "B", "(no genres listed)"]]
    start = 1 if separator == "::" else 0
    for name, lines in ((ratings, rows), (movies, items)):
        (tmp_path / name).write_text("".join(separator.join(line) + "\n" for line in lines[start:]))
    assert load_interactions(tmp_path).genres == {1: ("Drama", "Sci-Fi Noir")}


def test_where_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("user_id,item_id,rating,timestamp,title\n1,1,5,10,A\n")
    assert load_interactions(path).genres == {}
