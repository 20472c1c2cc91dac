"""Whether the rows of files fit into memory, told before they are read."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from cora.data.problems import problem, shown_path

# What a row takes at the most while it is read, typed, sorted and split: 25 million rows with text ids take 150.
BYTES_A_ROW = 160
_SAMPLE = 1 << 20  # bytes of a text file from which its rows are told
_SMALL = 1 << 24  # bytes of files that need no estimate


def refuse_too_large(files: Sequence[Path]) -> None:
    """Raises ValueError if the rows of these files, together, take more memory than is free; it says how many fit."""
    free = free_memory()
    if free is None or sum(file.stat().st_size for file in files) < _SMALL:
        return
    rows = sum(map(_rows, files))
    if rows * BYTES_A_ROW > free:
        more = f" and {len(files) - 1} other files" if len(files) > 1 else ""
        raise problem(
            f"{shown_path(files[0])}{more}",
            f"about {rows:,} rows take {rows * BYTES_A_ROW / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are "
            f"free: at most {free // BYTES_A_ROW:,} rows fit",
        )


def _rows(file: Path) -> int:
    """How many a file has: as parquet says, of text by the length of its first lines; 0 where it cannot be told."""
    try:
        if file.name.lower().endswith(".parquet"):
            return int(parquet.read_metadata(file).num_rows)
        with file.open("rb") as raw:
            is_packed = file.name.lower().endswith(".gz")
            lines = (gzip.GzipFile(fileobj=raw) if is_packed else raw).read(_SAMPLE).count(b"\n")
            return file.stat().st_size * lines // max(1, raw.tell())
    except (pa.ArrowException, OSError, EOFError, zlib.error):
        return 0


def free_memory() -> int | None:
    """Bytes that this process may still take: of the machine's, its control group's and its own limit the least; None
    where the system does not say."""
    found = [_of_machine(), _of_group(), _of_process()]
    return min((one for one in found if one is not None), default=None)


def _of_machine() -> int | None:
    return _entries(Path("/proc/meminfo"), 1024).get("MemAvailable")


def _of_group(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    try:
        most, used = ((folder / f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:
        return None
    if most == "max":
        return None
    cached = _entries(folder / "memory.stat", 1).get("inactive_file", 0)  # given back when it is needed
    return max(0, int(most) - int(used) + cached)


def _of_process() -> int | None:
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    taken = _entries(Path("/proc/self/status"), 1024).get("VmSize")
    return None if most == resource.RLIM_INFINITY or taken is None else max(0, most - taken)


def _entries(file: Path, unit: int) -> dict[str, int]:
    """The numbers of a file with a name and a number a line."""
    try:
        lines = [line.replace(":", " ").split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: unit * int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}
