"""Which strategy and tile are the fastest here, and what the default choice loses against them."""

from typing import Any

from bench.cases import LAYERS
from bench.gpu.machine import Machine
from bench.gpu.speed import shapes
from cora_kernels import tune
from cora_kernels.planning import choose, gpus, tuning_file
from cora_kernels.planning.cost import Problem


def tuned(machine: Machine, fast: bool) -> dict[str, Any]:
    """The rates measured, kept in the user's cache; by problem the fastest, and the default's time over its time."""
    if "triton" not in machine.usable():
        raise NotImplementedError("tuning times the kernels of Triton, which does not run here")
    rates = tune.measure_rates(machine.device, machine.seconds)
    found = {}
    for layer, batch, length in shapes(machine, fast):
        model, linear = layer.split()
        inputs, outputs = LAYERS[model][linear]
        b, t, k, n = (max(2, size // machine.scale) for size in (batch, length, inputs, outputs[0]))
        problem = Problem(b * t, k, n, 16, b, t, machine.dtype)
        default = choose.plans(problem, machine.gpu())[0]
        timed = tune.measure_all(problem, machine.device, machine.seconds)
        best = min(timed, key=lambda one: one["seconds"])
        asked = [one for one in timed if (one["strategy"], one["config"]) == (default.strategy, default.config)]
        found[choose.key_of(problem)] = best | {"regret": asked[0]["seconds"] / best["seconds"]}
    if not machine.rehearses:
        kept = {key: {name: best[name] for name in ("strategy", "config", "seconds")} for key, best in found.items()}
        tuning_file.save(machine.name(), rates, kept)
        gpus.gpu_of.cache_clear()
        choose.choose.cache_clear()
    return {"rates": rates, "problems": found}
