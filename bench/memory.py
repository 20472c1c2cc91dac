"""python -m bench.memory '{"what": ...}': what a call takes beyond its inputs, in a process of its own.

On a CPU the growth of the process's resident set while it runs (the kernel's high-water mark, set back before); on a
GPU torch.cuda.max_memory_allocated. A process of its own, so that nothing is left of an earlier contestant; in it every
block of memory is a mapping of its own, or what an earlier call freed would be used again and not be seen. The packed
copies of a weight that its first call makes are counted, though they are kept.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.cases import BF16, BenchCase, case
from bench.contestants import CONTESTANTS, Contestant, Unsupported
from bench.endtoend import CONTESTANTS as MODELS
from bench.endtoend import Setting
from bench.harness import with_backward, without_factors
from bench.prefixes import BATCHES as FAMILIES
from bench.prefixes import CONTESTANTS as PREFIXES
from cora_kernels.backends.weight_packs import clear_weight_packs
from cora_kernels.testing import make_inputs

LAYER, BATCHES, LENGTH, RANK = "Llama-3.2-1B q", (1, 4, 16, 64), 128, 16
# glibc's allocator: from this many bytes on a block is a mapping of its own, given back when it is freed.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measured(question: dict[str, Any]) -> dict[str, Any]:
    """The answer of a fresh process: {"bytes": ...} (by batch size of a linear), or {"reason": ...}."""
    command = [sys.executable, "-m", "bench.memory", json.dumps(question)]
    folder = Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=os.environ | _ALLOCATOR)
    if done.returncode:
        return {"reason": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def peak_of(run: Callable[[], object]) -> int:
    """Bytes that the call takes at its peak beyond what was taken before."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise Unsupported(f"the high-water mark of memory cannot be set back: {error}") from None
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    raise Unsupported(f"/proc/self/status has no {name}")


def _linear(name: str, one: BenchCase, device: str) -> int:
    contestant = next(c for c in CONTESTANTS if c.name == name)
    _prepared(contestant, one, device)()  # what is loaded and compiled once
    clear_weight_packs()
    return peak_of(_prepared(contestant, one, device))


def _prepared(contestant: Contestant, one: BenchCase, device: str) -> Callable[[], object]:
    inputs = make_inputs(one.shape, device)
    if contestant.floor:
        inputs = without_factors(inputs)
    return with_backward(contestant.prepare(one, inputs), inputs)


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if question["what"] == "linear":
            cases = {batch: case(LAYER, batch, LENGTH, RANK, BF16, True) for batch in BATCHES}
            return {"bytes": {b: _linear(question["contestant"], one, device) for b, one in cases.items()}}
        batch = next((one for one in FAMILIES if one.what == question["what"]), None)
        if batch is not None:
            return {"bytes": peak_of(PREFIXES[question["contestant"]](batch))}
        run = MODELS[question["contestant"]](Setting.make(device), question["what"])
        return {"bytes": peak_of(run)}
    except Unsupported as reason:
        return {"reason": str(reason)}


if __name__ == "__main__":
    print(json.dumps(_answer(json.loads(sys.argv[1]))))
