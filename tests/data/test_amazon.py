"""Amazon's reviews of 2018 in small files of the same form."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from cora.data import amazon, load_interactions

REVIEWS: list[dict[str, Any]] = [
    dict(overall=5.0, verified=False, reviewTime="03 30, 2005", reviewerID="A1REUF3A1YCPHM", asin="0001713353",
         style={"Format:": " Hardcover"}, reviewerName="T", reviewText="A story", unixReviewTime=1112140800),
    dict(overall=4.0, verified=True, reviewTime="06 20, 2016", reviewerID="AVP0HXC9FG790", asin="0001713353",
         summary="Four Stars", unixReviewTime=1466380800, vote="2"),
    dict(overall=3, reviewerID="AVP0HXC9FG790", asin="0000092878", unixReviewTime=1466380799, image=["x"]),
    dict(overall=1.0, reviewerID="AVP0HXC9FG790", asin="B000000001", unixReviewTime=1466380800),
    dict(overall=1.0, reviewerID="AVP0HXC9FG790", asin="B000000002", unixReviewTime=1466380800),
]  # fmt: skip
PRODUCTS: list[dict[str, Any]] = [
    dict(category=[], title="Biology", asin="0000092878", price="$39.94", also_buy=["0001713353"]),
    dict(title="The King &amp; the Mice", asin="0001713353"),
    dict(title="Biology, Third Edition", asin="0000092878"),
    dict(asin="B000000001", title=""),
    dict(asin="0000092878"),
]


def fill(
    folder: Path, name: str = "Books", reviews: Any = REVIEWS, products: Any = PRODUCTS, packed: bool = True
) -> Path:
    for file, rows in ((f"{name}.json", reviews), (f"meta_{name.removesuffix('_5')}.json", products)):
        data = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in rows).encode()
        if packed:
            (folder / f"{file}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / file).write_bytes(data)
    return folder


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["Books", "Books_5"])
@pytest.mark.parametrize("piece", [1, 2, 100_000])
def test_reviews_with_the_titles_of_their_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, packed: bool, piece: int
) -> None:
    monkeypatch.setattr(amazon, "_PIECE", piece)
    fill(tmp_path, name, packed=packed)
    for source in (tmp_path, tmp_path / (f"{name}.json" + ".gz" * packed)):
        with pytest.warns(
            UserWarning, match="2 of 5 reviews are of items without a title in meta_Books.json.* dropped"
        ):
            loaded = load_interactions(source, positive_rating=4)
        assert loaded.frame["user_id"].tolist() == ["A1REUF3A1YCPHM", "AVP0HXC9FG790", "AVP0HXC9FG790"]
        assert loaded.frame["item_id"].tolist() == ["0001713353", "0000092878", "0001713353"]
        assert loaded.frame["timestamp"].tolist() == [1112140800, 1466380799, 1466380800]
        assert loaded.frame["rating"].tolist() == [5, 3, 4] and loaded.frame["label"].tolist() == [1, 0, 1]
        assert loaded.titles == {"0001713353": "The King &amp; the Mice", "0000092878": "Biology, Third Edition"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(overall="5"), "overall must be a number, got '5'"),
        (dict(overall=None), "overall must be a number, got None"),
        (dict(overall=float("nan")), "overall must be a number, got nan"),
        (dict(overall=True), "overall must be a number, got True"),
        (dict(asin=7), "asin must be text, got 7"),
        (dict(reviewerID=None), "reviewerID must be text, got None"),
        (dict(reviewerID="\ud800"), "reviewerID must be text, got"),
        (dict(reviewerID=" A"), "user_id must not begin or end in a blank"),
        (dict(unixReviewTime=1.5), "unixReviewTime must be a whole number within int64, got 1.5"),
        (dict(unixReviewTime=2**63), "unixReviewTime must be a whole number within int64"),
    ],
)
def test_wrong_values_are_named_with_their_line(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    fill(tmp_path, reviews=[REVIEWS[0], "", REVIEWS[2] | change])
    with pytest.raises(ValueError, match=f"Books.json.gz, line 3: {match}") as caught:
        load_interactions(tmp_path)
    assert len(str(caught.value)) <= 300


def test_wrong_files(tmp_path: Path) -> None:
    fill(tmp_path, reviews=[REVIEWS[0], "{'overall': 5}"])
    with pytest.raises(ValueError, match="Books.json.gz, line 2: expected one JSON object a line"):
        load_interactions(tmp_path)
    fill(tmp_path, products=[PRODUCTS[0], dict(asin="x", title=["y"])])
    with pytest.raises(ValueError, match=r"meta_Books.json.gz, line 2: title must be text, got \['y'\]"):
        load_interactions(tmp_path)
    fill(tmp_path, products=[])
    with pytest.raises(ValueError, match="meta_Books.json.gz: the file is empty"):
        load_interactions(tmp_path)
    fill(tmp_path, products=PRODUCTS[3:4])
    with pytest.warns(UserWarning, match="5 of 5 reviews"), pytest.raises(ValueError, match="Books.json.gz: no rows"):
        load_interactions(tmp_path)
    fill(tmp_path, "Books_5")
    with pytest.raises(ValueError, match="expected the reviews once, found .*Books.json.gz.*Books_5.json.gz"):
        load_interactions(tmp_path)


def test_other_json_lines_with_such_names_are_tables(tmp_path: Path) -> None:
    row = dict(user_id=1, item_id=2, rating=5, timestamp=100, title="Alien")
    fill(tmp_path, reviews=[row], packed=False)
    assert load_interactions(tmp_path / "Books.json").titles == {2: "Alien"}
