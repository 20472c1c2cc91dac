"""Tables with the titles in them: parquet, CSV, TSV and JSON lines, as one file or as a folder of files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from cora.data.choosing import event_columns
from cora.data.json_lines import read_json_lines
from cora.data.memory import refuse_too_large
from cora.data.parts import part_files, suffix_of
from cora.data.problems import clipped, problem
from cora.data.rows import Rows, Source, kind, plain, together
from cora.data.text import read_separated

FORMS = "train and valid or numbered parts as .parquet, .csv, .tsv or .jsonl"


def reads(path: Path) -> bool:
    """A file of a known suffix, or a folder with such files, as `part_files` knows them."""
    return bool(part_files(path, tuple(_READERS))) if path.is_dir() else _suffix(path) is not None


def read(path: Path) -> Source:
    """One file, or the files of a folder, each of a part of the split or all of a source that is not split."""
    split = part_files(path, tuple(_READERS)) if path.is_dir() else {"": [path]}
    refuse_too_large([file for files in split.values() for file in files])
    found, parts = [], []
    for part, files in split.items():
        for file in files:
            if len(files) > 1 and file.stat().st_size == 0:
                continue  # what Spark writes for a partition without rows
            found.append(_READERS[_suffix(file) or ""](file))
            parts.append(part)
    if not found:
        raise problem(path, "the files are empty")
    return Source(together(found), tuple(parts))


def _suffix(path: Path) -> str | None:
    return suffix_of(path, tuple(_READERS))


def _choose(file: Path, found: Sequence[str]) -> Mapping[str, str]:
    return event_columns(file, found, titled=True)


def _read_parquet(file: Path) -> Rows:
    try:
        # Spark's old INT96 times would overflow in nanoseconds, without a word.
        opened = parquet.ParquetFile(file, coerce_int96_timestamp_unit="us")
        names = _choose(file, opened.schema_arrow.names)
        texts = [name for name in names.values() if kind(opened.schema_arrow.field(name)) == "text"]
        coded_names = [name for name in texts if name != names["timestamp"]]
        opened = parquet.ParquetFile(file, coerce_int96_timestamp_unit="us", read_dictionary=coded_names)
        table = opened.read(columns=list(names.values()))
        columns = {ours: plain(table[name]) for ours, name in names.items()}
    except (pa.ArrowException, OSError) as error:
        raise problem(file, f"cannot be read as parquet ({clipped(str(error), 120)})") from None
    return Rows(pa.table(columns), names, (file,), (table.num_rows,), (None,), False)


def _read_csv(file: Path) -> Rows:
    return read_separated(file, _choose, ",", quoted=True)


def _read_tsv(file: Path) -> Rows:
    return read_separated(file, _choose, "\t", quoted=True)


def _read_json(file: Path) -> Rows:
    return read_json_lines(file, _choose)


_READERS: dict[str, Callable[[Path], Rows]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".tsv": _read_tsv,
    ".tsv.gz": _read_tsv,
    ".json": _read_json,
    ".json.gz": _read_json,
    ".jsonl": _read_json,
    ".jsonl.gz": _read_json,
}
