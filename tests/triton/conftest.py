"""ptxsim, which executes compiled PTX on the CPU, lies beside the repository where it is there at all."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cora_kernels.planning import choose

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="session")
def ptxsim() -> ModuleType:
    if not (SHARED / "ptxsim").is_dir():
        pytest.skip("ptxsim is not in ../shared: kernels compiled to PTX are not executed")
    sys.path.insert(0, str(SHARED))
    try:
        return importlib.import_module("ptxsim")
    finally:
        sys.path.remove(str(SHARED))


@pytest.fixture
def prefer(monkeypatch):
    """Every launch that can goes by the given strategy; the rule chooses for the others."""

    def force(strategy: str) -> None:
        rule = choose.choose
        forced = lambda problem, gpu, backend, asked=None: rule(problem, gpu, backend, asked or strategy)  # noqa: E731
        monkeypatch.setattr(choose, "choose", forced)

    return force
