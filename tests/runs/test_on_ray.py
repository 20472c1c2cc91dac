"""The machines of a Ray cluster write what one process writes, whoever is killed: two of them on this one here."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cora.cli import main
from cora.runs import recommend_all
from cora.runs.on_ray import _workers
from cora.runs.settings import RunConfig
from cora.runs.train import train
from tests.films import write_ratings
from tests.killed_writers import DeadlyWriter, KilledWriter

USERS, PROMPTS = 1000, 400  # 25 parts of 40 users
COMMAND = f"""
import sys
import cora.runs.recommend_all as all_of_them
from cora.cli import main
all_of_them._PROMPTS = {PROMPTS}
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two machines with a CPU each."""
    pytest.importorskip("ray", reason="ray is not installed (the extra `ray`)")
    from ray.cluster_utils import Cluster

    machine = dict(num_cpus=1, object_store_memory=80 * 2**20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args=machine | dict(include_dashboard=False))
        made.add_node(**machine)
        yield made.address
        made.shutdown()


@pytest.fixture(scope="module")
def run(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data have 1000 users."""
    folder = tmp_path_factory.mktemp("many")
    data = write_ratings(folder / "films.csv", np.arange(4000) * 60)
    users = np.random.default_rng(0).integers(0, USERS, 4000)
    pd.read_csv(data).assign(user_id=users).to_csv(data, index=False)
    train(RunConfig(**(settings | dict(data=str(data), steps=2, test_rows=40, valid_rows=40))), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def command(run: Path) -> list[str]:
    """Scores 10,000 pairs, and all of them are in the table."""
    users = run.with_name("users.txt")
    users.write_text("".join(f"{user}\n" for user in range(USERS)))
    return ["recommend", "--run", str(run), "--users", str(users), "--top", "10", "--candidates", "10", "--out"]


@pytest.fixture(scope="module")
def unbroken(command: list[str], run: Path) -> pd.DataFrame:
    out = run.with_name("unbroken.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recommend_all, "_PROMPTS", PROMPTS)
        assert main([*command, str(out)]) == 0
    return pd.read_parquet(out)


@pytest.mark.slow
def test_killed_workers_lose_no_row_and_repeat_none(
    cluster: str, command: list[str], unbroken: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recommend_all, "_PROMPTS", PROMPTS)
    monkeypatch.setattr(recommend_all, "_PartWriter", KilledWriter)
    assert main([*command, str(tmp_path / "out.parquet"), "--ray", cluster]) == 0
    marks = [tmp_path / f"killed-{moment}" for moment in ("before", "within", "behind")]
    assert len({mark.read_text() for mark in marks}) == 3
    found = pd.read_parquet(tmp_path / "out.parquet")
    assert len(found) == 10 * USERS and not found.duplicated(["user_id", "item_id"]).any()
    pd.testing.assert_frame_equal(found, unbroken)
    assert sorted(tmp_path.iterdir()) == sorted([*marks, tmp_path / "out.parquet"])


@pytest.mark.slow
@pytest.mark.parametrize("on_ray", [False, True], ids=["here", "on Ray"])
def test_a_killed_command_goes_on(
    on_ray: bool,
    command: list[str],
    unbroken: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    out, parts = tmp_path / "out.parquet", tmp_path / "out.parquet.parts"
    whole = [*command, str(out), *(["--ray", request.getfixturevalue("cluster")] if on_ray else [])]
    with subprocess.Popen([sys.executable, "-c", COMMAND, *whole], stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(list(parts.glob("*.parquet"))) < 4:
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.stderr and process.stderr.read()
    assert not out.exists()
    before = {part: part.stat().st_mtime_ns for part in parts.glob("*.parquet")}
    assert 4 <= len(before) < 25
    monkeypatch.setattr(recommend_all, "_PROMPTS", PROMPTS)
    kept: dict[Path, int] = {}
    join = recommend_all._join
    monkeypatch.setattr(
        recommend_all,
        "_join",
        lambda files, path: kept.update({file: file.stat().st_mtime_ns for file in before}) or join(files, path),
    )
    assert main(whole) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(out), unbroken)
    assert kept == before
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.slow
def test_a_part_that_kills_every_worker_is_given_up(
    cluster: str,
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(recommend_all, "_PROMPTS", PROMPTS)
    monkeypatch.setattr(recommend_all, "_PartWriter", DeadlyWriter)
    assert main([*command, str(tmp_path / "out.parquet"), "--ray", cluster]) == 2
    assert (tmp_path / "tries").read_text() == 6 * "x"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cora: error")]
    assert "ray: a worker failed: RuntimeError: 000000400.parquet: 6 workers were killed at it" in line
    assert not (tmp_path / "out.parquet").exists()


def test_errors(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    users, out = tmp_path / "users", tmp_path / "out.parquet"
    users.write_text("1\n")
    command = ["recommend", "--run", str(finished), "--users", str(users), "--out", str(out), "--ray", "local"]
    with monkeypatch.context() as changed:
        changed.setattr("cora.runs.on_ray.find_spec", lambda name: None)
        assert main(command) == 2
    assert "ray: it is not installed, install the extra `ray` of cora-kernels" in capsys.readouterr().err
    monkeypatch.setattr("cora.runs.on_ray.find_spec", lambda name: name)
    monkeypatch.setattr("cora.runs.on_ray.process_count", lambda: 2)
    assert main(command) == 2
    assert "ray: expected one process, which has Ray start others, got 2" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["users"]


def test_a_worker_is_a_gpu_or_as_much_as_the_smallest_machine() -> None:
    def machines(*resources: dict[str, float], alive: bool = True) -> list[dict[str, Any]]:
        return [{"Alive": alive, "Resources": one} for one in resources]

    assert _workers(machines({"CPU": 2.0})) == (1, {"num_cpus": 2})
    assert _workers(machines({"CPU": 0.0}, {"CPU": 4.0}, {"CPU": 9.0})) == (3, {"num_cpus": 4})
    assert _workers(machines({"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}, {"GPU": 1.0})) == (3, {"num_gpus": 1})
    assert _workers([*machines({"CPU": 2.0}), *machines({"CPU": 1.0}, alive=False)]) == (1, {"num_cpus": 2})
    with pytest.raises(ValueError, match="ray: the cluster has no CPU"):
        _workers(machines({"memory": 1.0}))
