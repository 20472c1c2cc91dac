"""Backends and devices as fixtures: a new backend is tested from the day the dispatcher lists it."""

from collections.abc import Callable, Iterator

import pytest
import torch

from cora_kernels import backends
from cora_kernels.backends import cpu, extension
from cora_kernels.dispatch import select
from cora_kernels.testing import Inputs

_DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _usable(name: str, reason: str | None):
    return pytest.param(name, marks=pytest.mark.skip(reason=f"{name}: {reason}") if reason else ())


@pytest.fixture(params=[_usable(name, reason) for name, reason in backends().items()])
def backend(request) -> str:
    return request.param


def pytest_report_header() -> str:
    return f"cora_kernels: tested on {' and '.join(_DEVICES)}"


@pytest.fixture(params=_DEVICES)
def device(request) -> str:
    return request.param


@pytest.fixture(params=[] if cpu.availability() else extension._C.cpu_isas())
def isa(request) -> Iterator[str]:
    """An instruction set that the CPU's kernels run on meanwhile."""
    extension._C.set_cpu_isa(request.param)
    yield request.param
    extension._C.set_cpu_isa(None)


@pytest.fixture
def serves(backend) -> Callable[[Inputs], None]:
    """Skips the test, with the reasons, where the backend cannot serve these inputs."""

    def check(inputs: Inputs) -> None:
        try:
            select(backend, inputs.x, inputs.operands())
        except ValueError as error:
            pytest.skip(str(error))

    return check
