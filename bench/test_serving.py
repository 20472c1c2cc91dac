"""Requests a second and latency of `cora serve`: sixteen clients by turns with one that asks the same."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from bench.harness import Outcome
from bench.serving import CLIENTS, QUESTIONS, Load, finished_run, load, server
from cora.llm.loading import smollm2_135m

ROUNDS = 3


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        smollm2_135m()
        run = finished_run(tmp_path_factory.mktemp("serving") / "run")
    except RuntimeError as error:
        pytest.skip(f"SmolLM2-135M or MovieLens could not be fetched: {error}")
    with server(run) as found:
        load(found, QUESTIONS["one item of a user each"][0], CLIENTS, range(CLIENTS))
        yield found


@pytest.fixture(scope="module")
def rounds(address: str) -> Callable[[str], dict[int, list[Load]]]:
    known: dict[str, dict[int, list[Load]]] = {}

    def of(what: str) -> dict[int, list[Load]]:
        if what not in known:
            taken: dict[int, list[Load]] = {1: [], CLIENTS: []}
            question, requests = QUESTIONS[what]
            for turn in range(ROUNDS):
                for clients, found in taken.items():
                    numbers = range(requests * turn, requests * (turn + 1))
                    found.append(load(address, question, clients, numbers))
            known[what] = taken
        return known[what]

    return of


@pytest.mark.parametrize("clients", [1, CLIENTS])
@pytest.mark.parametrize("what", QUESTIONS, ids=lambda what: what.replace(" ", "_"))
def test_serving(
    what: str,
    clients: int,
    rounds: Callable[[str], dict[int, list[Load]]],
    record: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = rounds(what)
    latencies = np.concatenate([one.latencies for one in found[clients]])
    info: dict[str, Any] = {
        "kind": "serving",
        "case": what,
        "contestant": f"{clients} clients",
        "ours": True,
        "floor": clients == 1,
        "requests_a_second": float(np.median([one.throughput for one in found[clients]])),
        "p50": float(np.quantile(latencies, 0.5)),
        "p99": float(np.quantile(latencies, 0.99)),
    }
    with capsys.disabled():
        print(
            f"\n{what}, {clients:2} clients: {info['requests_a_second']:.2f} requests/s, "
            f"median {info['p50']:.3f} s, p99 {info['p99']:.3f} s"
        )
    record(Outcome(tuple(one.seconds / len(one.latencies) for one in found[clients])), info, True)
