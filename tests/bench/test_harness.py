"""The benchmark itself: what is wrong or slow is caught, what cannot run has its reason, and no figure is made up."""

import json
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cases import BenchCase, full, quick, skewed
from bench.contestants import CONTESTANTS, Contestant, Run, Unsupported
from bench.harness import interleaved, measure
from bench.report import main, markdown, processors
from bench.table import linears, not_first, verdicts
from cora_kernels.testing import Case, Inputs, call

BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}
TRAIN = BenchCase("tiny q", Case(3, 5, 24, (40,), 8), backward=True)
FORWARD = BenchCase("tiny q", Case(3, 5, 24, (40,), 8, dtype=torch.bfloat16, sample_b=True), backward=False)
PACKED = BenchCase("tiny qkv", Case(3, 5, 24, (40, 16, 16), 8, lengths=(3, 1, 7)), backward=True)
PARTS = ("frozen linear", "eager bmm", "ours: chain")


def planted(change: Any, name: str = "planted", ours: bool = False) -> Contestant:
    """The op, its outputs changed."""

    def prepare(case: BenchCase, inputs: Inputs) -> Run:
        return lambda: change(call(inputs, "chain"))

    return Contestant(name, "planted", prepare, ours=ours)


def quickly(case: BenchCase, *contestants: Contestant) -> Any:
    return measure(case, [BY_NAME["frozen linear"], *contestants], seconds=0.0)


@pytest.mark.parametrize("case", [TRAIN, FORWARD, PACKED], ids=str)
def test_every_contestant_is_right_or_says_why_not(case: BenchCase) -> None:
    slow = ("torch.compile", "compile max-autotune")
    outcomes = measure(case, [c for c in CONTESTANTS if c.name not in slow], seconds=0.0)
    assert set(outcomes) == set(BY_NAME) - set(slow)
    for name, outcome in outcomes.items():
        assert not outcome.wrong, f"{name}: {outcome.problem}"
        assert bool(outcome.seconds) != bool(outcome.problem)
        assert all(seconds > 0 for seconds in outcome.seconds)
    peers = "PEFT's mixed batch", "LoRAFusion's formula", "unsloth's formula", "grouped_mm, sorted"
    for name in (*PARTS, "einsum", "baddbmm_", "per-token copies", "merged W_i", "per-sample loop", *peers):
        assert outcomes[name].seconds, f"{name}: {outcomes[name].problem}"
    assert bool(outcomes["PEFT"].seconds) == (case is FORWARD)


def test_a_wrong_output_is_not_timed() -> None:
    outcome = quickly(FORWARD, planted(lambda ys: tuple(y * 1.02 for y in ys)))["planted"]
    assert outcome.wrong and not outcome.seconds and "y[0]: relative error 0.02" in str(outcome.problem)


