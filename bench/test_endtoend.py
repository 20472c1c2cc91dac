"""One training step and one scoring batch of CoRA on SmolLM2-135M: seconds, tokens per second, peak memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.endtoend import BATCH, CONTESTANTS, LONGEST, SHORTEST, WHAT, Setting, three_ways
from bench.harness import CpuClock, CudaClock, Outcome, interleaved
from bench.memory import measured
from bench.shares import chosen, over_products

Times = Callable[[str], tuple[dict[str, Outcome], int]]


@pytest.fixture(scope="module")
def times(problem_of: Callable[..., str | None]) -> Times:
    """times(what): outcomes of all contestants, right ones only, and the tokens of the batch."""
    problem = problem_of(three_ways)
    known: dict[str, tuple[dict[str, Outcome], int]] = {}

    def outcomes(what: str) -> tuple[dict[str, Outcome], int]:
        if what not in known:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            setting = Setting.make(device)
            names = [name for name in CONTESTANTS if problem is None or name != "ours"]
            runs = {name: CONTESTANTS[name](setting, what) for name in names}
            clock = CudaClock() if device == "cuda" else CpuClock()
            samples = interleaved(runs, clock, seconds=0.0, least=4)
            wrong = {"ours": Outcome(problem=problem, wrong=True)}
            known[what] = wrong | {name: Outcome(tuple(s)) for name, s in samples.items()}, setting.tokens
        return known[what]

    return outcomes


@pytest.mark.parametrize("name", CONTESTANTS, ids=lambda name: name.replace(" ", "_"))
@pytest.mark.parametrize("what", WHAT, ids=lambda what: what.replace(" ", "_"))
def test_endtoend(what: str, name: str, times: Times, record: Callable[..., None]) -> None:
    outcomes, tokens = times(what)
    memory: dict[str, Any] = measured({"what": what, "contestant": name})
    info: dict[str, Any] = {
        "kind": "endtoend",
        "case": f"{what}, SmolLM2-135M bf16, {BATCH} prompts of {SHORTEST} to {LONGEST} tokens",
        "what": what,
        "contestant": name,
        "ours": name == "ours",
        "floor": name == "frozen LLM",
        "tokens": tokens,
        "memory": memory,
    }
    if name == "ours" and not torch.cuda.is_available():
        setting = chosen(Setting.make("cpu"))
        over = over_products(setting, what, CpuClock(), 3)
        info["shares"] = {"dtype": str(setting.dtype).removeprefix("torch."), "over": over}
    record(outcomes[name], info, name == "ours")
