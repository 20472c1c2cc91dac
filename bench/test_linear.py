"""One adapted linear, or a group that shares its input: forward, and forward with the gradients of x, A and B."""

from collections.abc import Callable

from bench.cases import BenchCase
from bench.contestants import Contestant
from bench.harness import Outcome


def test_linear(
    case: BenchCase,
    mode: str,
    contestant: Contestant,
    race: Callable[[BenchCase, str], dict[str, Outcome]],
    record: Callable[..., None],
) -> None:
    outcome = race(case, mode)[contestant.name]
    info = {
        "kind": "train" if case.backward else "forward",
        "case": f"{case} {'train' if case.backward else 'forward'} {mode}",
        "shape": str(case),
        "mode": mode,
        "contestant": contestant.name,
        "ours": contestant.ours,
        "floor": contestant.floor,
        "dtype": case.dtype,
        "sizes": {"B": len(case.samples), "T": case.shape.length, "r": case.shape.r, "K": case.shape.k},
        "outputs": list(case.shape.n),
        "padded": case.shape.lengths is None,
        "sample_b": case.shape.sample_b,
        "sets": list(case.sets),
        "flops": case.flops,
        "bytes": case.bytes,
    }
    record(outcome, info, contestant.ours)