def test_a_wrong_gradient_is_not_timed() -> None:
    def halved(ys: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(y / 2 + y.detach() / 2 for y in ys)

    outcome = quickly(TRAIN, planted(halved))["planted"]
    assert outcome.wrong and not outcome.seconds and "d x" in str(outcome.problem)


def test_nan_is_wrong() -> None:
    outcome = quickly(FORWARD, planted(lambda ys: tuple(y * torch.nan for y in ys)))["planted"]
    assert outcome.wrong


def test_a_reason_instead_of_a_time() -> None:
    def prepare(case: BenchCase, inputs: Inputs) -> Run:
        raise Unsupported("not today")

    outcome = quickly(FORWARD, Contestant("lazy", "", prepare))["lazy"]
    assert (outcome.seconds, outcome.problem, outcome.wrong) == ((), "not today", False)


def test_other_libraries_are_floors_beside_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    case = BenchCase("tiny qkv", Case(3, 5, 24, (40, 16), 8), backward=False)
    libraries = [BY_NAME["oneDNN"], BY_NAME["NumPy"]]
    monkeypatch.delenv("OPENBLAS_THREAD_TIMEOUT", raising=False)
    assert "OPENBLAS_THREAD_TIMEOUT=4" in str(quickly(case, *libraries)["NumPy"].problem)
    monkeypatch.setenv("OPENBLAS_THREAD_TIMEOUT", "4")
    outcomes = quickly(case, *libraries)
    for library in libraries:
        assert outcomes[library.name].seconds, outcomes[library.name].problem
        assert "forward in fp32" in str(quickly(TRAIN, library)[library.name].problem)
        assert "forward in fp32" in str(quickly(FORWARD, library)[library.name].problem)


def test_a_wrong_floor_is_not_timed() -> None:
    def prepare(case: BenchCase, inputs: Inputs) -> Run:
        return lambda: tuple(y * 1.02 for y in BY_NAME["frozen linear"].prepare(case, inputs)())

    outcome = quickly(FORWARD, Contestant("bent", "", prepare, floor=True))["bent"]
    assert outcome.wrong and not outcome.seconds


def test_a_planted_slowdown_is_seen() -> None:
    def slowly(ys: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        time.sleep(0.1)
        return ys

    outcomes = quickly(FORWARD, planted(lambda ys: ys, "same"), planted(slowly, "slow"))
    assert min(outcomes["slow"].seconds) >= 0.1 > min(outcomes["same"].seconds)


def test_rounds_are_interleaved_and_the_slow_take_part_in_few() -> None:
    order: list[str] = []

    def run(name: str) -> Any:
        return lambda: order.append(name)

    taken = {"floor": 1.0, "near": 2.0, "far": 9.0}

    def clock(run: Any, calls: int) -> float:
        run()
        return taken[order[-1]]

    samples = interleaved({name: run(name) for name in taken}, clock, "floor", seconds=0.0, least=7)
    assert {name: len(s) for name, s in samples.items()} == {"floor": 7, "near": 7, "far": 3}
    rounds = [order[3:6], order[6:9], order[9:12]]
    assert all(sorted(names) == sorted(taken) for names in rounds)
    assert len({tuple(order[i : i + 2]) for i in range(12, 20, 2)}) > 1


def test_a_short_call_is_timed_after_one_of_its_own() -> None:
    order: list[str] = []

    def clock(run: Any, calls: int) -> float:
        order.append("timed")
        return 1.0 if run is runs["long"] else 0.01

    runs = {name: partial(order.append, name) for name in ("long", "short")}
    interleaved(runs, clock, seconds=0.0, least=5)
    assert [name for name, after in pairwise(order) if after == "timed" != name] == ["short"] * 5
    assert "long" not in order


def test_cases() -> None:
    cases = quick()
    for name, count in {"forward fp32": 5, "forward bf16": 4, "train fp32": 5, "train bf16": 4, "decode": 4}.items():
        assert sum(name in case.sets for case in cases) == count
    for key in ("B", "T", "r"):
        assert sum(key in case.sets for case in cases) >= 3
    assert len({(str(case), case.backward) for case in cases}) == len(cases)
    assert set(map(str, cases)) < set(map(str, full()))
    assert skewed(16, 512)[0] == 512 and skewed(16, 512)[-1] == 1 and len(skewed(16, 512)) == 16
    one = BenchCase("m q", Case(2, 3, 5, (7,), 2), backward=False)
    assert one.flops == 2 * 6 * (5 * 7 + 2 * 5 + 2 * 7)
    assert one.bytes == 4 * (6 * 5 + 5 * 7 + 6 * 7 + 2 * 2 * 5 + 2 * 7)


def test_every_benchmark_is_collected() -> None:
    command = [sys.executable, "-m", "pytest", "bench", "--collect-only", "-q"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for test in ("test_linear[", "test_attention[", "test_memory[", "test_endtoend[", "test_prefixes["):
        assert f"::{test}" in done.stdout


def run_of(ours: float, peer: float, floor: float = 1.0) -> dict[str, Any]:
    """What pytest-benchmark writes for the cases of one acceptance, with these seconds."""
    benchmarks = []
    for case in [case for case in quick() if "forward fp32" in case.sets or "B" in case.sets]:
        for name, seconds in (("frozen linear", floor), ("eager bmm", peer), ("ours: cpu", ours)):
            info = {
                "kind": "train" if case.backward else "forward",
                "case": f"{case} {case.backward}",
                "shape": str(case),
                "mode": "eager",
                "contestant": name,
                "ours": name.startswith("ours"),
                "floor": name == "frozen linear",
                "dtype": case.dtype,
                "sizes": {"B": len(case.samples), "T": case.shape.length, "r": case.shape.r, "K": case.shape.k},
                "outputs": list(case.shape.n),
                "padded": True,
                "sample_b": False,
                "sets": list(case.sets),
                "flops": case.flops,
                "bytes": case.bytes,
            }
            benchmarks.append({"extra_info": info, "stats": {"median": seconds, "iqr": seconds / 100}})
    machine = {
        "cpu": "Some CPU, AVX512",
        "kernels": "avx512",
        "threads": "2",
        "gpu": "none",
        "torch": "2",
        "python": "3",
        "system": "Linux",
    }
    peaks = {"fp32": 1e11, "bf16": 2e11, "bytes": 1e10}
    missing = {"case": benchmarks[0]["extra_info"]["case"], "contestant": "PEFT", "reason": "no peft", "wrong": False}
    memory = [{"kind": "linear", "shape": "tiny", "contestant": "eager bmm", "B": b, "bytes": b << 20} for b in (1, 4)]
    return {
        "datetime": "2026-01-02T03:04:05",
        "machine_info": {"cora": machine | {"peaks": peaks}},
        "benchmarks": benchmarks,
        "not_run": [missing],
        "memory": memory,
    }


def test_verdicts_and_losses() -> None:
    fast, slow = run_of(ours=0.8, peer=1.5), run_of(ours=2.0, peer=1.5)
    assert not not_first(fast) and len(not_first(slow)) == len(linears(slow))
    judged = {verdict.what: verdict for verdict in verdicts(fast)}
    mean = judged["forward fp32 / floor, mean of 5 shapes"]
    assert mean.measured == pytest.approx(0.8) and mean.met is True
    assert judged["forward bf16 / floor, worst shape"].met is None
    assert [verdict.met for verdict in verdicts(slow) if verdict.measured is not None] == [False, False]


def test_floors_beside_the_floor_are_no_peers() -> None:
    run = run_of(ours=0.8, peer=1.5)
    for benchmark in list(run["benchmarks"]):
        if benchmark["extra_info"]["floor"]:
            info = benchmark["extra_info"] | {"contestant": "oneDNN"}
            run["benchmarks"].append({"extra_info": info, "stats": {"median": 0.1, "iqr": 0.0}})
    assert not not_first(run)
    assert all((row.floor, row.ratio("oneDNN")) == ("frozen linear", pytest.approx(0.1)) for row in linears(run))
    text = markdown(run, {})
    assert "**0.80**" in text and "**0.10**" not in text


def test_promises_are_those_of_the_instruction_set() -> None:
    run = run_of(ours=0.95, peer=1.5)
    met = {verdict.limit: verdict.met for verdict in verdicts(run) if verdict.measured is not None}
    assert met == {0.90: False, 1.05: True}
    run["machine_info"]["cora"]["kernels"] = "avx2"
    met = {verdict.limit: verdict.met for verdict in verdicts(run) if verdict.measured is not None}
    assert met == {0.97: True, 1.03: True}


def test_a_row_for_every_processor_and_instruction_set(tmp_path: Path) -> None:
    for isa, ours in (("avx2", 0.9), ("avx512", 0.5)):
        run = run_of(ours=ours, peer=1.5)
        run["machine_info"]["cora"]["kernels"] = isa
        (tmp_path / f"{isa}.json").write_text(json.dumps(run), encoding="utf-8")
    text = processors(tmp_path)
    assert "| Some CPU | avx2 | 2 | 2026-01-02 | 100, 200 | 0.90 | – | – | – | – |" in text
    assert "| Some CPU | avx512 | 2 | 2026-01-02 | 100, 200 | 0.50 | – | – | – | – |" in text


def test_an_instruction_set_that_the_machine_lacks() -> None:
    command = [sys.executable, "-m", "pytest", "bench", "--collect-only", "-q", "--isa=avx9000"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 4 and "--isa must be one of" in done.stderr and "'avx9000'" in done.stderr


def test_the_report_writes_tables_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "run.json"
    source.write_text(json.dumps(run_of(ours=2.0, peer=1.5)), encoding="utf-8")
    main([str(source), "--out", str(tmp_path / "results")])
    name = "some-cpu-avx512-2-threads-2026-01-02"
    written = {path.name for path in (tmp_path / "results").iterdir()}
    kinds = ("retention", "roofline", "growth", "memory")
    assert written == {"processors.md", f"{name}.json", f"{name}.md", *(f"{name}-{kind}.png" for kind in kinds)}
    text = (tmp_path / "results" / f"{name}.md").read_text(encoding="utf-8")
    assert "no peft" in text and "not first: SmolLM2-135M up" in text and "GPU results are absent" in text
    assert "not first" in capsys.readouterr().out
