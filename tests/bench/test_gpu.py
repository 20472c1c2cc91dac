"""`make gpu` rehearsed: every stage runs here on a stand-in, so that on the day it meets a GPU nothing is new to it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import report
from bench.gpu import driver
from bench.gpu import report as gpu_report
from bench.gpu.__main__ import STAGES, stages

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    pytest.importorskip("triton", reason="Triton is not installed")
    folder = tmp_path_factory.mktemp("gpu")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "tests/bench/rehearsal.py", str(folder)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True), folder


def test_every_stage_runs(rehearsal):
    done, folder = rehearsal
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = folder.glob("stand-in-for-an-h100-*.json")
    found = json.loads(path.read_text())
    assert found["schema"] == gpu_report.SCHEMA and list(found)[1:] == list(STAGES)
    assert found["compile"]["compiled"] > 0 and not found["compile"]["failed"]
    right = found["right"]["triton"]
    assert right["failed"] == {} and right["passed"] > 8, right
    assert {"graph, replayed with other data", "torch.compile", "the same bits twenty times"}.isdisjoint(
        right["absent"]
    )
    assert found["ceilings"]["flops"] > 0 and set(found["ceilings"]["host"]) == {"mm", "triton"}
    forward, backward = found["speed"]
    for row in (forward, backward):
        assert {"frozen linear", "eager bmm", "ours: triton"} <= set(row["graph"]) & set(row["eager"]), row
        assert row["predicted"]["triton"] > 0
    assert all(one["regret"] >= 1 for one in found["tune"]["problems"].values()) and found["tune"]["problems"]


def test_the_report_is_short_and_begins_with_the_verdict(rehearsal):
    lines = rehearsal[0].stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("RIGHT; speed kept"))
    assert len(lines) - start <= 51 and "Stand-in for an H100" in lines[start]
    assert [line.partition(":")[0] for line in lines[:start]][-len(STAGES) :] == list(STAGES)


def test_a_report_names_no_host(rehearsal):
    text = next(rehearsal[1].glob("*.json")).read_text()
    assert os.uname().nodename not in text and str(Path.home()) not in text and str(ROOT) not in text


def test_reports_merge_into_the_readme(rehearsal, tmp_path):
    readme = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", readme)
    results = tmp_path / "results"
    results.mkdir()
    shutil.copytree(rehearsal[1], results / "gpu")
    before = readme.read_text()
    report.main(["--gpu", "--out", str(results), "--readme", str(readme)])
    text = readme.read_text()
    assert "| [Stand-in for an H100](gpu/stand-in" in text and text.startswith(before.partition("<!-- GPUs")[0])
    shutil.rmtree(results / "gpu")
    report.main(["--gpu", "--out", str(results), "--readme", str(readme)])
    assert readme.read_text() == before, "without a report the README is as it was"


def test_a_report_of_another_schema_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="a.json: schema 0, expected 1: run make gpu again"):
        gpu_report.table(tmp_path)


def test_a_stage_that_breaks_leaves_the_others(monkeypatch):
    """And the verdict says so: nothing is right of which a part is missing."""

    def breaks(machine, fast):
        raise RuntimeError("no such part\nof a long story")

    ok = {"triton": {"passed": 3, "failed": {}, "absent": {}}}
    monkeypatch.setattr("bench.gpu.__main__.STAGES", {"ceilings": breaks, "right": lambda machine, fast: ok})
    found = stages(None, True)
    assert found == {"ceilings": {"problem": "RuntimeError: no such part"}, "right": ok}
    assert gpu_report.verdict(found).startswith("WRONG (0 cases, 1 stages)")
    assert gpu_report.verdict({"right": ok}).startswith("RIGHT; speed kept of a Llama-3-8B layer's frozen linears: not")
    wrong = {"triton": ok["triton"] | {"failed": {"a case": "of bits"}}}
    assert gpu_report.verdict({"right": wrong}).startswith("WRONG (1 cases, 0 stages)")


def test_the_speed_kept_counts_every_linear_of_a_layer():
    times = {"q": 4.0, "k": 2.0, "up": 2.0, "down": 2.0}
    rows = [
        {
            "shape": f"Llama-3-8B {name} B8 T1024",
            "backward": False,
            "graph": {"frozen linear": 2.0, "ours: triton": time},
        }
        for name, time in times.items()
    ]
    assert gpu_report.retention({"speed": rows}, False) == 7 * 2 / (2 * 4 + 5 * 2)
    assert gpu_report.retention({"speed": rows[1:]}, False) is None and gpu_report.retention({}, True) is None


@pytest.mark.parametrize(
    ("version", "index", "message"),
    [
        ("580.65.06", "", None),
        ("595.10", "", None),
        ("550.54.15", driver.OLDER_INDEX, None),
        ("550.54.15", "", "driver 550.54.15 is too old .* needs 580: run make clean, then make gpu TORCH.*126"),
        ("470.10", driver.OLDER_INDEX, "driver 470.10 is too old for every wheel of torch, .* 525: update the driver"),
        (None, "", "no NVIDIA driver answers nvidia-smi: torch will run on the CPU"),
    ],
)  # fmt: skip
def test_the_driver_is_read_before_torch_is_installed(version, index, message):
    found = driver.problem(version, index)
    assert found is None if message is None else re.fullmatch(message, found)


def test_an_old_driver_stops_make_gpu_and_warns_the_others(tmp_path):
    """By a stand-in for nvidia-smi; the script needs nothing but Python."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 550.54.15\n")
    tool.chmod(0o755)
    command = [sys.executable, "-S", str(ROOT / "bench" / "gpu" / "driver.py")]
    environment = os.environ | {"PATH": str(tmp_path)}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)

    stopped, warned, served = run("--must"), run(), run("--must", driver.OLDER_INDEX)
    assert stopped.returncode == 1 and "TORCH_INDEX=" in stopped.stderr and stopped.stderr.count("\n") == 1
    assert warned.returncode == 0 and "TORCH_INDEX=" in warned.stderr
    assert (served.returncode, served.stderr) == (0, "")
    tool.rename(tmp_path / "rocminfo")
    assert run("--must").returncode == 0, "an AMD GPU has another driver"
    (tmp_path / "rocminfo").unlink()
    assert "no NVIDIA driver answers" in run("--must").stderr and run().stderr == ""


def test_make_gpu_reads_the_driver_first():
    if shutil.which("make") is None:
        pytest.skip("make is not on the machine")
    done = subprocess.run(["make", "-n", "gpu", "FAST=1"], cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if "bench" in line]
    assert done.returncode == 0, done.stderr
    assert "bench/gpu/driver.py --must" in lines[0] and lines[-1].endswith("python -m bench.gpu --fast")
