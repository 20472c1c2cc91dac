"""What the autograd.Function saves, skips and refuses; autocast and activation checkpointing around it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from cora_kernels import lora_linear, lora_linear_group
from cora_kernels.backends import cpu
from cora_kernels.dispatch import select
from cora_kernels.testing import Case, Inputs, call, make_inputs, results

PADDED, PACKED = Case(bias=True), Case(lengths=(4, 0, 9), sample_b=True, n=(40, 8))


@pytest.mark.parametrize("case", [PADDED, PACKED, replace(PADDED, tensor_scaling=True)], ids=str)
def test_double_backward_raises(case, backend, serves):
    inputs = make_inputs(case)
    serves(inputs)
    loss = sum(y.square().sum() for y in call(inputs, backend))
    (dx,) = torch.autograd.grad(loss, inputs.x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def _saved(inputs: Inputs, backend: str, autocast: bool = False) -> list[torch.Tensor]:
    saved = []

    def pack(t):
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", enabled=autocast):
        call(inputs, backend)
    return saved


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("case", [PADDED, PACKED, replace(PADDED, tensor_scaling=True)], ids=str)
def test_nothing_as_large_as_the_weight_is_saved(case, autocast, backend, serves):
    """Only the caller's weight itself: no cast, transpose or merge of it, under autocast either."""
    inputs = make_inputs(replace(case, k=256, n=tuple(256 + n for n in case.n), length=2, r=2))
    serves(inputs)
    weights = {weight.data_ptr() for weight in inputs.weights}
    saved = _saved(inputs, backend, autocast)
    assert {t.data_ptr() for t in saved if t.data_ptr() in weights} == weights
    for t in saved:
        assert t.data_ptr() in weights or t.untyped_storage().nbytes() < 256 * 256, f"saved {list(t.shape)}"


def test_saves_only_what_the_gradients_asked_for_need(backend, serves):
    """x for dA alone; A and the weight for dx alone; B for dx and dA; S for dB alone."""
    inputs = make_inputs(Case(batch=2, length=5, k=11, n=(13,), r=3, sample_b=True))
    serves(inputs)
    shapes = {"x": [2, 5, 11], "weight": [13, 11], "A": [2, 11, 3], "B": [2, 3, 13], "S": [10, 3]}
    expected = {
        "x": {"weight", "A", "B"},
        "lora_a[0]": {"x", "B"},
        "lora_b[0]": {"S"},
    }
    for wanted, names in expected.items():
        for name, leaf in inputs.map(lambda t: t).leaves().items():
            inputs.leaves().get(name, leaf).requires_grad_(name == wanted)
        saved = sorted(list(t.shape) for t in _saved(inputs, backend))
        assert saved == sorted(shapes[name] for name in names), wanted
        for t in (inputs.x, *inputs.lora_as, *inputs.lora_bs):
            t.requires_grad_()


def test_computes_only_the_gradients_asked_for(backend, serves, monkeypatch):
    inputs = make_inputs(Case(n=(40, 8), sample_b=True))
    serves(inputs)
    monkeypatch.setattr(cpu, "fast_path", lambda *call: None)  # which is C++: tests/kernels/test_cpu.py
    kernels, calls = select(backend, inputs.x, inputs.operands()), []
    for name in ("backward_input", "outer"):
        original = getattr(kernels, name)

        def counted(*args, _name=name, _original=original, **kwargs):
            calls.append(_name if _name == "outer" else f"{_name}(dx={args[2]})")
            return _original(*args, **kwargs)

        monkeypatch.setattr(kernels, name, counted)
    expected = {
        "x": ["backward_input(dx=True)"],
        "lora_a[0]": ["backward_input(dx=False)", "outer"],
        "lora_b[0]": ["outer"],
        "lora_b[1]": ["outer"],
    }
    leaves = inputs.leaves()
    for wanted in leaves:
        for name, leaf in leaves.items():
            leaf.requires_grad_(name == wanted)
        calls.clear()
        results(lambda i: call(i, backend), inputs)
        assert calls == expected[wanted], wanted


@pytest.mark.parametrize("case", [PADDED, PACKED, replace(PADDED, tensor_scaling=True)], ids=str)
def test_outputs_may_be_changed_in_place(case, backend, serves):
    inputs = make_inputs(case)
    serves(inputs)

    def doubled(change):
        return torch.autograd.grad(sum(change(y).sum() for y in call(inputs, backend)), inputs.x)[0]

    assert torch.equal(doubled(lambda y: y.mul_(2)), doubled(lambda y: y * 2))


