"""python -m bench.gpu [--fast] [--out FOLDER]: everything that only a GPU can say about the kernels, in ten minutes.

Environment, compile pool, right?, ceilings, fast?, tuning: each stage says what it found and how long it took, and one
that breaks does not take the others with it. The report goes to the terminal and, as JSON, into the folder.
"""

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.gpu import report
from bench.gpu.ceilings import ceilings
from bench.gpu.driver import driver_version, problem
from bench.gpu.machine import ROOT, CudaMachine, Machine
from bench.gpu.pool import compile_pool
from bench.gpu.right import right
from bench.gpu.speed import speed
from bench.gpu.tuned import tuned
from cora_kernels import backends

Stage = Callable[[Machine, bool], Any]


def environment(machine: Machine, fast: bool) -> dict[str, Any]:
    """GPU, driver and versions, clocks; why a backend for GPUs does not run. No name of the host or of a user."""
    try:
        import triton

        triton_version = str(triton.__version__)
    except ImportError:
        triton_version = "not installed"
    gpu = machine.gpu()
    return {
        "date": datetime.date.today().isoformat(),
        "gpu": machine.name(),
        "multiprocessors": gpu.multiprocessors,
        "tiles of": gpu.arch,
        "driver": driver_version() or "none",
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda or torch.version.hip),
        "triton": triton_version,
        "fast": fast,
        "absent": {name: why for name, why in backends().items() if why is not None and name in ("triton", "cuda")},
    }


STAGES: dict[str, Stage] = {
    "environment": environment,
    "compile": compile_pool,
    "right": right,
    "ceilings": ceilings,
    "speed": speed,
    "tune": tuned,
}


def stages(machine: Machine, fast: bool) -> dict[str, Any]:
    """What every stage found; {"problem": …} of one that broke."""
    found: dict[str, Any] = {}
    for name, stage in STAGES.items():
        start = time.perf_counter()
        try:
            found[name] = stage(machine, fast)
        except NotImplementedError as reason:
            found[name] = {"absent": str(reason)}
        except Exception as error:  # whatever a GPU that nobody has seen does, the other stages are worth their time
            if name == "environment":
                raise
            found[name] = {"problem": f"{type(error).__name__}: {error}".split("\n")[0][:300]}
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return found


def main(arguments: Sequence[str] | None = None, machine: Machine | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--fast", action="store_true", help="three minutes: fewer cases and shapes")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "gpu")
    options = parser.parse_args(arguments)
    if machine is None:
        if not torch.cuda.is_available():
            why = (
                problem(driver_version(), "")
                or "torch finds no GPU: it is a build for the CPU; run make clean, then make gpu"
            )
            raise SystemExit(f"make gpu needs a GPU: {why}")
        machine = CudaMachine()
    found = stages(machine, options.fast)
    print(report.text(found))
    print(f"written: {report.write(found, options.out)}; attach it to an issue, or run python -m bench.report --gpu")
    return 0 if report.verdict(found).startswith("RIGHT") else 1


if __name__ == "__main__":
    sys.exit(main())
