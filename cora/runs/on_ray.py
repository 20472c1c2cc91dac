"""Parts of a table written by the machines of a Ray cluster, with Ray Data (extra `ray`).

A worker that is killed is started again and its part with it. A part is a file that is there whole or not at all, so
none of its rows is lost and none comes twice.
"""

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cora.runs.distributed import process_count

# Of a part, each ended by a kill: machines may be taken away, and a part that kills its worker must end.
_MOST_TRIES = 6
_TASKS = 1000  # of Ray's, at most; each of one part or more

Part = tuple[Path, list[Any]]  # a file, and the users in it: whole numbers or text
TRIES = ".tries"  # ends the name of a file beside a part that has a byte for each worker that has begun the part
WritePart = Callable[[Path, list[Any]], object]


@contextmanager
def ray_cluster(address: str) -> Iterator[Callable[[WritePart, Sequence[Part]], Iterator[int]]]:
    """Gives write_parts(write, parts): calls write(file, users) for every part in a worker of the cluster, and yields
    the number of users of each part that is done.

    address: as of `ray.init`, "auto" for the cluster that this machine is in, "local" for one started here, of this
    machine alone. A worker is a process for each GPU of the cluster; without GPUs, for as many CPUs as its smallest
    machine has, so that a machine loads a model once. write: is pickled, once for every worker. Relative paths are
    those of the working directory here: the run, its data and the folder of the parts have to be on storage that every
    machine has in the same place.

    Raises ValueError without Ray or as one of several processes, ConnectionError where no cluster answers, and
    ChildProcessError for a part that a worker could not write, or was killed at six times.
    """
    if find_spec("ray") is None:
        raise ValueError("ray: it is not installed, install the extra `ray` of cora-kernels")
    if process_count() > 1:
        raise ValueError(f"ray: expected one process, which has Ray start others, got {process_count()}")
    import ray

    if ray.is_initialized():
        yield _write_parts
        return
    dashboard = dict(include_dashboard=False) if address == "local" else {}
    # Workers are silent, as all processes are but the first that torchrun starts.
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **dashboard)
    try:
        yield _write_parts
    finally:
        ray.shutdown()


def _write_parts(write: WritePart, parts: Sequence[Part]) -> Iterator[int]:
    import ray
    from ray.data import ActorPoolStrategy, from_items

    left = [(file, users) for file, users in parts if not file.is_file()]
    yield sum(len(users) for _, users in parts) - sum(len(users) for _, users in left)
    if not left:
        return
    for file, _ in left:
        file.with_suffix(TRIES).unlink(missing_ok=True)
    rows = [{"file": str(file), "users": json.dumps(users)} for file, users in left]
    size, resources = _workers(ray.nodes())
    with _own_settings():
        done = from_items(rows, override_num_blocks=min(len(rows), _TASKS)).map(
            _Worker, fn_constructor_args=(write, os.getcwd()), compute=ActorPoolStrategy(size=size), **resources
        )
        try:
            for row in done.iter_rows():
                if row["error"]:
                    raise ChildProcessError(f"ray: a worker failed: {row['error']}")
                yield row["users"]
        except ray.exceptions.RayError as error:
            raise ChildProcessError(f"ray: {str(error).strip().splitlines()[0]}") from error
    if lost := [file for file, _ in left if not file.is_file()]:
        raise ChildProcessError(f"ray: {lost[0]} was written by another machine and is not here: share its folder")


@contextmanager
def _own_settings() -> Iterator[None]:
    """Ray Data prints nothing meanwhile, neither notes nor the trace of an error that is raised here as well; a worker
    may be killed while it starts."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = _MOST_TRIES
    printing = [one for one in logging.getLogger("ray.data").handlers if isinstance(one, logging.StreamHandler)]
    levels = [one.level for one in printing]
    with warnings.catch_warnings(), DataContext.current(context):
        warnings.simplefilter("ignore")
        for one in printing:
            one.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for one, level in zip(printing, levels, strict=True):
                one.setLevel(level)


class _Worker:
    """A process of the cluster, and what writes parts there."""

    def __init__(self, write: WritePart, folder: str) -> None:
        os.chdir(folder)
        self._write = write

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The number of users, and what went wrong, or nothing: raised, it would reach nobody but within Ray's text."""
        file, users = Path(row["file"]), json.loads(row["users"])
        try:
            self._try(file, users)
        except Exception as error:
            return {"users": 0, "error": f"{type(error).__name__}: {error}"}
        return {"users": len(users), "error": ""}

    def _try(self, file: Path, users: list[Any]) -> None:
        tries = file.with_suffix(TRIES)
        with tries.open("ab") as marks:
            marks.write(b".")
        if tries.stat().st_size > _MOST_TRIES:
            raise RuntimeError(f"{file.name}: {_MOST_TRIES} workers were killed at it")
        self._write(file, users)
        tries.unlink(missing_ok=True)


def _workers(machines: Sequence[dict[str, Any]]) -> tuple[int, dict[str, int]]:
    """How many workers the machines have room for, and what each takes."""
    found = [one["Resources"] for one in machines if one["Alive"]]
    if gpus := sum(int(one.get("GPU", 0)) for one in found):
        return gpus, {"num_gpus": 1}
    cpus = [int(one["CPU"]) for one in found if one.get("CPU", 0) >= 1]
    if not cpus:
        raise ValueError("ray: the cluster has no CPU")
    return sum(one // min(cpus) for one in cpus), {"num_cpus": min(cpus)}
