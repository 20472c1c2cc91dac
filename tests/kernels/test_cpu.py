"""What is special about the CPU kernels: instruction sets, threads, the extension itself."""

import importlib.util
import sys
from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import cora_kernels
from cora_kernels import lora_linear
from cora_kernels.backends import cpu, extension
from cora_kernels.testing import Case, assert_correct, call, make_inputs, results

pytestmark = pytest.mark.skipif(cpu.availability() is not None, reason=f"cpu: {cpu.availability()}")

CASES = [
    Case(batch=2, length=21, k=50, n=(97, 49), r=5, sample_b=True, bias=True),
    Case(batch=11, length=1, k=64, n=(150,), r=16, sample_b=True, tensor_scaling=True),
    Case(lengths=(2, 0, 9, 30, 1, 3), k=33, n=(60,), r=18, sample_b=True, one_a=False),
    Case(batch=3, length=8, k=96, n=(48, 16), r=8),
    Case(batch=2, length=300, k=20, n=(50,), r=4, sample_a=False),
    # One thread's rows are far more work than the other's, who then takes panels of them.
    Case(lengths=(*[1] * 40, 250), k=64, n=(150, 60), r=16, sample_b=True),
    # Depths of several parts in both directions, and more rows than one call of a micro-kernel takes.
    Case(lengths=(9, 270, 1), k=301, n=(150, 289), r=5, sample_b=True, one_a=False, bias=True),
]
DTYPES = [
    (torch.float32, None),
    (torch.bfloat16, None),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
]
VARIETY = [replace(case, dtype=x, factor_dtype=ab) for case in CASES for x, ab in DTYPES]


@pytest.mark.parametrize("case", VARIETY, ids=str)
def test_every_instruction_set(case, isa, poison):
    assert_correct(make_inputs(case), "cpu")


def test_computes_only_the_gradients_asked_for():
    inputs = make_inputs(Case(n=(40, 8), sample_b=True, bias=True))
    expected = {
        "x": ["backward_input"],
        "lora_a[0]": ["backward_input", "outer"],
        "lora_b[0]": ["outer"],
        "lora_b[1]": ["outer"],
        "bias[0]": [],
        "bias[1]": [],
    }
    leaves = inputs.leaves()
    assert leaves.keys() == expected.keys()
    for wanted, kernels in expected.items():
        for name, leaf in leaves.items():
            leaf.requires_grad_(name == wanted)
        with torch.profiler.profile() as profile:
            results(lambda i: call(i, "cpu"), inputs)
        found = [event.name for event in profile.events() if event.name.startswith("cora_kernels::")]
        assert found == [f"cora_kernels::cpu_{name}" for name in ("forward", *kernels)], wanted


@pytest.mark.parametrize("case", [case for case in VARIETY if not (case.lengths or case.tensor_scaling)], ids=str)
def test_the_backward_in_cpp_and_that_in_python_give_the_same_bits(case, monkeypatch):
    inputs = make_inputs(replace(case, bias=True))
    plain = results(lambda i: call(i, "cpu"), inputs)
    monkeypatch.setattr(cpu, "fast_path", lambda *call: None)
    usual = results(lambda i: call(i, "cpu"), inputs)
    assert plain.keys() == usual.keys()
    for name, value in plain.items():
        assert torch.equal(value, usual[name]) and value.dtype == usual[name].dtype, name


def test_modes_and_transforms_see_the_ops():
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    names = []
    inputs = make_inputs(Case(), requires_grad=False)
    with Seen():
        call(inputs, "cpu")
    assert "cora_kernels.cpu_forward.default" in names
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = inputs.map(mode.from_tensor)
        (y,) = call(fake, "cpu")
        assert isinstance(y, FakeTensor) and list(y.shape) == [3, 7, 40]
    with pytest.raises(RuntimeError, match="Batching rule"):
        torch.func.vmap(lambda x: lora_linear(x, inputs.weights[0], inputs.lora_as[0], inputs.lora_bs[0]))(
            inputs.x.expand(2, *inputs.x.shape)
        )


def test_an_unknown_instruction_set():
    with pytest.raises(ValueError, match="no kernels for avx9000"):
        extension._C.set_cpu_isa("avx9000")


@pytest.mark.parametrize("case", VARIETY, ids=str)
def test_bitwise_the_same_for_any_threads_and_run(case, isa):
    inputs = make_inputs(case)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = results(lambda i: call(i, "cpu"), inputs)
        for n in (1, 2, 3, 5) * 5:
            torch.set_num_threads(n)
            for name, value in results(lambda i: call(i, "cpu"), inputs).items():
                assert torch.equal(value, first[name]), f"{name} differs with {n} threads"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("length", [1, 3, 13])
def test_bitwise_independent_of_the_neighbours(length, isa):
    inputs = make_inputs(Case(batch=9, length=length, k=40, n=(70,), r=6, sample_b=True, dtype=torch.bfloat16))
    together = results(lambda i: call(i, "cpu"), inputs)
    for i in range(9):
        alone = replace(
            inputs,
            x=inputs.x[i : i + 1].detach().requires_grad_(),
            lora_as=(inputs.lora_as[0][i : i + 1].detach().requires_grad_(),),
            lora_bs=(inputs.lora_bs[0][i : i + 1].detach().requires_grad_(),),
        )
        y = call(alone, "cpu")[0]
        assert torch.equal(y[0], together["y[0]"][i])


@pytest.mark.parametrize(
    ("boundaries", "message"),
    [([1, 2, 3], "start at 0"), ([0, 2, 4], "end at the number of rows"), ([0, 5, 3], "must not decrease")],
)
def test_the_ops_check_the_boundaries_they_walk(boundaries, message):
    cu_seqlens = torch.tensor(boundaries, dtype=torch.int32)
    weight, a, b = torch.ones(100, 64), torch.ones(2, 64, 2), torch.ones(2, 2, 100)
    with pytest.raises(ValueError, match=message):
        torch.ops.cora_kernels.cpu_forward(torch.ones(3, 64), [weight], [a], [b], [None], None, 1.0, cu_seqlens, 2, [])


def test_opcheck():
    """Schemas, fakes and the implementations agree."""
    x, w, g = torch.randn(6, 8), torch.randn(10, 8), torch.randn(6, 10)
    a, b, s = torch.randn(2, 8, 3), torch.randn(2, 3, 10), torch.randn(6, 3)
    cu_seqlens = torch.tensor([0, 2, 6], dtype=torch.int32)
    ops = torch.ops.cora_kernels
    calls = {
        ops.cpu_shrink: (x, a, torch.rand(2), 1.0, cu_seqlens, 2),
        ops.cpu_forward: (x, [w], [a], [b], [None], None, 0.5, None, 2, []),
        ops.cpu_backward_input: ([g], [w], [a], [b], None, 0.5, cu_seqlens, 2, 1, []),
        ops.cpu_outer: (x, s, cu_seqlens, 2, True, torch.bfloat16),
    }
    for op, arguments in calls.items():
        torch.library.opcheck(op.default, arguments)


def test_without_the_extension_it_says_so(monkeypatch):
    monkeypatch.delattr(cora_kernels, "_C")
    monkeypatch.setitem(sys.modules, "cora_kernels._C", None)
    bare = _again(extension)
    assert "the native extension is not there" in bare.unavailable
    monkeypatch.setattr(sys.modules["cora_kernels.backends"], "extension", bare)
    assert "the native extension is not there" in _again(cpu).availability()


def _again(module):
    """The module, loaded a second time."""
    spec = importlib.util.spec_from_file_location("loaded_again", module.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    return again
