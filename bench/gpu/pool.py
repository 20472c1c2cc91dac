"""Does everything compile for this part? Every kernel × tile of Triton's, by processes beside one another."""

import json
import os
import subprocess
import sys
from typing import Any

from bench.gpu.machine import ROOT, Machine

_PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def compile_pool(machine: Machine, fast: bool) -> dict[str, Any]:
    """How many compiled; those that spill or take more shared memory than a block has; what did not compile."""
    arch = machine.gpu().arch
    workers = max(1, min(os.cpu_count() or 1, 16))
    # A rehearsal and FAST=1 compile a part of them.
    shares = workers * (4 if fast else 1) * (40 if machine.rehearses else 1)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(ROOT / "tests" / "triton" / "aot.py"), arch]
    processes = [
        subprocess.Popen([*command, str(i), str(shares)], env=environment, text=True, **_PIPES)
        for i in range(1 if machine.rehearses else workers)
    ]
    entries, failed = [], []
    for process in processes:
        out, error = process.communicate()
        entries += [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        if process.returncode:
            failed.append((error.strip().splitlines() or [f"exit {process.returncode}"])[-1][:200])
    return {
        "compiled": len(entries),
        "spilling": [entry["label"] for entry in entries if entry["spills"]],
        "too large": [entry["label"] for entry in entries if not entry["fits"]],
        "failed": failed,
    }
