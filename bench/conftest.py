"""Options, the set of cases, one race per case, and what goes into the JSON besides the times."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.cases import full, quick
from bench.contestants import CONTESTANTS
from bench.harness import Outcome, errors, measure
from bench.machine import describe, peaks
from cora.llm.loading import smollm2_135m
from cora.runs.allocator import keep_freed_memory
from cora_kernels.backends import extension

NOT_RUN = pytest.StashKey[list[dict[str, Any]]]()
MEMORY = pytest.StashKey[list[dict[str, Any]]]()
REPLAY = pytest.StashKey["Replay"]()


class Replay:
    """A timer for pytest-benchmark that gives back samples already measured, so that its statistics and JSON hold them.

    It times one contestant after the other; the rounds here are interleaved.
    """

    def __init__(self) -> None:
        self.samples: list[float] = []
        self.started = False

    def __call__(self) -> float:
        self.started = not self.started
        return 0.0 if self.started else self.samples.pop(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every layer, size and dtype instead of the quick set (hours)")
    parser.addoption("--isa", default="", help="of our CPU kernels, such as avx2 (default: the best of this machine)")
    parser.addoption("--seconds", type=float, default=3.0, help="seconds of rounds for each case (default 3)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOT_RUN] = []
    config.stash[MEMORY] = []
    config.stash[REPLAY] = Replay()
    keep_freed_memory()  # as a training does, for every contestant
    if isa := config.getoption("--isa"):
        usable = extension._C.cpu_isas() if extension.loaded else []
        if isa not in usable:
            raise pytest.UsageError(f"--isa must be one of {', '.join(usable) or 'none, without _C'}; got {isa!r}")
        extension._C.set_cpu_isa(isa)


@pytest.fixture(scope="session")
def problem_of() -> Callable[[Callable[[], Any]], str | None]:
    """problem_of(three_ways): what is wrong with ours on SmolLM2-135M in bf16, if anything is; skips without it."""

    def problem(three_ways: Callable[[], Any]) -> str | None:
        try:
            smollm2_135m()
        except RuntimeError as error:
            pytest.skip(f"SmolLM2-135M could not be fetched: {error}")
        got, usual, exact = three_ways()
        return errors(got, exact, usual, torch.bfloat16)

    return problem


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"{name}: {value}" for name, value in describe().items()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "mode" in metafunc.fixturenames:
        cases = full() if metafunc.config.getoption("--full") else quick()
        modes = ("eager", "graph") if torch.cuda.is_available() else ("eager",)
        races = [(one, mode) for one in cases for mode in modes]
        metafunc.parametrize(
            ("case", "mode"),
            races,
            ids=[f"{one}-{'train' if one.backward else 'forward'}-{mode}".replace(" ", "_") for one, mode in races],
        )
        metafunc.parametrize("contestant", CONTESTANTS, ids=lambda c: c.name.replace(" ", "_"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=config.stash[REPLAY]))


@pytest.fixture(scope="session")
def race(request: pytest.FixtureRequest) -> Callable[..., dict[str, Outcome]]:
    """race(case, mode): the outcomes of all contestants, measured when the first of them is asked for."""
    last: dict[Any, dict[str, Outcome]] = {}

    def outcomes(case: Any, mode: str) -> dict[str, Outcome]:
        if (case, mode) not in last:
            last.clear()
            device = "cuda" if torch.cuda.is_available() else "cpu"
            seconds = request.config.getoption("--seconds")
            last[case, mode] = measure(case, CONTESTANTS, device, mode == "graph", seconds)
        return last[case, mode]

    return outcomes


@pytest.fixture
def record(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., None]:
    """record(outcome, info, ours): its samples into pytest-benchmark, or the reason why there are none."""

    def put(outcome: Outcome, info: dict[str, Any], ours: bool) -> None:
        if outcome.problem is not None:
            request.config.stash[NOT_RUN].append(info | {"reason": outcome.problem, "wrong": outcome.wrong})
            if not outcome.wrong:
                pytest.skip(outcome.problem)
            if ours:
                pytest.fail(f"wrong: {outcome.problem}")
            pytest.xfail(f"wrong: {outcome.problem}")
        benchmark.group = info["case"]
        benchmark.extra_info.update(info)
        request.config.stash[REPLAY].samples[:] = outcome.seconds
        benchmark.pedantic(lambda: None, rounds=len(outcome.seconds))

    return put


@pytest.fixture
def remember(request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], None]:
    """remember(entry): a measurement of memory, into the JSON."""
    return request.config.stash[MEMORY].append


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["cora"] = describe() | {"peaks": peaks()}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    output_json["not_run"] = config.stash[NOT_RUN]
    output_json["memory"] = config.stash[MEMORY]
