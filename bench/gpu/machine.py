"""What the stages ask of the GPU: clocks, graphs, streams. A rehearsal puts another object in its place."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from cora_kernels import backends
from cora_kernels.planning.gpus import Gpu, gpu_of

Run = Callable[[], Any]


class Machine(Protocol):
    """A rehearsal runs every stage on a part of its cases, whose sizes it divides by `scale`: 1 on a GPU."""

    device: torch.device
    dtype: torch.dtype
    scale: int
    rehearses: bool

    def name(self) -> str: ...

    def gpu(self) -> Gpu: ...

    def usable(self) -> list[str]:
        """The GPU backends that run here."""
        ...

    def seconds(self, run: Run) -> float:
        """Of one call on the GPU alone: as a graph, where it can be captured, with cold caches."""
        ...

    def eager_seconds(self, run: Run) -> float:
        """Of one call of many in a row, what the CPU needs to launch it included."""
        ...

    def captured(self, run: Run) -> Run:
        """The call as a graph, to be replayed."""
        ...

    def on_side_stream(self, run: Run) -> Any: ...

    def others(self) -> list[torch.device]:
        """The other GPUs of this machine."""
        ...

    def synchronize(self) -> None: ...


class CudaMachine:
    dtype = torch.bfloat16
    scale = 1
    rehearses = False

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._flush = torch.empty(256 << 20, dtype=torch.int8, device=self.device)

    def name(self) -> str:
        return str(torch.cuda.get_device_properties(self.device).name)

    def gpu(self) -> Gpu:
        return gpu_of(self.device)

    def usable(self) -> list[str]:
        return [name for name, reason in backends().items() if name in ("triton", "cuda") and reason is None]

    def seconds(self, run: Run) -> float:
        replay = self.captured(run)
        samples = []
        for _ in range(12):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._flush.zero_()
            start.record()
            replay()
            end.record()
            end.synchronize()
            samples.append(float(start.elapsed_time(end)) / 1e3)
        return statistics.median(samples[2:])

    def eager_seconds(self, run: Run) -> float:
        samples = []
        for _ in range(5):
            self.synchronize()
            start = time.perf_counter()
            for _ in range(50):
                run()
            self.synchronize()
            samples.append((time.perf_counter() - start) / 50)
        return statistics.median(samples[1:])

    def captured(self, run: Run) -> Run:
        self.on_side_stream(run)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def on_side_stream(self, run: Run) -> Any:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                run()
            found = run()
        torch.cuda.current_stream().wait_stream(stream)
        return found

    def others(self) -> list[torch.device]:
        here = self.device.index
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count()) if i != here]

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)


ROOT = Path(__file__).parents[2]
