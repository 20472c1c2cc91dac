"""Random files of every form: what is read is what was written, and else one short error names the file."""

import csv
import datetime
import gzip
import io
import json
import math
import warnings
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import assume, given
from hypothesis import strategies as st
from pyarrow import parquet

from cora.data import Interactions, load_interactions

COLUMNS = ("user_id", "item_id", "rating", "timestamp", "title")
ODD = [
    "\r",
    "\n",
    "\r\n",
    "\u2028",
    "\u0085",
    "\x0b",
    "\0",
    "\ufeff",
    '"',
    '""',
    ",",
    "\t",
    "|",
    "::",
    " ",
    "\xa0",
    "'",
    "\\",
]
TEXT = st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=4)), max_size=4).map("".join)
WHOLE = st.one_of(
    st.integers(-(2**65), 2**65), st.integers(0, 99), st.sampled_from([2**63 - 1, 2**63, -(2**63), 2**53 + 1])
)
NUMBER = st.one_of(WHOLE.map(str), st.floats(width=64).map(repr), st.decimals(places=3, allow_nan=False).map(str))
IDS = st.one_of(
    st.integers(0, 9).map(str), WHOLE.map(str), st.sampled_from(["01", "+1", "-0", "1.0", "1e0", "１", "NA", ""]), TEXT
)
DATES = st.datetimes(datetime.datetime(1, 1, 2), datetime.datetime(9999, 12, 30))
ZONES = st.integers(-23 * 60, 23 * 60).map(lambda minutes: datetime.timezone(datetime.timedelta(minutes=minutes)))
EPOCH = datetime.datetime(1970, 1, 1)


