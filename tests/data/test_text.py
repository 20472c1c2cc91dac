"""Text files: cells exactly as they stand, and errors that name the line."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from cora.data import Interactions, load_interactions

HEADER = "user_id,item_id,rating,timestamp,title\n"
INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t5\t100\n2\t11\t3\t101\n"
ITEM = "item_id:token\ttitle:token_seq\n10\tFoo\n11\tBar\n"


def read(path: Path, text: str | bytes, name: str = "t.csv") -> Interactions:
    (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_interactions(path / name)


def recbole(path: Path, item: str | bytes, inter: str | bytes = INTER) -> Interactions:
    (path / "x.item").write_bytes(item if isinstance(item, bytes) else item.encode())
    return read(path, inter, "x.inter")


ODD = [
    "a\rb",
    "a\nb",
    "a\r\nb",
    "a\u2028b",
    "a\u0085b",
    "a\x0bb",
    "a\x0cb",
    "a\0b",
    'a"b',
    '"',
    "a,b",
    "a\tb",
    " a ",
    "\ufeffa",
]


@pytest.mark.parametrize("title", ODD)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("name", "separator"), [("t.csv", ","), ("t.tsv", "\t"), ("t.csv.gz", ","), ("t.TSV", "\t")])
def test_quoted_titles_are_read_as_they_are(tmp_path: Path, title: str, end: str, name: str, separator: str) -> None:
    quoted = '"' + title.replace('"', '""') + '"'
    rows = [HEADER.strip().split(","), ["1", "2", "5", "100", quoted], ["1", "3", "5", "101", "Bar"]]
    data = (end.join(map(separator.join, rows)) + end).encode()
    if "\0" in title and sys.version_info < (3, 11):
        pytest.skip("Python 3.10's csv refuses a zero byte")
    assert read(tmp_path, gzip.compress(data) if name.endswith(".gz") else data, name).titles == {2: title, 3: "Bar"}


@pytest.mark.parametrize(
    "title", ["a\rb", "a\r", "a\u2028b", "a\u0085b", "a\x0bb", "a\0b", '"a', 'a"b"', '"a"', " a ", "NA"]
)
def test_titles_without_quotes_are_read_as_they_are(tmp_path: Path, title: str) -> None:
    assert recbole(tmp_path, ITEM.replace("Foo", title)).titles == {10: title, 11: "Bar"}
    assert recbole(tmp_path, ITEM.replace("Foo", title).replace("\n", "\r\n")).titles == {10: title, 11: "Bar"}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("last", [True, False])
def test_marks_and_ends_of_files_are_no_part_of_values(tmp_path: Path, mark: bytes, end: bytes, last: bool) -> None:
    data = mark + (HEADER + "1,2,5,100,Foo\n\n1,3,5,101,Bar").encode().replace(b"\n", end) + (end if last else b"")
    assert read(tmp_path, data).titles == {2: "Foo", 3: "Bar"}
    item = mark + ITEM.strip().encode().replace(b"\n", end) + (end if last else b"")
    assert recbole(tmp_path, item).titles == {10: "Foo", 11: "Bar"}


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (
            "1,2,5,100,Foo\n1,3,5,101,The Good, the Bad\n",
            "line 3: expected 5 fields, .*, got 6: .*the Bad",
        ),
        ("1,2,5,100,Foo\n1,3,5,101\n", "line 3: expected 5 fields, as in the header, got 4"),
        ("1,2,5,100,Foo,\n", "line 2: expected 5 fields, .*, got 6 .a separator at the end of the row."),
        ('1,2,5,100,"F\n\noo"\n1,3,5,101,a,b\n', "line 5: expected 5 fields"),
        ('1,2,5,100,Foo\n1,3,5,101,"Bar\n1,4,5,102,Baz\n', "line 3: cannot be read as fields, some in quotes"),
        ('1,2,5,100,"Foo" bar\n', "line 2: cannot be read as fields, some in quotes"),
        ("1,2,5,100,Foo\rBar\n", "line 2: cannot be read as fields"),
        ("1,2,5,100,Foo\r\n", r"line 2: expected it to end in '\\n', as line 1, got"),
        ("1,2,5,100,Foo\nx,3,5,later,Bar\n", "line 3: timestamp must be a number, as in other rows, got 'later'"),
        ("1,2,5,100,Foo\n1,2,,101,Foo\n", "line 3: rating must be a finite number.*, got ''"),
        ("1,2,nan,100,Foo\n", "line 2: rating must be a finite number.*, got 'nan'"),
        ("1,2,1e999,100,Foo\n", "line 2: rating must be .*, got '1e999'"),
        ('1,2,"4,5",100,Foo\n', "line 2: rating must be .*, got '4,5'"),
        (
            "1,2,9007199254740993,100,Foo\n",
            "line 2: rating must be a number that float64 holds exactly, got '9007199254740993'",
        ),
        ("1,,5,100,Foo\n", "line 2: item_id is missing in 1 of 1 rows"),
        ("1,2,5,,Foo\n", "line 2: timestamp must be a date .*, got ''"),
        ("1,2,5,100,Foo\n1,3,5,101,\n", r"line 3: 1 items have no title, for example \[3\]"),
        ("1,2,5,100,Foo\n1,3,5,101,\0 \0\n", r"line 3: 1 items have no title, for example \[3\]"),
        ("", "t.csv: no rows"),
        ("\n\n", "t.csv: no rows"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, rows: str, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        read(tmp_path, HEADER + rows)
    assert "t.csv" in str(caught.value) and len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    ("item", "match"),
    [
        (ITEM.replace("Bar", "B\tar"), "x.item, line 3: expected 2 fields, as in the header, got 3"),
        (ITEM.replace("Foo\n", "Foo\t\n"), "x.item, line 2: .* got 3 .a separator at the end of the row."),
        (ITEM.replace("\tBar", ""), "x.item, line 3: expected 2 fields, as in the header, got 1"),
        (ITEM.encode().replace(b"Bar", b"B\xe4r"), "x.item, line 3: expected UTF-8 text"),
        (ITEM.encode("utf-16"), "x.item, line 1: expected UTF-8 text"),
        (ITEM.replace("title:", "item_id:"), "x.item: expected the columns item_id and title"),
        (
            ITEM.replace("\ttitle", "\ttitle:token\ttitle").replace("Foo", "a\tb").replace("Bar", "a\tb"),
            "one column title, got 2",
        ),
        ("", "x.item: the file is empty"),
        (ITEM.split("\n")[0], "x.item: no rows"),
    ],
)
def test_errors_of_the_second_file_name_it(tmp_path: Path, item: str | bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        recbole(tmp_path, item)


@pytest.mark.parametrize("name", ["user_id", "title", "rating"])
def test_a_column_that_is_there_twice(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"t.csv: expected one column {name}, got 2; found"):
        read(tmp_path, HEADER.strip() + f",{name}\n1,2,5,100,Foo,x\n")


def test_long_values_and_many_columns_are_cut_in_errors(tmp_path: Path) -> None:
    for text in (
        HEADER + f"1,2,5,{'9' * 5000},Foo\n",
        HEADER + "1,2,5,100," + "Foo," * 5000 + "\n",
        ",".join(f"column_{number}" for number in range(5000)) + "\n",
        HEADER + f'1,2,5,100,"{"x" * 200_000}"\n',
        HEADER + f"{'y' * 5000},,5,100,Foo\n",
    ):
        with pytest.raises(ValueError, match="t.csv") as caught:
            read(tmp_path, text)
        assert len(str(caught.value)) <= 300
    deep = tmp_path / ("folder" * 30)
    deep.mkdir()
    with pytest.raises(ValueError, match="….*t.csv, line 2: rating") as caught:
        read(deep, HEADER + "1,2,good,100,Foo\n")
    assert len(str(caught.value)) <= 300


def test_gzip_that_is_none_or_cut(tmp_path: Path) -> None:
    whole = gzip.compress((HEADER + "1,2,5,100,Foo\n" * 99).encode())
    for data in (b"hello", whole[:-9], whole[:40] + b"xx" + whole[42:]):
        with pytest.raises(ValueError, match="t.csv.gz: cannot be unpacked by gzip|t.csv.gz"):
            read(tmp_path, data, "t.csv.gz")


def test_json_lines(tmp_path: Path) -> None:
    rows = [
        dict(user_id="a", item_id=1, rating=4, timestamp="2014-07-18", title="A\u2028B\r\n"),
        dict(title="C", timestamp="2014-07-19", rating=4.5, item_id=2, user_id="b", more=[1, {}]),
    ]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    for name, data in (
        ("t.jsonl", text),
        ("t.json", b"\xef\xbb\xbf" + text + b"\r\n"),
        ("t.jsonl.gz", gzip.compress(text)),
    ):
        loaded = read(tmp_path, data, name)
        assert loaded.name == "t" and loaded.titles == {1: "A\u2028B\r\n", 2: "C"}
        assert loaded.frame["user_id"].tolist() == ["a", "b"] and loaded.frame["rating"].tolist() == [4, 4.5]


ROW = '{"user_id": 1, "item_id": 2, "rating": 5, "timestamp": 100, "title": "Foo"}\n'


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[" + ROW + "]", "line 1: expected one JSON object a line"),
        (ROW + "{", "line 2: expected one JSON object a line"),
        (ROW + "17\n", "line 2: expected one JSON object a line, got 17"),
        (ROW + "[" * 100_000, "line 2: expected one JSON object a line"),
        (ROW + ROW.replace("5", "9" * 5000), "line 2: expected one JSON object a line"),
        (ROW + ROW.replace('"item_id"', '"user_id"'), "line 2: .*a name stands in it twice"),
        (ROW + ROW.replace("5", '"good"'), "line 2: rating must be of one type in all lines, as in line 1, got 'good'"),
        (ROW + ROW.replace("5", "[5]"), r"line 2: rating must be text or a number, got \[5\]"),
        (ROW + ROW.replace("5", "NaN"), "line 2: rating must be a finite number, got nan"),
        (ROW + ROW.replace("5", "null"), "line 2: rating must be a finite number, got None"),
        (ROW + ROW.replace('"rating": 5, ', ""), "line 2: rating must be a finite number, got None"),
        (ROW.replace("5", "4.5") + ROW.replace("5", str(2**53 + 1)), "line 2: rating must be at most 2.53"),
        (ROW.replace("title", "film"), "missing column title; found"),
        ("", "the file is empty"),
        ("\n", "the file is empty"),
    ],
)  # fmt: skip
def test_wrong_json_lines(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ValueError, match="t.jsonl.*" + match) as caught:
        read(tmp_path, text, "t.jsonl")
    assert len(str(caught.value)) <= 300
