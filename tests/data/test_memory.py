"""What does not fit into memory is refused before it is read, with the number of rows that would."""

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from cora.data import load_interactions, memory

ROW = "123456,654321,4.5,1405641600,Alien\n"
HEADER = "user_id,item_id,rating,timestamp,title\n"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for 5,000 rows, and estimates for small files too."""
    monkeypatch.setattr(memory, "_SMALL", 1)
    monkeypatch.setattr(memory, "free_memory", lambda: 5000 * memory.BYTES_A_ROW)


def fill(folder: Path, name: str, rows: int) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        columns = dict(user_id=range(rows), item_id=[1] * rows, rating=[5] * rows, timestamp=range(100, 100 + rows))
        parquet.write_table(pa.table({**columns, "title": ["Alien"] * rows}), path)
    else:
        data = (HEADER + "".join(f"{row},1,4.5,{1405641600 + row},Alien\n" for row in range(rows))).encode()
        path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_one_file(tmp_path: Path, name: str) -> None:
    assert len(load_interactions(fill(tmp_path, name, 4000)).frame) == 4000
    with pytest.raises(ValueError, match=rf"{name}: about [67],\d\d\d rows take .* GiB .*: at most 5,000 rows fit$"):
        load_interactions(fill(tmp_path, name, 6500))


def test_the_files_of_a_folder_count_together(tmp_path: Path) -> None:
    for name in ("train.parquet", "valid.parquet", "test.parquet"):
        fill(tmp_path, name, 2000)
    with pytest.raises(ValueError, match="train.parquet and 2 other files: about 6,000 rows take"):
        load_interactions(tmp_path)


def test_where_nothing_is_known_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    assert len(load_interactions(fill(tmp_path, "t.csv", 6000)).frame) == 6000


def test_files_that_cannot_be_read_have_their_own_error(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(b"hello")
    with pytest.raises(ValueError, match="t.csv.gz: cannot be unpacked by gzip"):
        load_interactions(tmp_path / "t.csv.gz")
    (tmp_path / "t.parquet").write_bytes(b"hello")
    with pytest.raises(ValueError, match="t.parquet: cannot be read as parquet"):
        load_interactions(tmp_path / "t.parquet")


def test_the_least_of_the_limits_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert memory._of_group(tmp_path) is None and memory._of_group(tmp_path / "none") is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 50\n")
    assert memory._of_group(tmp_path) == 350
    monkeypatch.setattr(memory, "_of_group", lambda: 350)
    assert memory.free_memory() == 350
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**60, 2**60))
    assert memory._of_process() is None or 0 < memory._of_process() < 2**60