def test_inputs_are_not_written(backend, serves):
    for case in (PADDED, PACKED, replace(PADDED, tensor_scaling=True)):
        inputs = make_inputs(case)
        serves(inputs)
        tensors = [*inputs.leaves().values(), *inputs.weights]
        before, versions = [t.detach().clone() for t in tensors], [t._version for t in tensors]
        results(lambda i: call(i, backend), inputs)
        assert [t._version for t in tensors] == versions
        assert all(torch.equal(t, copy) for t, copy in zip(tensors, before, strict=True))


def test_an_input_changed_before_backward_is_noticed(backend, serves):
    inputs = make_inputs(PADDED)
    serves(inputs)
    (y,) = call(inputs, backend)
    with torch.no_grad():
        inputs.lora_as[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_backward_twice_with_retain_graph(backend, serves):
    inputs = make_inputs(PADDED)
    serves(inputs)
    (y,) = call(inputs, backend)
    leaves = list(inputs.leaves().values())
    first = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(y.sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_weight_that_requires_grad_is_refused():
    inputs = make_inputs(Case())
    weight = torch.nn.Parameter(inputs.weights[0])
    with pytest.raises(ValueError, match=r"weight requires grad.*no gradient for them.*requires_grad_\(False\)"):
        lora_linear(inputs.x, weight, inputs.lora_as[0], inputs.lora_bs[0])
    with pytest.raises(ValueError, match=r"weights\[1\] requires grad"):
        lora_linear_group(inputs.x, [weight.detach(), weight], inputs.lora_as[0], [inputs.lora_bs[0]] * 2)
    with torch.no_grad():  # no gradient can be lost here
        lora_linear(inputs.x, weight, inputs.lora_as[0], inputs.lora_bs[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [replace(PADDED, n=(40, 8)), replace(PACKED, tensor_scaling=True)], ids=str)
def test_autocast_is_that_of_linear(case, dtype, backend, serves):
    """fp32 in, the autocast dtype out, fp32 gradients: what casting x, weight and bias by hand gives, bit for bit."""
    inputs = make_inputs(case)
    by_hand = replace(
        inputs,
        x=inputs.x.to(dtype),
        weights=tuple(w.to(dtype) for w in inputs.weights),
        biases=tuple(None if bias is None else bias.to(dtype) for bias in inputs.biases),
    )
    serves(by_hand)
    with torch.autocast("cpu", dtype):
        assert call(inputs, backend)[0].dtype == F.linear(inputs.x, inputs.weights[0]).dtype == dtype
        got = results(lambda i: call(i, backend), inputs)
    ys = call(by_hand, backend)
    generator = torch.Generator().manual_seed(1)
    gs = [torch.randn(y.shape, generator=generator, dtype=torch.float64).bfloat16().to(y) for y in ys]
    expected = torch.autograd.grad(ys, list(inputs.leaves().values()), gs)
    assert all(torch.equal(got[f"y[{j}]"], y) for j, y in enumerate(ys))
    for (name, leaf), gradient in zip(inputs.leaves().items(), expected, strict=True):
        assert got[f"d {name}"].dtype == leaf.dtype == torch.float32
        if name.startswith("bias"):  # the cast by hand rounds its gradient to the autocast dtype, the op does not
            assert torch.equal(got[f"d {name}"].to(dtype), gradient.to(dtype))
        else:
            assert torch.equal(got[f"d {name}"], gradient), name


def test_autocast_around_backward_changes_nothing(backend, serves):
    inputs = make_inputs(replace(PADDED, tensor_scaling=True))
    serves(inputs)
    leaves = list(inputs.leaves().values())
    expected = torch.autograd.grad(call(inputs, backend)[0].sum(), leaves)
    loss = call(inputs, backend)[0].sum()
    with torch.autocast("cpu"):
        got = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("case", [PADDED, PACKED, replace(PADDED, tensor_scaling=True)], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_activation_checkpointing(case, autocast, backend, serves):
    """Recomputed in backward, with live A and B that carry gradients to what made them: the very same gradients."""
    inputs = make_inputs(case)
    serves(inputs)
    maker = torch.ones(3, requires_grad=True)

    def layer(x):
        live = replace(inputs, x=x, lora_as=tuple(a * maker[:, None, None] for a in inputs.lora_as))
        return sum(y.float().square().sum() for y in call(live, backend))

    leaves = [maker, *inputs.leaves().values()]
    with torch.autocast("cpu", enabled=autocast):
        plain, saving = layer(inputs.x), checkpoint(layer, inputs.x, use_reentrant=False)
    assert torch.equal(plain, saving)
    for a, b in zip(torch.autograd.grad(plain, leaves), torch.autograd.grad(saving, leaves), strict=True):
        assert torch.equal(a, b)
