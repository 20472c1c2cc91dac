"""ptxsim, which executes compiled PTX on the CPU, lies beside the repository where it is there at all."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

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
