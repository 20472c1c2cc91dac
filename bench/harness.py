"""Verify, then time: contestants of one case alternate within every round, on the same inputs."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import BenchCase
from bench.contestants import Contestant, Run, Unsupported
from cora_kernels.testing import EAGER_FACTOR, FLOORS, Inputs, definition, eager, make_inputs, relative_error, results

# A sample is at least this long: shorter calls are repeated within it.
SHORTEST = 2e-3
# A contestant this many times slower than the floor is in the first three rounds only.
SLOW = 4.0
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 7, 31, 3.0
# A call shorter than this is made once untimed before each sample: what the contestant before left in the caches, its
# own operands or others, would count. A longer one fills them itself.
CACHED = 0.25


@dataclass(frozen=True)
class Outcome:
    """Seconds of one call, one figure a round; or why there are none. `wrong`: it ran and failed the error rule."""

    seconds: tuple[float, ...] = ()
    problem: str | None = None
    wrong: bool = False


class CpuClock:
    """Seconds of a call by the wall."""

    def __call__(self, run: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls


class CudaClock:
    """Seconds of a call between two events, after a write of 256 MB that empties the caches."""

    def __init__(self) -> None:
        self.flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")

    def __call__(self, run: Callable[[], object], calls: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / calls


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """The call as a CUDA graph. Raises Unsupported where it cannot be captured."""
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as error:
        raise Unsupported(f"cannot be captured: {str(error).splitlines()[0]}") from None
    return graph.replay


def measure(
    case: BenchCase,
    contestants: Sequence[Contestant],
    device: str = "cpu",
    graph: bool = False,
    seconds: float = SECONDS,
) -> dict[str, Outcome]:
    """Outcomes by contestant. Each is verified first; those that are right are timed in interleaved rounds."""
    torch._dynamo.reset()  # or the compiled contestants of many cases reach the limit of recompilations
    inputs = make_inputs(case.shape, device, requires_grad=case.backward)
    frozen = without_factors(inputs)
    exact = results(definition, inputs.map(lambda t: t.double()))
    usual = results(eager, inputs)
    outcomes: dict[str, Outcome] = {}
    runs: dict[str, Callable[[], object]] = {}
    floor = None
    for contestant in contestants:
        own = frozen if contestant.floor else inputs
        try:
            with torch.set_grad_enabled(case.backward):
                run = contestant.prepare(case, own)
                got = results(lambda _, run=run: run(), own)
            if contestant.floor:
                floor = floor or contestant.name
                linear = results(_linear, own.map(lambda t: t.double()))
                problem = errors(got, linear, results(_linear, own), case.shape.dtype)
            else:
                problem = errors(got, exact, usual, case.shape.dtype)
            if problem is not None:
                outcomes[contestant.name] = Outcome(problem=problem, wrong=True)
                continue
            timed = with_backward(run, own) if case.backward else torch.no_grad()(run)
            runs[contestant.name] = captured(timed) if graph else timed
        except Unsupported as reason:
            outcomes[contestant.name] = Outcome(problem=str(reason))
        except (RuntimeError, NotImplementedError, MemoryError) as error:
            outcomes[contestant.name] = Outcome(problem=f"{type(error).__name__}: {str(error).splitlines()[0][:160]}")
    clock = CudaClock() if device == "cuda" else CpuClock()
    for name, samples in interleaved(runs, clock, floor, seconds).items():
        outcomes[name] = Outcome(tuple(samples))
    return outcomes


def errors(
    got: Mapping[str, Tensor], exact: Mapping[str, Tensor], usual: Mapping[str, Tensor], dtype: torch.dtype
) -> str | None:
    """What breaks the error rule, of outputs and gradients against float64: 1.25 times eager's error, or a floor."""
    if got.keys() != exact.keys():
        return f"has {', '.join(got)}, expected {', '.join(exact)}"
    for name, value in got.items():
        if value.shape != exact[name].shape:
            return f"{name}: shape {list(value.shape)}, expected {list(exact[name].shape)}"
        error = relative_error(value, exact[name])
        allowed = max(EAGER_FACTOR * relative_error(usual[name], exact[name]), FLOORS[dtype])
        if not error <= allowed:
            return f"{name}: relative error {error:.3g}, allowed {allowed:.3g}"
    return None


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    clock: Callable[[Callable[[], object], int], float],
    floor: str | None = None,
    seconds: float = SECONDS,
    least: int = LEAST_ROUNDS,
) -> dict[str, list[float]]:
    """Seconds a call, by name: after a warm-up each contestant is timed once a round, in a random order each round."""
    if not runs:
        return {}
    first = {name: clock(run, 1) for name, run in runs.items()}
    first |= {name: min(first[name], clock(run, 1)) for name, run in runs.items() if first[name] < CACHED}
    calls = {name: max(1, round(SHORTEST / taken)) for name, taken in first.items()}
    slow = {name for name, taken in first.items() if floor in first and taken > SLOW * first[floor]}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order, end = random.Random(0), time.perf_counter() + seconds
    for i in range(MOST_ROUNDS):
        if i >= least and time.perf_counter() > end:
            break
        for name in order.sample(list(runs), len(runs)):
            if i < 3 or name not in slow:
                if first[name] < CACHED:
                    runs[name]()
                samples[name].append(clock(runs[name], calls[name]))
    return samples


def _linear(inputs: Inputs) -> tuple[Tensor, ...]:
    return tuple(F.linear(inputs.x, w) for w in inputs.weights)


def without_factors(inputs: Inputs) -> Inputs:
    """What the floor is given: no gradients for A and B, which it does not use."""
    lora_as, lora_bs = (tuple(t.detach() for t in ts) for ts in (inputs.lora_as, inputs.lora_bs))
    return replace(inputs, lora_as=lora_as, lora_bs=lora_bs)


def with_backward(run: Run, inputs: Inputs) -> Callable[[], object]:
    """Outputs and the gradients of all leaves, for fixed gradients of the outputs."""
    leaves = list(inputs.leaves().values())
    gs = [torch.randn(*inputs.x.shape[:-1], len(w), device=w.device, dtype=w.dtype) for w in inputs.weights]
    return lambda: torch.autograd.grad(run(), leaves, gs)
