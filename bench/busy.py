"""What one busy neighbour per core costs: a training step, a scoring batch, and the op over F.linear beside them.

    python -m bench.busy [isa] [rounds]

Wall-clock time on as many threads as there are cores; the neighbours are Python processes that count. With neighbours
a process gets half of each core, so that 2 is the least that a step can slow down.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch
import torch.nn.functional as F

from bench.endtoend import WHAT, Setting, ours
from bench.harness import CpuClock, interleaved
from bench.shares import chosen
from cora.runs.allocator import keep_freed_memory
from cora_kernels import lora_linear
from cora_kernels.backends import extension

SHAPE = (8, 128, 576, 1536, 8)  # batch, tokens, in, out, rank


@contextmanager
def neighbours() -> Iterator[None]:
    """One process per core that does nothing but count."""
    counting = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(counting) for _ in os.sched_getaffinity(0)]
    try:
        time.sleep(1)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def op_and_linear(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    batch, tokens, width, out, rank = SHAPE
    x, w = torch.randn(batch, tokens, width, dtype=dtype), torch.randn(out, width, dtype=dtype)
    a, b = torch.randn(batch, width, rank, dtype=dtype), torch.randn(batch, rank, out, dtype=dtype)
    return {"ours": lambda: lora_linear(x, w, a, b, scaling=2.0), "F.linear": lambda: F.linear(x, w)}


def measured(runs: dict[str, Callable[[], object]], ops: dict[str, Callable[[], object]], rounds: int) -> list[float]:
    """Seconds of each of `runs`, then the op's time over F.linear's."""
    clock = CpuClock()
    seconds = [median(clock(run, 1) for _ in range(rounds)) for run in runs.values()]
    with torch.no_grad():
        samples = interleaved(ops, clock, seconds=0.0)
    ratio = median(one / floor for one, floor in zip(samples["ours"], samples["F.linear"], strict=True))
    return [*seconds, ratio]


def main(isa: str | None = None, rounds: int = 5) -> None:
    keep_freed_memory()
    extension._C.set_cpu_isa(isa)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    setting = chosen(Setting.make("cpu"))
    runs, ops = {what: ours(setting, what) for what in WHAT}, op_and_linear(setting.dtype)
    for run in runs.values():
        run()
    alone = measured(runs, ops, rounds)
    with neighbours():
        busy = measured(runs, ops, rounds)
    print(f"{str(setting.dtype):<28}{'alone':>10}{'busy':>10}{'slower':>10}")
    for what, one, other in zip((*runs, "the op over F.linear"), alone, busy, strict=True):
        print(f"{what:<28}{one:>10.3f}{other:>10.3f}{other / one:>10.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:]))
