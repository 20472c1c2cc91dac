"""The backend "cuda" on CPU tensors, where nvcc and ptxsim are there."""

from pathlib import Path

import pytest
import simulator as simulation

from cora_kernels.backends import cuda, extension


@pytest.fixture(scope="session")
def compiled() -> Path:
    """The folder of the compiled drivers, launchers and PTX."""
    reason = simulation.missing()
    if reason is not None:
        pytest.skip(reason)
    return simulation.build(simulation.ROOT / "build" / "simulated-cuda")


@pytest.fixture(scope="session")
def _simulator(ptxsim, compiled) -> simulation.Simulator:
    if cuda.architectures() is not None:
        pytest.skip("the extension was built with CUDA: its ops and the simulated ones have the same names")
    simulator = simulation.Simulator(ptxsim, compiled)
    extension.register_fakes("cuda")
    return simulator


@pytest.fixture
def simulator(_simulator, monkeypatch) -> simulation.Simulator:
    """The backend believes that CPU tensors are on a GPU."""
    monkeypatch.setattr(cuda, "_DEVICE", "cpu")
    monkeypatch.setattr(cuda, "availability", lambda: None)
    return _simulator
