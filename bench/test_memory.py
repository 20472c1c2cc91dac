"""Memory of forward and backward of one linear against the batch size, each contestant in a process of its own."""

from collections.abc import Callable
from typing import Any

import pytest

from bench.contestants import CONTESTANTS
from bench.memory import LAYER, LENGTH, RANK, measured

# What starts no compiler and tunes nothing: those processes would be measured instead of the call.
_NAMES = [c.name for c in CONTESTANTS if "compile" not in c.name]


@pytest.mark.parametrize("name", _NAMES, ids=lambda name: name.replace(" ", "_"))
def test_memory(name: str, remember: Callable[[dict[str, Any]], None]) -> None:
    answer = measured({"what": "linear", "contestant": name})
    entry = {"kind": "linear", "shape": f"{LAYER} T{LENGTH} r{RANK} bf16, forward and backward", "contestant": name}
    if "reason" in answer:
        remember(entry | answer)
        pytest.skip(answer["reason"])
    for batch, taken in answer["bytes"].items():
        remember(entry | {"B": int(batch), "bytes": taken})
        assert taken > 0
