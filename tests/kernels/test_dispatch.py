"""The choice of a backend, who may make it, what it says when it cannot be kept; imports; the info command."""

import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cora_kernels import (
    backends,
    dispatch,
    functional,
    info,
    lora_linear,
    lora_linear_group,
    use_backend,
)
from cora_kernels.backends import cpu, reference
from cora_kernels.testing import Case, call, make_inputs, results


@pytest.fixture
def spy(monkeypatch):
    """A backend "spy": the reference, writing down its calls, with reasons against it to be set."""
    spy = SimpleNamespace(calls=[], reasons=[], unavailable=None)

    def recorded(name):
        def function(*args, **kwargs):
            spy.calls.append(name)
            return getattr(reference, name)(*args, **kwargs)

        return function

    for name in ("shrink", "forward", "backward_input", "outer"):
        setattr(spy, name, recorded(name))
    spy.availability = lambda: spy.unavailable
    spy.not_supported_reasons = lambda *call: spy.reasons
    row = (lambda: spy, ("cpu",))
    monkeypatch.setattr(dispatch, "_BACKENDS", {"spy": row, **dispatch._BACKENDS})
    monkeypatch.setattr(dispatch, "_TRIED", (row, *dispatch._TRIED))
    monkeypatch.setattr(cpu, "fast_path", lambda *call: None)
    return spy


def test_the_first_that_can_serves(spy):
    call(make_inputs(Case(), requires_grad=False))
    assert spy.calls == ["forward"]
    for change in ({"reasons": ["not today"]}, {"reasons": [], "unavailable": "no such part"}):
        vars(spy).update(change)
        call(make_inputs(Case(), requires_grad=False))
        assert spy.calls == ["forward"]


@pytest.mark.skipif(cpu.availability() is not None, reason=f"cpu: {cpu.availability()}")
def test_plain_calls_on_the_cpu_skip_checks_and_choice(monkeypatch):
    def fits(i):
        return cpu.fast_path(i.x, i.weights, i.lora_as, i.lora_bs, i.biases, i.scaling) is not None

    usual = make_inputs(Case(dtype=torch.bfloat16, factor_dtype=torch.float32, n=(40, 8), sample_b=True, bias=True))
    for inputs in (usual, make_inputs(Case(sample_a=False)), make_inputs(Case(one_a=False, n=(8, 16)))):
        assert fits(inputs)
    for case in (Case(tensor_scaling=True), Case(dtype=torch.float64), Case(lengths=(2, 3))):
        assert not fits(make_inputs(case))
    for change in ({"x": usual.x.float()}, {"lora_bs": usual.lora_bs[:1]}, {"scaling": True}, {"biases": (None, 0)}):
        assert not fits(replace(usual, **change))
    with torch.autocast("cpu", torch.bfloat16):
        assert not fits(usual)
    usual.weights[1].requires_grad_()
    assert not fits(usual)
    with torch.no_grad():
        assert fits(usual)

    monkeypatch.setattr(functional, "_check_x", None)
    call(make_inputs(Case()))
    call(make_inputs(Case()), "cpu")
    for asked in ("reference", "chain"):
        with pytest.raises(TypeError, match="not callable"):
            call(make_inputs(Case()), asked)


def test_a_backend_asked_for_says_why_it_cannot(spy):
    spy.reasons = ["not today", "r is 4"]
    with pytest.raises(ValueError, match="^backend 'spy' cannot serve this call: not today; r is 4$"):
        call(make_inputs(Case()), "spy")
    spy.unavailable = "no such part in this machine"
    with use_backend("spy"), pytest.raises(ValueError, match="cannot serve this call: no such part in this machine$"):
        call(make_inputs(Case()))


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown backend 'cuba', expected one of .*'reference'"):
        call(make_inputs(Case()), "cuba")
    with pytest.raises(ValueError, match="unknown backend 'cuba'"), use_backend("cuba"):
        pass


def test_use_backend_nests_and_an_argument_comes_first(spy):
    inputs = make_inputs(Case(), requires_grad=False)
    with use_backend("reference"):
        call(inputs)
        assert spy.calls == []
        with use_backend("spy"):
            call(inputs)
            call(inputs, "reference")
        assert spy.calls == ["forward"]
        with use_backend(None):
            call(inputs)
        assert spy.calls == ["forward"] * 2
        call(inputs)
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    call(inputs)
    assert spy.calls == ["forward"] * 3


def test_use_backend_steers_the_backward_of_its_calls(spy):
    inputs = make_inputs(Case())
    with use_backend("spy"):
        (y,) = call(inputs)
    with use_backend("reference"):
        y.sum().backward()
    assert spy.calls == ["forward", "backward_input", "outer", "outer"]
    spy.calls.clear()
    with use_backend("reference"):
        (y,) = call(inputs)
    with use_backend("spy"):
        y.sum().backward()
    assert spy.calls == []


def test_use_backend_holds_in_its_own_thread(spy):
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: call(make_inputs(Case(), requires_grad=False)))
        thread.start()
        thread.join()
    assert spy.calls == ["forward"]


def test_backends_lists_each_with_what_stands_against_it(spy):
    spy.unavailable = "no such part in this machine"
    assert list(backends())[0] == "spy"
    assert backends()["spy"] == "no such part in this machine"
    assert backends()["reference"] is None and backends()["chain"] is None


def test_a_group_of_one_is_lora_linear(backend, serves):
    inputs = make_inputs(Case(bias=True))
    serves(inputs)
    one = results(lambda i: call(i, backend), inputs)
    group = results(
        lambda i: lora_linear_group(i.x, i.weights, i.lora_as, i.lora_bs, i.biases, scaling=i.scaling, backend=backend),
        inputs,
    )
    assert all(torch.equal(one[name], group[name]) for name in one)


def test_info_names_versions_and_backends(spy):
    spy.unavailable = "no such part in this machine"
    text = info.report()
    assert torch.__version__ in text
    assert "spy         not usable: no such part in this machine" in text
    assert "reference   usable" in text


def test_info_command():
    ran = subprocess.run([sys.executable, "-m", "cora_kernels.info"], capture_output=True, text=True, check=True)
    assert "backends, the preferred first" in ran.stdout and ran.stderr == ""


def test_import_and_first_call_load_torch_alone():
    """No compiler, Triton or transformers is needed to import the package or to use the backends that need none."""
    code = """
import sys
for name in ("triton", "transformers", "cora_kernels._C"):
    sys.modules[name] = None  # importing it raises
import torch, cora_kernels
x, w, a, b = torch.randn(2, 3, 4), torch.randn(5, 4), torch.randn(2, 4, 1), torch.randn(1, 5)
assert cora_kernels.lora_linear(x, w, a, b).shape == (2, 3, 5)
assert cora_kernels.backends()["reference"] is None
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_meta_tensors():
    """Shapes without data, for those who count operations or plan memory."""
    inputs = make_inputs(Case(bias=True)).map(lambda t: t.to("meta"))
    y = lora_linear(inputs.x, inputs.weights[0], inputs.lora_as[0], inputs.lora_bs[0], inputs.biases[0])
    y.sum().backward()
    assert y.shape == (3, 7, 40) and inputs.lora_as[0].grad.shape == inputs.lora_as[0].shape
