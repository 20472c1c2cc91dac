"""Attention within packed prompts: forward and backward, against torch's over padded batches and sample by sample."""

from collections.abc import Callable

import pytest
import torch

from bench.attention import CASES, CONTESTANTS, AttentionCase, measure
from bench.harness import Outcome
from cora_kernels.attention import attention_not_supported_reason


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Callable[[AttentionCase], dict[str, Outcome]]:
    known: dict[AttentionCase, dict[str, Outcome]] = {}

    def of(case: AttentionCase) -> dict[str, Outcome]:
        if case not in known:
            known[case] = measure(case, request.config.getoption("--seconds"))
        return known[case]

    return of


@pytest.mark.parametrize("name", CONTESTANTS, ids=lambda name: name.replace(" ", "_"))
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case).replace(" ", "_"))
def test_attention(
    case: AttentionCase,
    name: str,
    outcomes: Callable[[AttentionCase], dict[str, Outcome]],
    record: Callable[..., None],
) -> None:
    info = {
        "kind": "attention",
        "case": f"attention, {case}",
        "shape": str(case),
        "contestant": name,
        "ours": name == "ours",
        "floor": False,
        "flops": case.flops,
    }
    reason = attention_not_supported_reason(case.dtype, torch.device("cpu"), case.dim)
    record(Outcome(problem=reason) if reason else outcomes(case)[name], info, name == "ours")
