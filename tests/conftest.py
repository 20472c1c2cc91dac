"""Settings of hypothesis: a short, repeatable search in every run of the tests; long with --hypothesis-profile=fuzz.

And what the tests of both GPU backends ask for where no GPU is: ptxsim, which executes compiled PTX on the CPU.
"""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, settings

from cora_kernels.planning import choose

_ALLOWED = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]

for _name, _examples in (("short", 100), ("fuzz", 5000)):
    settings.register_profile(
        _name,
        max_examples=_examples,
        derandomize=_name == "short",
        deadline=None,
        database=None,
        suppress_health_check=_ALLOWED,
    )
settings.load_profile("short")


@pytest.fixture(scope="session")
def ptxsim() -> ModuleType:
    """From the folder that PTXSIM names, or beside the repository."""
    folder = Path(os.environ.get("PTXSIM", Path(__file__).parents[2] / "shared" / "ptxsim"))
    if not folder.is_dir():
        pytest.skip(f"ptxsim is not in {folder}: kernels compiled to PTX are not executed")
    sys.path.insert(0, str(folder.parent))
    try:
        return importlib.import_module("ptxsim")
    finally:
        sys.path.remove(str(folder.parent))


@pytest.fixture
def prefer(monkeypatch):
    """Every call that can goes by the given strategy; the rule chooses for the others."""

    def force(strategy: str) -> None:
        rule = choose.choose

        def forced(problem, gpu, backend, asked=None):
            return rule(problem, gpu, backend, asked or strategy)

        monkeypatch.setattr(choose, "choose", forced)

    return force


@pytest.fixture
def poison():
    """torch.empty returns NaN: a row that a kernel forgets to write cannot pass for a right one."""
    before = torch.are_deterministic_algorithms_enabled()
    # On a GPU cuBLAS refuses this without an environment variable; what is wanted here is the NaN.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    yield
    torch.use_deterministic_algorithms(before)
