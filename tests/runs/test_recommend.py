"""Recommendations for one user and for many: the candidates of the vectors, ranked by the method, into a table."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cora.cli import main
from cora.runs.recommend import recommend
from cora.runs.settings import RunConfig
from cora.runs.train import train

KILLED = """
import os, signal, sys
import cora.runs.recommend_all as all_of_them
from cora.cli import main

all_of_them._PROMPTS = 100
made = all_of_them._write

def write(path, *rest):
    if path.name.startswith("000000010"):
        os.kill(os.getpid(), signal.SIGKILL)
    made(path, *rest)

all_of_them._write = write
main(sys.argv[1:])
"""


@pytest.fixture(scope="session")
def shared(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "shared"
    train(RunConfig(**(settings | dict(steps=2, cora=settings["cora"] | dict(shared_prefix=True)))), out)
    return out


def command(run: Path, users: Path, out: Path, *more: str) -> list[str]:
    return ["recommend", "--run", str(run), "--users", str(users), "--out", str(out), "--candidates", "10", *more]


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.txt"
    path.write_text("".join(f"{user}\n" for user in [7, 3, 19, *range(8, 18)]))
    return path


@pytest.mark.parametrize("kind", ["finished", "shared"])
def test_the_table_is_what_each_user_is_recommended(
    kind: str, users: Path, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    run = request.getfixturevalue(kind)
    out = tmp_path / "new" / "all.parquet"
    assert main(command(run, users, out, "--top", "4")) == 0
    assert f"recommendations for 13 users in {out}" in capsys.readouterr().out
    table = pd.read_parquet(out)
    assert list(table) == ["user_id", "rank", "item_id", "title", "probability", "collaborative_rank"]
    assert table["user_id"].drop_duplicates().tolist() == [7, 3, 19, *range(8, 18)]
    for user in (7, 12):
        own = table[table["user_id"] == user]
        assert own["rank"].tolist() == [1, 2, 3, 4]
        one = recommend(run, str(user), 4, 10).table
        assert own["item_id"].tolist() == one["item_id"].tolist() and own["title"].tolist() == one["title"].tolist()
        np.testing.assert_allclose(own["probability"], one["probability"], atol=1e-5)
        assert own["collaborative_rank"].tolist() == one["collaborative_rank"].tolist()
    assert [path.name for path in out.parent.iterdir()] == ["all.parquet"]


def test_the_candidates_are_those_of_the_vectors(finished: Path) -> None:
    all_of_them = recommend(finished, "5", 20, 20).table
    few = recommend(finished, "5", 3, 3).table
    best = all_of_them.sort_values("collaborative_rank")["item_id"].tolist()[:3]
    assert sorted(few["item_id"].tolist()) == sorted(best)
    assert few["probability"].is_monotonic_decreasing


def test_a_killed_command_goes_on(
    finished: Path, users: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import cora.runs.recommend_all as all_of_them

    out, whole = tmp_path / "killed.parquet", tmp_path / "whole.parquet"
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, *command(finished, users, out)], capture_output=True, text=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not out.exists()
    (part,) = (tmp_path / "killed.parquet.parts").glob("*.parquet")
    before = part.stat().st_mtime_ns, pd.read_parquet(part)
    assert before[1]["user_id"].nunique() == 10
    monkeypatch.setattr(all_of_them, "_PROMPTS", 100)
    with monkeypatch.context() as changed:
        changed.setattr(all_of_them, "write_files", lambda *_: (_ for _ in ()).throw(AssertionError("written anew")))
        assert main(command(finished, users, out, "--top", "5")) == 2
    assert "out: " in capsys.readouterr().err and part.stat().st_mtime_ns == before[0]
    assert main(command(finished, users, out)) == 0 and main(command(finished, users, whole)) == 0
    again, once = pd.read_parquet(out), pd.read_parquet(whole)
    pd.testing.assert_frame_equal(again, once)
    assert not list(tmp_path.glob("*.parts"))
    written = out.stat().st_mtime_ns
    assert main(command(finished, users, out)) == 0 and out.stat().st_mtime_ns == written
    assert "finished" in capsys.readouterr().out
    assert main(command(finished, users, out, "--top", "5")) == 2
    assert f"out: {out} exists and holds something else" in capsys.readouterr().err


def test_a_run_of_two_adapters_is_explained_and_not_exported(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "--run", str(shared), "--user", "3", "--item", "4"]) == 0
    assert main(["export", "--run", str(shared), "--user", "3", "--out", str(tmp_path / "out")]) == 2
    assert "run: with shared_prefix a prompt has two adapters" in capsys.readouterr().err


def test_users_with_nothing_left_and_unknown_ones(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.read_csv(settings["data"])
    everything = pd.DataFrame({"user_id": 99, "item_id": range(30), "rating": 5, "timestamp": 1})
    titles = frame.drop_duplicates("item_id").set_index("item_id")["title"]
    frame = pd.concat([frame, everything.assign(title=titles.reindex(range(30)).tolist())])
    frame.to_csv(tmp_path / "films.csv", index=False)
    run = tmp_path / "run"
    train(RunConfig(**(settings | dict(data=str(tmp_path / "films.csv"), steps=1))), run)
    (tmp_path / "users").write_text("99\r\n777\r\n3\r\n")
    # One user a part, so that one of the parts has no row.
    monkeypatch.setattr("cora.runs.recommend_all._PROMPTS", 10)
    with pytest.warns(UserWarning, match="1 unknown user ids get the mean embedding, for example .777."):
        assert main(command(run, tmp_path / "users", tmp_path / "out.parquet", "--top", "1")) == 0
    assert pd.read_parquet(tmp_path / "out.parquet")["user_id"].tolist() == [777, 3]
    assert main(["score", "--run", str(run), "--user", "99"]) == 2
    assert "user: 99 has a row with every item" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "users: FILE is empty, expected one id a line"),
        (b"1\n\n2\n", "users: line 2 of FILE is empty, expected one id a line"),
        (b"1\nann\n", "users: line 2 of FILE: expected a whole number, as the data's ids are, got 'ann'"),
        (b"1\n2\n01\n", "users: line 3 of FILE repeats the id '01' of line 1"),
        (b"\xff\xfe", "users: FILE is not UTF-8 text"),
        (None, "users: there is no file FILE"),
    ],
    ids=lambda value: "",
)
def test_errors(
    finished: Path, tmp_path: Path, text: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    users, out = tmp_path / "users", tmp_path / "out.parquet"
    if text is not None:
        users.write_bytes(text)
    assert main(command(finished, users, out)) == 2
    assert message.replace("FILE", str(users)) in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_other_errors(finished: Path, users: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.parquet"
    assert main(command(finished, users, out, "--top", "11")) == 2
    assert "top, candidates: expected 1 <= top <= candidates" in capsys.readouterr().err
    assert main(command(tmp_path / "none", users, out)) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    out.write_text("something else")
    assert main(command(finished, users, out)) == 2
    assert f"out: {out} exists and holds something else" in capsys.readouterr().err
    assert out.read_text() == "something else"
