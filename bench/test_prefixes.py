"""Prompts that begin alike, on SmolLM2-135M: seconds, tokens per second, peak memory."""

from collections.abc import Callable
from typing import Any

import pytest

from bench.harness import CpuClock, Outcome, interleaved
from bench.memory import measured
from bench.prefixes import BATCHES, CONTESTANTS, Batch, three_ways


@pytest.fixture(scope="module")
def outcomes(problem_of: Callable[..., str | None]) -> Callable[[Batch], dict[str, Outcome]]:
    problem = problem_of(three_ways)
    known: dict[Batch, dict[str, Outcome]] = {}

    def of(batch: Batch) -> dict[str, Outcome]:
        if batch not in known:
            runs = {name: build(batch) for name, build in CONTESTANTS.items() if problem is None or name != "ours"}
            samples = interleaved(runs, CpuClock(), seconds=0.0, least=3)
            wrong = {"ours": Outcome(problem=problem, wrong=True)}
            known[batch] = wrong | {name: Outcome(tuple(seconds)) for name, seconds in samples.items()}
        return known[batch]

    return of


@pytest.mark.parametrize("name", CONTESTANTS, ids=lambda name: name.replace(" ", "_"))
@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: batch.what.replace(" ", "_"))
def test_prefixes(
    batch: Batch, name: str, outcomes: Callable[[Batch], dict[str, Outcome]], record: Callable[..., None]
) -> None:
    memory: dict[str, Any] = measured({"what": batch.what, "contestant": name})
    info = {
        "kind": "endtoend",
        "case": batch.case,
        "what": batch.what,
        "contestant": name,
        "ours": name == "ours",
        "floor": False,
        "tokens": int(batch.tokens()[1].sum()),
        "memory": memory,
    }
    record(outcomes(batch)[name], info, name == "ours")
