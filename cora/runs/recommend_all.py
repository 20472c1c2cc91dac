"""Items recommended to many users: a table that a killed command goes on with."""

import hashlib
import json
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
from cora.runs.recommend import Recommender, as_id, recommender_of

_REQUEST = b"cora"  # what a table answers, in its metadata
_PROMPTS = 1600  # of one part, about a minute's work on two cores


def recommend_all(run: str | Path, users: str | Path, out: str | Path, top: int = 10, candidates: int = 100) -> int:
    """Writes the recommendations of `recommend` for many users to the parquet file `out`; returns how many users there
    are in it.

    users: a file with one id a line, UTF-8. out: user_id, rank (from 1), item_id, title, probability and, where the
    collaborative vectors chose the candidates, collaborative_rank; users in the order of the file; one who has a row
    with every item has none. Until it is whole, parts of it lie in the folder `out`.parts: the same command after a
    kill goes on behind them, and after its end does nothing. Several processes, as torchrun starts them, divide the
    parts among them.

    Raises what `recommend` raises; FileNotFoundError for a missing file of users; ValueError, naming the line, for a
    repeated or odd id, and for a file without any; FileExistsError for an `out` that another request or another program
    has made, and for one that another process is writing.
    """
    out, folder = Path(out), RunFolder.existing(run)
    lines = _lines(Path(users))
    request = _request(folder, lines, top, candidates)
    if out.exists():
        if _answered(out) != request:
            raise FileExistsError(f"out: {out} exists and holds something else; choose another file, or remove it")
        print(f"{out} holds these recommendations, finished")
        return len(lines)
    parts = out.with_name(out.name + ".parts")
    join_processes()
    recommender = recommender_of(run, top, candidates)
    ids = _ids(recommender, lines, Path(users))
    parts.mkdir(parents=True, exist_ok=True)
    lock = FileLock(parts / ".lock")
    try:
        if is_main():
            lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(f"out: another process is writing {out}; wait for it to end") from None
    wait_for_all()
    try:
        files = _write_parts(recommender, ids, parts, request)
        wait_for_all()
        if is_main():
            whole = pa.concat_tables([pq.read_table(file) for file in files])
            write_files(out.parent, {out.name: lambda file: pq.write_table(whole, file)})
            for file in files:
                file.unlink()
    finally:
        lock.release()
    if is_main():
        (parts / ".lock").unlink(missing_ok=True)
        parts.rmdir()
    wait_for_all()
    return len(ids)


def _write_parts(
    recommender: Recommender | NextItemRecommender, ids: list[Any], parts: Path, request: str
) -> list[Path]:
    together = max(1, _PROMPTS // recommender.candidates)
    files = [parts / f"{start:09}.parquet" for start in range(0, len(ids), together)]
    if other := [file for file in parts.glob("*.parquet") if _answered(file) != request]:
        raise FileExistsError(f"out: {other[0]} is of another request; choose another file, or remove {parts}")
    with tqdm(total=len(ids), desc="users", unit="user") as bar:
        for number, file in enumerate(files):
            chunk = ids[number * together : (number + 1) * together]
            if number % process_count() == process_index() and not file.is_file():
                _write(file, recommender.of(chunk)[1], request)
            bar.update(len(chunk))
    return files


def _write(path: Path, table: pd.DataFrame, request: str) -> None:
    made = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata({_REQUEST: request})
    write_files(path.parent, {path.name: lambda file: pq.write_table(made, file)})


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
