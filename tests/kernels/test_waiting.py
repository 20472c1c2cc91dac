"""Threads sleep soon while they wait: settled before torch is imported, and never against the environment."""

import os
import subprocess
import sys

import pytest

from cora_kernels.waiting import CHECKS

# Prints the setting as it is when torch is looked for first.
ORDER = """
import importlib, os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            print(os.environ.get("GOMP_SPINCOUNT"))
sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
"""


def seen_by_torch(module: str, environment: dict[str, str]) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, "-c", ORDER, module]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("module", ["cora_kernels", "cora_kernels.functional", "cora", "cora.cli"])
def test_it_is_settled_before_torch_is_imported(module: str) -> None:
    assert seen_by_torch(module, {}) == CHECKS


@pytest.mark.parametrize(
    ("environment", "seen"), [({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_the_environment_decides(environment: dict[str, str], seen: str) -> None:
    assert seen_by_torch("cora", environment) == seen
