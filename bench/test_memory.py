"""Memory of forward and backward of one linear against the batch size, each in a process of its own."""

from collections.abc import Callable
from typing import Any

import pytest

from bench.contestants import CONTESTANTS
from bench.memory import LAYER, LENGTH, RANK, measured

# What starts no compiler and tunes nothing: those processes would be measured instead of the call.
_NAMES = [c.name for c in CONTESTANTS if "compile" not in c.name]


@pytest.mark.parametrize("name", _NAMES, ids=lambda name: name.replace(" ", "_"))
@pytest.mark.parametrize("batch", [1, 4, 16, 64], ids="B{}".format)
def test_memory(batch: int, name: str, remember: Callable[[dict[str, Any]], None]) -> None:
    answer = measured({"what": "linear", "contestant": name, "B": batch})
    shape = f"{LAYER} T{LENGTH} r{RANK} bf16, forward and backward"
    remember({"kind": "linear", "shape": shape, "contestant": name, "B": batch} | answer)
    if "reason" in answer:
        pytest.skip(answer["reason"])
    assert answer["bytes"] > 0
