"""Is it fast? Linears of real models against the frozen one and the other ways, beside what the cost rule predicted."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from bench.cases import BF16, BenchCase, case
from bench.contestants import CONTESTANTS, Contestant, Unsupported
from bench.gpu.machine import Machine
from bench.harness import measure
from cora_kernels import explain
from cora_kernels.backends import extension
from cora_kernels.planning import choose, gpus
from cora_kernels.testing import Case, Inputs

PEERS = (
    "frozen linear",
    "eager bmm",
    "torch.compile",
    "beta=1 chain",
    "grouped_mm",
    "ours: triton",
    "ours: cuda",
    "ours: concat",
)
STRATEGIES = ("one_pass", "two_kernels", "descriptors", "separate", "decode")
LINEARS = ("q", "k", "up", "down")
# torch.compile takes longer to compile than all the others take to be timed: of one linear.
COMPILED = "Llama-3-8B q"


def shapes(machine: Machine, fast: bool) -> list[tuple[str, int, int]]:
    """(layer, B, T): twelve, or the four of a Llama-3-8B layer."""
    found = [(f"Llama-3-8B {linear}", 8, 1024) for linear in LINEARS]
    if not fast:
        found += [(f"Llama-3.2-1B {linear}", 8, 512) for linear in LINEARS]
        found += [("SmolLM2-135M q", 16, 160), ("SmolLM2-135M up", 16, 160)]
        found += [("Llama-3-8B q", 32, 1), ("Llama-3.2-1B up", 32, 1)]
    return found[:1] if machine.rehearses else found


def speed(machine: Machine, fast: bool) -> list[dict[str, Any]]:
    """For every shape and direction: seconds by contestant, as a graph and eager, and predicted for each backend."""
    rows = []
    peers = [c for c in CONTESTANTS if c.name in PEERS and not (machine.rehearses and c.name == "torch.compile")]
    ours = [_by_strategy(name, strategy) for name in machine.usable() for strategy in STRATEGIES]
    for layer, batch, length in shapes(machine, fast):
        for backward in (False,) if length == 1 else (False, True):
            one = _sized(case(layer, batch, length, 16, BF16, backward), machine)
            row: dict[str, Any] = {"shape": str(one), "backward": backward}
            for mode, graph in (("graph", not machine.rehearses), ("eager", False)):
                contestants = [c for c in peers if c.name != "torch.compile" or layer == COMPILED]
                contestants += ours * (graph and not backward)
                outcomes = measure(one, contestants, machine.device.type, graph, 0.0 if machine.rehearses else 0.5)
                row[mode] = {
                    name: statistics.median(found.seconds) for name, found in outcomes.items() if found.seconds
                }
                row[f"{mode} absent"] = {name: found.problem for name, found in outcomes.items() if found.problem}
            row["predicted"] = {name: _predicted(one, machine, name) for name in machine.usable()}
            rows.append(row)
    return rows


def _sized(one: BenchCase, machine: Machine) -> BenchCase:
    """The case at the machine's scale and in its dtype."""
    if not machine.rehearses:
        return one
    s = one.shape
    small = Case(2, max(1, s.length // machine.scale), s.k // machine.scale, tuple(n // machine.scale for n in s.n), 4)
    return replace(one, shape=replace(small, dtype=machine.dtype))


def _by_strategy(backend: str, strategy: str) -> Contestant:
    """The forward of a backend by one strategy."""

    def prepare(one: BenchCase, inputs: Inputs) -> Callable[[], tuple[torch.Tensor, ...]]:
        operands, x = inputs.operands(), inputs.x.flatten(0, -2)
        weight, a, b = operands.weights[0], operands.lora_as[0], operands.lora_bs[0]
        problem = choose.problem_of(x, weight.t(), a, b, operands.scaling, operands.segments, False, False)
        reason = choose.reasons(problem, gpus.gpu_of(x.device), backend).get(strategy)
        if reason is not None:
            raise Unsupported(reason)
        shape = *inputs.x.shape[:-1], -1

        def run() -> tuple[torch.Tensor, ...]:
            if backend == "triton":
                from cora_kernels.backends.triton import strategies

                ys, _ = strategies.forward(x, operands, None, strategy)
            else:
                ys, _ = extension.forward(torch.ops.cora_kernels.cuda_forward, x, operands, None, [strategy])
            return tuple(y.view(shape) for y in ys)

        return run

    return Contestant(f"{backend}: {strategy}", f"{backend} by {strategy}", prepare, ours=True)


def _predicted(one: BenchCase, machine: Machine, backend: str) -> float:
    """Seconds of the call by the cost rule."""
    s = one.shape
    gpu = machine.gpu().name if machine.rehearses else machine.device
    steps = explain((s.batch, s.length, s.k, s.n[0], s.r), gpu, dtype=s.dtype, backend=backend).steps
    return sum(step.seconds for step in steps if one.backward or step.product == "y")
