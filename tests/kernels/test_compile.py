"""torch.compile: one graph, no graph for another B, T or scaling once these are dynamic, and the results of eager."""

import re
from dataclasses import replace

import pytest
import torch
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.testing import CompileCounterWithBackend

from cora_kernels import backends, lora_linear, use_backend
from cora_kernels.backends import segment_products  # noqa: F401  registers the ops that opcheck is given
from cora_kernels.testing import FLOORS, Case, call, make_inputs, relative_error, results


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _compiled(backend):
    """The op under torch.compile, and the counter of the graphs it took. aot_eager: all but the code generation."""
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(lambda inputs: call(inputs, backend), backend=counter, fullgraph=True), counter


def _assert_same(got, expected):
    for name in expected:
        assert relative_error(got[name], expected[name]) < FLOORS[torch.float32], name


CASES = [
    Case(bias=True),
    Case(sample_b=True, n=(40, 8), tensor_scaling=True),
    Case(lengths=(4, 2, 9), sample_b=True, bias=True),
    Case(lengths=(4, 2, 9), sample_a=False, n=(40, 8), tensor_scaling=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_batch_length_and_scaling_are_dynamic(case, backend, serves):
    """The first change of B, of T (or M) and of the scaling makes each dynamic; after that nothing compiles again."""
    compiled, counter = _compiled(backend)
    graphs = []
    shapes = [(3, 7), (4, 7), (4, 9), (4, 9), (6, 5), (2, 11), (9, 3)]
    for (batch, length), scaling in zip(shapes, (0.5, 0.5, 0.5, 0.25, 2.0, -1.5, 3.0), strict=True):
        if case.lengths is None:
            case = replace(case, batch=batch, length=length)
        else:
            case = replace(case, lengths=tuple(length + i % 3 for i in range(batch)))
        inputs = make_inputs(case)
        serves(inputs)
        if not case.tensor_scaling:
            inputs = replace(inputs, scaling=scaling)
        _assert_same(results(compiled, inputs), results(lambda i: call(i, backend), inputs))
        graphs.append(counter.frame_count)
    assert graphs[0] == 1
    assert graphs[3] <= 4, f"one graph at first and one for each quantity that turns dynamic, got {graphs}"
    assert graphs[3:] == graphs[3:4] * 4, f"compiled again for a mere change of B, T or scaling: {graphs}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_second_call_adds_no_guard(case, backend, serves):
    """The values guarded are those of the arguments, once: none is of what a call builds on its way."""
    inputs = make_inputs(case)
    serves(inputs)

    def guards_of(calls):
        torch._dynamo.reset()
        found = []
        compile_ = torch._dynamo.optimize("aot_eager", nopython=True, guard_export_fn=found.extend)
        results(compile_(lambda inputs: [y for _ in range(calls) for y in call(inputs, backend)]), inputs)
        named = [(guard.create_fn_name(), guard.name) for guard in found]
        return sorted((kind, name) for kind, name in named if name.startswith("L[") and kind != "DUPLICATE_INPUT")

    once, twice = guards_of(1), guards_of(2)
    assert ("TENSOR_MATCH", "L['inputs'].x") in once and once == twice


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="every version of torch counts its own guards")
@pytest.mark.skipif(backends()["cpu"] is not None, reason=f"cpu: {backends()['cpu']}")
def test_a_plain_call_has_no_more_guards_than_it_had():
    """Each is checked before every compiled call: a helper more, or a name reached in another way, is one more."""
    inputs = make_inputs(Case(sample_b=True))
    tensors = [inputs.x, inputs.weights[0], inputs.lora_as[0], inputs.lora_bs[0]]

    def plain(x, weight, lora_a, lora_b):
        return lora_linear(x, weight, lora_a, lora_b, scaling=2.0)

    torch.compile(plain, backend="eager", fullgraph=True)(*tensors)
    (entry,) = _debug_get_cache_entry_list(plain.__code__)
    guards = re.findall(r"^[| ]*\+- (?!GuardManager)[A-Z_]{4,}\b", str(entry.guard_manager), re.MULTILINE)
    assert 100 < len(guards) <= 149, f"{len(guards)} guards, 149 at first"


def test_marked_dynamic_takes_one_graph(backend, serves):
    compiled, counter = _compiled(backend)
    for batch, length in ((3, 7), (5, 9), (8, 2)):
        inputs = make_inputs(Case(batch=batch, length=length, bias=True))
        serves(inputs)
        torch._dynamo.mark_dynamic(inputs.x, 0)
        torch._dynamo.mark_dynamic(inputs.x, 1)
        torch._dynamo.mark_dynamic(inputs.lora_as[0], 0)
        results(compiled, inputs)
    assert counter.frame_count == 1


def test_inference(backend, serves):
    compiled, counter = _compiled(backend)
    inputs = make_inputs(Case(n=(40, 8), bias=True, one_a=False), requires_grad=False)
    serves(inputs)
    with torch.no_grad():
        _assert_same(results(compiled, inputs), results(lambda i: call(i, backend), inputs))
    assert counter.frame_count == 1


def test_frozen_inputs(backend, serves):
    inputs = make_inputs(Case(sample_b=True))
    serves(inputs)
    for frozen in ("x", "lora_a[0]", "lora_b[0]"):
        inputs.leaves()[frozen].requires_grad_(False)
        compiled, _ = _compiled(backend)
        _assert_same(results(compiled, inputs), results(lambda i: call(i, backend), inputs))
        for t in (inputs.x, *inputs.lora_as, *inputs.lora_bs):
            t.requires_grad_()


def test_autocast(backend, serves):
    inputs = make_inputs(Case(bias=True, n=(40, 8)))
    compiled, _ = _compiled(backend)
    with torch.autocast("cpu"):
        serves(inputs)
        got, expected = results(compiled, inputs), results(lambda i: call(i, backend), inputs)
    for name in expected:
        assert got[name].dtype == expected[name].dtype
        assert relative_error(got[name], expected[name]) < FLOORS[torch.bfloat16], name


@pytest.mark.parametrize("case", [Case(bias=True), Case(lengths=(4, 2, 9), sample_b=True)], ids=str)
def test_inductor(case, backend, serves):
    """Through code generation too."""
    inputs = make_inputs(case)
    compiled = torch.compile(lambda i: call(i, backend), fullgraph=True)
    serves(inputs)
    _assert_same(results(compiled, inputs), results(lambda i: call(i, backend), inputs))


def test_use_backend_steers_compiled_code():
    """A later use_backend is not lost in what was compiled before it."""
    compiled, counter = _compiled(None)
    inputs = make_inputs(Case(dtype=torch.bfloat16), requires_grad=False)
    automatic = compiled(inputs)
    with use_backend("reference"):
        reference = compiled(inputs)
        assert torch.equal(reference[0], call(inputs)[0])
    assert counter.frame_count == 2
    assert torch.equal(compiled(inputs)[0], automatic[0])
    assert counter.frame_count == 2


def test_wrong_boundaries_raise_inside_a_compiled_graph():
    inputs = make_inputs(Case(lengths=(4, 2, 9)))
    compiled, _ = _compiled("chain")
    compiled(inputs)
    inputs.cu_seqlens[-1] -= 1
    with pytest.raises(ValueError, match="cu_seqlens must end at the number of rows of x, 15, got"):
        compiled(inputs)


@pytest.mark.parametrize("lengths", [(4, 0, 3), (0, 0), ()], ids=str)
def test_opcheck(lengths):
    inputs = make_inputs(Case(lengths=lengths, sample_b=True), requires_grad=False)
    v = torch.randn(sum(lengths), 5)
    torch.library.opcheck(torch.ops.cora_kernels.segment_mm, (inputs.x, inputs.lora_as[0], inputs.cu_seqlens))
    torch.library.opcheck(torch.ops.cora_kernels.segment_outer, (inputs.x, v, inputs.cu_seqlens))
