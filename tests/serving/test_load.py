"""Sixteen clients against one, over sockets, at the end of which everybody has an answer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.serving import CLIENTS, Question, load, server


def recommendation(number: int) -> dict[str, Any]:
    return {"user": number % 20, "top": 5, "candidates": 8}


@pytest.mark.slow
def test_sixteen_clients_have_three_times_the_throughput_of_one(finished: Path) -> None:
    question = Question("/recommend", recommendation)
    with server(finished) as address:
        load(address, question, CLIENTS, range(16))
        found: dict[int, list[float]] = {1: [], CLIENTS: []}
        for turn in range(3):
            for clients, rounds in found.items():
                rounds.append(load(address, question, clients, range(48 * turn, 48 * (turn + 1))).throughput)
    assert np.median(found[CLIENTS]) >= 3 * np.median(found[1]), found
