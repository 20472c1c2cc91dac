"""Items recommended to many users: a table that a killed command goes on with."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from cora.files import write_files
from cora.runs.distributed import is_main, join_processes, process_count, process_index, wait_for_all
from cora.runs.folder import RunFolder
from cora.runs.next_items_recommend import NextItemRecommender
from cora.runs.on_ray import TRIES, WritePart, ray_cluster
from cora.runs.recommend import Recommender, as_id, recommender_of

_REQUEST = b"cora"  # what a table answers, in its metadata
_PROMPTS = 1600  # of one part, about a minute's work on two cores


def recommend_all(
    run: str | Path, users: str | Path, out: str | Path, top: int = 10, candidates: int = 100, ray: str | None = None
) -> int:
    """Writes the recommendations of `recommend` for many users to the parquet file `out`; returns how many users there
    are in it.

    users: a file with one id a line, UTF-8. out: user_id, rank (from 1), item_id, title, probability and, where the
    collaborative vectors chose the candidates, collaborative_rank; users in the order of the file; one who has a row
    with every item has none. Until it is whole, parts of it lie in the folder `out`.parts: the same command after a
    kill goes on behind them, and after its end does nothing. Several processes, as torchrun starts them, divide the
    parts among them; ray: so do the machines of the Ray cluster at this address, see `ray_cluster`.

    Raises what `recommend` raises; FileNotFoundError for a missing file of users; ValueError, naming the line, for a
    repeated or odd id, and for a file without any; FileExistsError for an `out` that another request or another program
    has made, and for one that another process is writing; with `ray` what `ray_cluster` raises.
    """
    out, folder = Path(out), RunFolder.existing(run)
    lines = _lines(Path(users))
    request = _request(folder, lines, top, candidates)
    if out.exists():
        if _answered(out) != request:
            raise FileExistsError(f"out: {out} exists and holds something else; choose another file, or remove it")
        print(f"{out} holds these recommendations, finished")
        return len(lines)
    join_processes()
    with nullcontext(_write_share) if ray is None else ray_cluster(ray) as write_parts:
        writer = _PartWriter(run, top, candidates, request)
        ids = _ids(writer.recommender, lines, Path(users))
        with _locked(out.with_name(out.name + ".parts"), out) as parts:
            files = _parts(ids, max(1, _PROMPTS // candidates), parts, request)
            with tqdm(total=len(ids), desc="users", unit="user") as bar:
                for done in write_parts(writer, list(files.items())):
                    bar.update(done)
            wait_for_all()
            if is_main():
                write_files(out.parent, {out.name: lambda file: _join(list(files), file)})
                for file in files:
                    file.unlink()
    wait_for_all()
    return len(ids)


@contextmanager
def _locked(parts: Path, out: Path) -> Iterator[Path]:
    """The folder of parts, in which one command works at a time; it is gone at the end, unless there was an error."""
    parts.mkdir(parents=True, exist_ok=True)
    lock = FileLock(parts / ".lock")
    try:
        if is_main():
            lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(f"out: another process is writing {out}; wait for it to end") from None
    wait_for_all()
    try:
        yield parts
    finally:
        lock.release()
    if is_main():
        for rest in (parts / ".lock", *parts.glob(f"*{TRIES}")):
            rest.unlink(missing_ok=True)
        parts.rmdir()


def _parts(ids: list[Any], together: int, folder: Path, request: str) -> dict[Path, list[Any]]:
    """The users of every part. Raises FileExistsError if the folder has one of another request."""
    if other := [file for file in folder.glob("*.parquet") if _answered(file) != request]:
        raise FileExistsError(f"out: {other[0]} is of another request; choose another file, or remove {folder}")
    return {folder / f"{start:09}.parquet": ids[start : start + together] for start in range(0, len(ids), together)}


class _PartWriter:
    """Writes the parts of one request, wherever it runs: another process is given the request, and loads the run."""

    def __init__(self, run: str | Path, top: int, candidates: int, request: str) -> None:
        self._given = (run, top, candidates, request)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given

    @cached_property
    def recommender(self) -> Recommender | NextItemRecommender:
        return recommender_of(*self._given[:3])

    def __call__(self, path: Path, users: list[Any]) -> None:
        """Nothing if the part is there."""
        if not path.is_file():
            _write(path, self.recommender.of(users)[1], self._given[3])


def _write_share(write: WritePart, parts: Sequence[tuple[Path, list[Any]]]) -> Iterator[int]:
    """Writes what this process has to of the parts, and gives the number of users of each that it comes by."""
    for number, (path, users) in enumerate(parts):
        if number % process_count() == process_index():
            write(path, users)
        yield len(users)


def _write(path: Path, table: pd.DataFrame, request: str) -> None:
    made = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata({_REQUEST: request})
    write_files(path.parent, {path.name: lambda file: pq.write_table(made, file)})


def _join(parts: list[Path], out: Path) -> None:
    """One file of all parts, of which one at a time is in memory."""
    # A column of a part without rows has no type.
    schema = pa.unify_schemas([pq.read_schema(file) for file in parts], promote_options="permissive")
    with pq.ParquetWriter(out, schema) as writer:
        for file in parts:
            writer.write_table(pq.read_table(file).cast(schema))


def _answered(path: Path) -> str | None:
    """The request that a table answers, None for what is no such table."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    return metadata.get(_REQUEST, b"").decode() or None


def _request(folder: RunFolder, lines: list[str], top: int, candidates: int) -> str:
    metrics = folder.metrics.read_text(encoding="utf-8")
    users = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return json.dumps({"users": users, "top": top, "candidates": candidates, "run": json.loads(metrics)})


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"users: there is no file {path}")
    try:
        lines = [line.removesuffix("\r") for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"users: {path} is not UTF-8 text ({error})") from None
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise ValueError(f"users: {path} is empty, expected one id a line")
    return lines


def _ids(recommender: Recommender | NextItemRecommender, lines: list[str], path: Path) -> list[Any]:
    found: dict[Any, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise ValueError(f"users: line {number} of {path} is empty, expected one id a line")
        one = as_id(f"users: line {number} of {path}", line, recommender.frame["user_id"])
        if one in found:
            raise ValueError(f"users: line {number} of {path} repeats the id {line!r} of line {found[one]}")
        found[one] = number
    return list(found)
