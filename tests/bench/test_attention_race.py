"""The race of attentions: every contestant is right, a wrong one is not timed, the report shows them."""

from typing import Any

import pytest
import torch

from bench import attention
from bench.attention import CONTESTANTS, AttentionCase, measure
from bench.report import markdown
from bench.table import linears, not_first

TINY = AttentionCase("tiny", 4, 2, 8, (5, 1, 9), torch.float32)


def test_every_contestant_is_right_and_timed() -> None:
    outcomes = measure(TINY, seconds=0.0)
    assert list(outcomes) == list(CONTESTANTS)
    for name, outcome in outcomes.items():
        assert outcome.problem is None and min(outcome.seconds) > 0, f"{name}: {outcome.problem}"


@pytest.mark.parametrize(("change", "named"), [(lambda o: 1.01 * o, "o:"), (lambda o: o / 2 + o.detach() / 2, "dq:")])
def test_a_wrong_one_is_not_timed(monkeypatch: pytest.MonkeyPatch, change: Any, named: str) -> None:
    def wrong(*tensors: Any) -> Any:
        run = CONTESTANTS["sample by sample"](*tensors)
        return lambda: change(run())

    monkeypatch.setitem(attention.CONTESTANTS, "planted", wrong)
    outcome = measure(TINY, seconds=0.0)["planted"]
    assert outcome.wrong and not outcome.seconds and str(outcome.problem).startswith(named)


def test_the_report_shows_who_is_first() -> None:
    benchmarks = [
        {
            "extra_info": {
                "kind": "attention",
                "case": "attention, tiny",
                "shape": "tiny",
                "contestant": name,
                "ours": name == "ours",
                "floor": False,
            },
            "stats": {"median": seconds, "iqr": 0.0},
        }
        for name, seconds in (("sample by sample", 0.002), ("ours", 0.001))
    ]
    machine = {"cpu": "C", "kernels": "avx2", "threads": "2", "gpu": "none", "torch": "2", "python": "3", "system": "L"}
    run: dict[str, Any] = {
        "datetime": "2026-01-02T03:04:05",
        "machine_info": {"cora": machine | {"peaks": {"fp32": 1e11, "bf16": 2e11, "bytes": 1e10}}},
        "benchmarks": benchmarks,
        "not_run": [],
        "memory": [],
    }
    assert "| tiny | 2.00 | **1.00** |" in markdown(run, {})
    assert not linears(run) and not not_first(run)
    benchmarks[1]["stats"] = {"median": 0.003, "iqr": 0.0}
    assert [row.case for row in not_first(run)] == ["attention, tiny"]
    assert "not first: tiny (attention): sample by sample, ours 1.50 × its time" in markdown(run, {})
