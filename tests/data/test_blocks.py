"""Text by Arrow's blocks and text row by row are the same; what Arrow would read otherwise is left to the latter."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cora.data import blocks, load_interactions, text
from cora.data.blocks import Odd
from cora.data.rows import Rows
from cora.data.text import read_separated

HEADER = "user_id,item_id,rating,timestamp,title\n"
PLAIN = HEADER + "".join(f'{row},{row % 3},{row % 10 / 2},{100 + row},"Film, The {row % 3}"\n' for row in range(50))


@pytest.fixture(params=[1 << 24, 97])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Whole files, and blocks of two or three rows."""
    monkeypatch.setattr(blocks, "_BLOCK", request.param)
    return int(request.param)


def read(file: Path, separator: str = ",", quoted: bool = True, header: list[str] | None = None) -> Rows:
    return read_separated(file, lambda _, names: {name: name for name in names}, separator, quoted, header)


def row_by_row(monkeypatch: pytest.MonkeyPatch, *given: Any) -> Rows:
    def none(*_: Any) -> Iterator[Any]:
        raise Odd

    with monkeypatch.context() as patch:
        patch.setattr(text, "blocks", none)
        return read(*given)


def cells(rows: Rows) -> list[list[str]]:
    """As they are written, with the line of each row before them."""
    lines = rows.lines[0]
    assert lines is not None
    columns = [[str(rows.cell(row, name)) for row in range(len(rows))] for name in rows.names]
    return [list(map(str, lines)), *columns]


@pytest.mark.parametrize(
    ("content", "separator", "quoted"),
    [
        (PLAIN, ",", True),
        (PLAIN.replace(",", "\t"), "\t", True),
        (PLAIN.replace("\n", "\r\n"), ",", True),
        (PLAIN.replace("\n", "\n\n", 20).replace("\n1", "\n\n1"), ",", True),
        ("\n\n" + PLAIN + "7,8,9,10,Bär", ",", True),
        (PLAIN.replace("Film, The 1", 'Film\n""The""\n\n1'), ",", True),
        (PLAIN.replace('"Film, The 2"', '""""""'), ",", True),
        (PLAIN.replace('"Film, The 0"', ""), ",", True),
        (PLAIN.replace('"Film, The', '"Film The').replace(",", "::"), "::", False),
        (PLAIN.replace('"Film, The', '":The').replace(",", "::"), "::", False),
        (PLAIN.replace("Film, The", "Film").replace(",", "\t").replace('"', '"" "'), "\t", False),
        (PLAIN.replace("\n1,", "\n01,").replace(",105,", ",-0,"), ",", True),
    ],
)
def test_blocks_are_read_as_rows_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, content: str, separator: str, quoted: bool
) -> None:
    for name, data in (("t.csv", content.encode()), ("t.csv.gz", gzip.compress(b"\xef\xbb\xbf" + content.encode()))):
        (tmp_path / name).write_bytes(data)
        with monkeypatch.context() as patch:
            patch.setattr(text, "_quoted_rows", first_row_alone)
            patch.setattr(text, "_bare_rows", first_row_alone)
            found = read(tmp_path / name, separator, quoted)
        assert cells(found) == cells(row_by_row(monkeypatch, tmp_path / name, separator, quoted))


def first_row_alone(file: Path, separator: str, *_: Any) -> Iterator[tuple[int, list[str]]]:
    """The header, and an error for whoever asks for more: Arrow has to read the rest."""
    yield 1, separator.join(HEADER.strip().split(",")).split(separator)
    raise AssertionError("read row by row")


@pytest.mark.parametrize(
    "row",
    [
        '1,2,3,4,a"b',
        '1,2,3,4,"a"b',
        '1,2,3,4,"a',
        "1,2,3,4,a\rb",
        '1,2,3,4,"a\rb"',
        "1,2,3,4,a\0b",
        "1,2,3,4",
        "1,2,3,4,5,6",
        f"1,2,3,4,{'x' * 140_000}",
    ],
)
def test_what_arrow_reads_otherwise_is_left_alone(tmp_path: Path, block: int, row: str) -> None:
    (tmp_path / "t.csv").write_bytes((PLAIN + row + "\n").encode())
    with pytest.raises(Odd):
        list(blocks.blocks(tmp_path / "t.csv", "\n", ",", True, True, 5, [0, 4]))


def test_a_byte_order_mark_within_the_file_is_a_part_of_the_value(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n\ufeffx,1\n")
    assert cells(read(tmp_path / "t.csv"))[1] == ["\ufeffx"]


def test_an_error_in_a_later_block_names_its_line(tmp_path: Path, block: int) -> None:
    (tmp_path / "t.csv").write_text(PLAIN.replace("\n40,1,0.0,", "\n\n40,1,good,"))
    with pytest.raises(ValueError, match="t.csv, line 43: rating must be a finite number, got 'good'"):
        load_interactions(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(PLAIN.encode() + b"1,2,3,4,B\xe4r\n")
    with pytest.raises(ValueError, match="t.csv, line 52: expected UTF-8 text, got the byte 0xe4"):
        load_interactions(tmp_path / "t.csv")


def test_ids_are_text_everywhere_if_one_block_has_text(tmp_path: Path, block: int) -> None:
    (tmp_path / "t.csv").write_text(PLAIN.replace("\n49,", "\nann,"))
    users = load_interactions(tmp_path / "t.csv").frame["user_id"]
    assert set(users) == {*map(str, range(49)), "ann"}


@given(
    rows=st.lists(
        st.tuples(
            *[st.one_of(st.sampled_from(["", "1", "-5", "007", "a"]), st.text('ab",\n\t \ufeff', max_size=4))] * 2
        ),
        min_size=1,
        max_size=12,
    ),
    raw=st.booleans(),
    size=st.integers(1, 60),
)
def test_random_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str]], raw: bool, size: int
) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", size)
    written = [row if raw else ['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    (tmp_path / "t.csv").write_text("\n".join(map(",".join, [["a", "b"], *written])))
    found: list[Any] = []
    for reader in (read, lambda file: row_by_row(monkeypatch, file)):
        try:
            found.append(cells(reader(tmp_path / "t.csv")))
        except ValueError as error:
            found.append(str(error))
    assert found[0] == found[1]