def load(path: Path, *names: str) -> Interactions | None:
    """What is read, or None where it is refused as it should be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return load_interactions(path)
        except (ValueError, FileNotFoundError) as error:
            text = str(error)
            assert type(error) in (ValueError, FileNotFoundError) and len(text) <= 300 and "\n" not in text, repr(error)
            assert any(name in text for name in names or [path.name]), text
            return None


def assert_read(found: Interactions, rows: list[list[Any]], times: list[int]) -> None:
    """rows: user, item, rating, title; times: seconds. The frame is sorted by them and holds the last of repeats."""
    known = {(row[0], row[1], time): (float(row[2]), row[3]) for row, time in zip(rows, times, strict=True)}
    assert len(found.frame) == len(known)
    for user, item, rating, time in found.frame[["user_id", "item_id", "rating", "timestamp"]].itertuples(index=False):
        written = known.get((user, item, time)) or known.get((str(user), str(item), time))
        written = written or known.get((str(user), item, time)) or known[(user, str(item), time)]
        assert (rating, found.titles[item]) == written


def second(text: str) -> int:
    """Of a number of any unit, or of what datetime writes."""
    try:
        value = Decimal(text.strip())
    except ArithmeticError:
        moment = datetime.datetime.fromisoformat(text.strip())
        if moment.tzinfo:
            moment = moment.astimezone(datetime.timezone.utc).replace(tzinfo=None)
        return (moment - EPOCH) // datetime.timedelta(seconds=1)
    whole = math.floor(value)
    size = max(whole, ~whole)
    return whole // (1 if size < 10**11 else 10**3 if size < 10**14 else 10**6 if size < 10**17 else 10**9)


TIMES = st.one_of(
    st.integers(0, 2 * 10**9).map(str),
    st.integers(10**11, 10**14 - 1).map(str),
    NUMBER,
    DATES.map(str),
    DATES.map(lambda one: one.isoformat("T", "milliseconds")),
    st.builds(lambda one, zone: str(one.replace(tzinfo=zone)), DATES, ZONES),
    DATES.map(lambda one: str(one.date())),
)
ROWS = st.lists(
    st.tuples(IDS, IDS, st.one_of(st.sampled_from(["5", "4.5", " 3", "+2"]), NUMBER), TIMES, TEXT),
    min_size=1,
    max_size=5,
)


@given(
    rows=ROWS,
    same_times=st.booleans(),
    tabs=st.booleans(),
    packed=st.booleans(),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_quoted_text(
    tmp_path: Path, rows: Any, same_times: bool, tabs: bool, packed: bool, quoting: Any, end: str, mark: str
) -> None:
    rows = [[*row[:3], rows[0][3] if same_times else row[3], row[4]] for row in rows]
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if tabs else ",", quoting=quoting, lineterminator=end)
    writer.writerows([COLUMNS, *rows])
    data = (mark + text.getvalue()).encode()
    path = tmp_path / ("mine" + (".tsv" if tabs else ".csv") + (".gz" if packed else ""))
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    found = load(path)
    if found is not None:
        assert_read(found, [[row[0], row[1], row[2], row[4]] for row in rows], [second(row[3]) for row in rows])


@given(rows=ROWS, end=st.sampled_from(["\n", "\r\n"]), mark=st.sampled_from(["", "\ufeff"]))
def test_recbole(tmp_path: Path, rows: Any, end: str, mark: str) -> None:
    cells = [cell for row in rows for cell in row]
    assume(not any("\t" in cell or "\n" in cell for cell in cells))
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *("\t".join(row[:4]) for row in rows)]
    (tmp_path / "mine.inter").write_bytes((mark + end.join([*lines, ""])).encode())
    items = {row[1]: row[4] for row in rows}
    lines = ["title:token_seq\titem_id:token", *(f"{title}\t{item}" for item, title in items.items())]
    (tmp_path / "mine.item").write_bytes((mark + end.join([*lines, ""])).encode())
    found = load(tmp_path / "mine.inter", "mine.inter", "mine.item")
    if found is not None:
        rows = [[row[0], row[1], row[2], items[row[1]], row[3]] for row in rows]
        assert_read(found, rows, [second(row[4]) for row in rows])


@given(rows=ROWS, ends=st.booleans())
def test_movielens(tmp_path: Path, rows: Any, ends: bool) -> None:
    assume(not any("::" in cell or "\n" in cell or cell[:1] == ":" or cell[-1:] == ":" for row in rows for cell in row))
    assume(not rows[0][0].startswith("\ufeff") and not rows[0][1].startswith("\ufeff"))
    end = "\r\n" if ends else "\n"
    (tmp_path / "ratings.dat").write_bytes(end.join(["::".join(row[:4]) for row in rows]).encode())
    items = {row[1]: row[4] for row in rows}
    movies = end.join([f"{item}::{title}::Drama" for item, title in items.items()])
    try:
        (tmp_path / "movies.dat").write_bytes(movies.encode("latin-1"))
    except UnicodeEncodeError:
        (tmp_path / "movies.dat").write_bytes(movies.encode())
    found = load(tmp_path / "ratings.dat", "ratings.dat", "movies.dat")
    assume(found is not None)
    assert found is not None
    rows = [[row[0], row[1], row[2], items[row[1]], row[3]] for row in rows]
    if found.titles == {item: items[str(item)] for item in found.titles}:
        assert_read(found, rows, [second(row[4]) for row in rows])
    else:  # Latin-1 that happens to be UTF-8
        assert movies.encode("latin-1").decode() != movies


JSON = st.one_of(st.none(), st.booleans(), WHOLE, st.floats(), IDS, TEXT, st.lists(st.integers(), max_size=2))
OF_ONE_TYPE = [st.integers(0, 9), WHOLE, IDS, st.floats(), JSON, st.one_of(st.integers(0, 9), st.floats())]


@given(data=st.data(), size=st.integers(1, 5), ascii=st.booleans())
def test_json_lines(tmp_path: Path, data: st.DataObject, size: int, ascii: bool) -> None:
    def column(*more: Any) -> list[Any]:
        return data.draw(st.lists(data.draw(st.sampled_from([*more, *OF_ONE_TYPE])), min_size=size, max_size=size))

    users, items = column(), column()
    ratings, times, titles = column(st.integers(1, 5)), column(st.integers(0, 2 * 10**9), TIMES), column(TEXT)
    rows = list(zip(users, items, ratings, times, titles, strict=True))
    lines = [json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=ascii) for row in rows]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = load(tmp_path / "mine.jsonl")
    if found is not None:
        assert {type(one) for one in [*users, *items]} <= {int, str} and {type(one) for one in titles} <= {str, int}
        assert not {type(one) for one in [*ratings, *times]} & {bool, type(None), list}
        assert_read(found, [[*row[:3], str(row[4])] for row in rows], [second(str(row[3])) for row in rows])


def arrow(values: st.SearchStrategy[Any], kind: pa.DataType) -> Any:
    return st.tuples(st.lists(values, min_size=4, max_size=4), st.just(kind))


INTEGERS = st.sampled_from(
    [(name, *limits) for bits in (8, 16, 32, 64) for name, *limits in (
        (f"int{bits}", -(2 ** (bits - 1)), 2 ** (bits - 1) - 1), (f"uint{bits}", 0, 2**bits - 1)
    )]
).flatmap(lambda one: arrow(st.integers(one[1], one[2]), pa.type_for_alias(one[0])))  # fmt: skip
STAMPS = st.tuples(st.sampled_from(["s", "ms", "us", "ns"]), st.sampled_from([None, "UTC", "Europe/Berlin"])).flatmap(
    lambda one: arrow(st.integers(-(2**40), 2**40), pa.timestamp(one[0], one[1]))
)
ANY = st.one_of(
    INTEGERS,
    arrow(st.none() | st.integers(0, 5), pa.int32()),
    arrow(st.integers(0, 5) | WHOLE.filter(lambda one: abs(one) < 10**20), pa.decimal128(20, 0)),
    arrow(st.integers(0, 5), pa.decimal128(9, 2)),
    arrow(st.floats(), pa.float64()),
    arrow(st.floats(width=32), pa.float32()),
    arrow(st.booleans(), pa.bool_()),
    arrow(IDS, pa.string()),
    arrow(st.none() | TEXT, pa.large_string()),
    arrow(IDS, pa.dictionary(pa.int8(), pa.string())),
    arrow(st.integers(0, 5), pa.dictionary(pa.int16(), pa.int64())),
    arrow(st.binary(max_size=3), pa.binary()),
    arrow(st.integers(0, 10**4), pa.date32()),
    arrow(st.lists(st.integers(0, 5), max_size=2), pa.list_(pa.int8())),
    arrow(st.none(), pa.null()),
    STAMPS,
)


@given(
    ids=st.tuples(ANY, ANY),
    rating=st.one_of(arrow(st.integers(1, 5), pa.int8()), arrow(st.floats(1, 5), pa.float64()), ANY),
    time=st.one_of(arrow(st.integers(0, 2 * 10**9), pa.int64()), STAMPS, arrow(TIMES, pa.string()), ANY),
    title=st.one_of(arrow(TEXT, pa.string()), ANY),
    groups=st.sampled_from([1, 3, 100]),
)
def test_parquet(tmp_path: Path, ids: Any, rating: Any, time: Any, title: Any, groups: int) -> None:
    arrays = [pa.array(values, kind) for values, kind in (*ids, rating, time, title)]
    parquet.write_table(
        pa.table(arrays, list(COLUMNS)), tmp_path / "mine.parquet", row_group_size=groups, version="2.6"
    )
    found = load(tmp_path / "mine.parquet")
    if found is None:
        return
    users, items, ratings, titles = (array.to_pylist() for array in [*arrays[:3], arrays[4]])
    for one, kind in ((users, ids[0][1]), (items, ids[1][1])):
        assert {type(value) for value in one} in ({int}, {str}) or pa.types.is_decimal(kind)
    if pa.types.is_temporal(time[1]):
        per_second = 1 if time[1] == pa.date32() else {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[time[1].unit]
        days = 86400 if time[1] == pa.date32() else 1
        seconds = [days * value // per_second for value in time[0]]
    else:
        seconds = [second(str(value)) for value in arrays[3].to_pylist()]
    assert_read(found, list(zip(users, items, ratings, map(str, titles), strict=True)), seconds)


@given(
    data=st.data(),
    name=st.sampled_from(["mine.csv", "mine.tsv.gz", "mine.jsonl", "mine.parquet", "mine.inter", "u.data"]),
)
def test_broken_bytes(tmp_path: Path, data: st.DataObject, name: str) -> None:
    table = pa.table([["1", "2"], ["10", "11"], ["5", "3"], ["100", "101"], ["Foo", "B\u00e4r"]], list(COLUMNS))
    sink = io.BytesIO()
    if name.endswith(".parquet"):
        parquet.write_table(table, sink)
    elif name.endswith(".jsonl"):
        sink.write("\n".join(map(json.dumps, table.to_pylist())).encode())
    else:
        separator = "," if name.endswith(".csv") else "\t"
        header = {"mine.inter": [f"{one}:token" for one in COLUMNS]}.get(name, list(COLUMNS))
        body = [list(row.values()) for row in table.to_pylist()]
        if name == "u.data":
            header, body = body[0][:4], [row[:4] for row in body]
        sink.write("\n".join(map(separator.join, [header, *body])).encode())
    (tmp_path / "mine.item").write_text("item_id:token\tname:token_seq\n10\tFoo\n11\tBar\n")
    (tmp_path / "u.item").write_text("".join(f"{item}|Foo|||{'|0' * 19}\n" for item in (10, 11)))
    content = gzip.compress(sink.getvalue(), 1, mtime=0) if name.endswith(".gz") else sink.getvalue()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        stop = data.draw(st.integers(start, min(len(content), start + data.draw(st.sampled_from([0, 1, 2, 2000])))))
        content = content[:start] + data.draw(st.binary(max_size=3)) + content[stop:]
    (tmp_path / name).write_bytes(content)
    load(tmp_path / name, name, name.replace("inter", "item").replace("data", "item"))


NAMES = [
    "train",
    "valid",
    "validation",
    "test",
    "part-0",
    "part-1",
    "train-00000-of-00001",
    "mine",
    "ratings",
    "0000",
    "u",
]
SUFFIXES = [".csv", ".parquet", ".csv.gz", ".jsonl", ".inter", ".item", ".dat", ".data", ".txt", ""]
FOLDERS = ["", "", "", "data/", "train/", "valid/", "split=test/", "other/", "_temporary/"]


@given(
    files=st.lists(
        st.tuples(st.sampled_from(FOLDERS), st.sampled_from(NAMES), st.sampled_from(SUFFIXES), st.booleans()),
        max_size=5,
    )
)
def test_folders(tmp_path_factory: Any, files: Any) -> None:
    folder = tmp_path_factory.mktemp("mine")
    written = set()
    for row, (parent, name, suffix, is_empty) in enumerate(files):
        path = folder / (parent + name + suffix)
        if path.is_dir() or path.parent.is_file():
            continue
        path.parent.mkdir(exist_ok=True)
        text = ",".join(COLUMNS) + f"\n{row},{row},5,{100 + row},Film {row}\n"
        if suffix == ".parquet" and not is_empty:
            one = dict(user_id=[str(row)], item_id=[str(row)], rating=[5], timestamp=[100 + row], title=[f"Film {row}"])
            parquet.write_table(pa.table(one), path)
        elif suffix == ".csv.gz":
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text("" if is_empty else text)
        written.add(row)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = load_interactions(folder)
        except (ValueError, FileNotFoundError) as error:
            assert type(error) in (ValueError, FileNotFoundError) and len(str(error)) <= 300
            assert folder.name in str(error)
            return
    for user, time in zip(found.frame["user_id"].astype(int), found.frame["timestamp"], strict=True):
        assert time == 100 + user and found.titles[found.frame["item_id"].iloc[0]].startswith("Film")
