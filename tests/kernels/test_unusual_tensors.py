"""Tensors that are more than numbers in memory one after another: served as what they say, or refused by name."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from cora_kernels import lora_linear, packed_attention, use_backend
from cora_kernels.backends import cpu
from cora_kernels.testing import Case, Hidden, Inputs, assert_correct, call, make_inputs

BOUNDARIES = torch.tensor([0, 4, 4, 12], dtype=torch.int32)
needs_kernel = pytest.mark.skipif(cpu.availability() is not None, reason=f"cpu: {cpu.availability()}")


def _imaginary(t: Tensor) -> Tensor:
    """The same values as the imaginary part of a conjugate: memory holds their negatives."""
    return (
        torch.complex(torch.zeros_like(t.float()), -t.float()).conj().imag.to(t.dtype) if t.is_floating_point() else t
    )


def _zeros(t: Tensor) -> Tensor:
    return torch._efficientzerotensor(t.shape, dtype=t.dtype)


def _arguments(seed: int = 0, **changed) -> dict:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (3, 4, 8), "weight": (16, 8), "lora_a": (3, 8, 2), "lora_b": (2, 16), "bias": (16,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | changed


@pytest.mark.parametrize("change", [_imaginary, _zeros], ids=["negative", "zeros"])
@pytest.mark.parametrize("case", [Case(bias=True), Case(lengths=(4, 2, 9), bias=True, tensor_scaling=True)], ids=str)
def test_values_that_memory_does_not_hold(change, case, backend, serves):
    inputs = make_inputs(case).map(change)
    assert inputs.x.is_neg() or inputs.x._is_zerotensor()
    serves(inputs)
    assert_correct(inputs, backend)


@pytest.mark.parametrize("change", [torch._neg_view, _zeros, lambda g: g[:1].expand(g.shape)])
@pytest.mark.parametrize("scaling", [2.0, torch.tensor([1.0, 2.0, 3.0])], ids=["plain call", "scaling of each"])
def test_gradients_that_memory_does_not_hold(change, scaling, backend):
    call_ = _arguments(scaling=scaling)
    a, x = call_["lora_a"].requires_grad_(), call_["x"].requires_grad_()
    g = change(torch.randn(3, 4, 16))
    y = lora_linear(**call_, backend=backend)
    got, expected = torch.autograd.grad(y, (x, a), g, retain_graph=True), torch.autograd.grad(y, (x, a), g.clone())
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("layout", ["column", "negative", "inference"])
@pytest.mark.parametrize("compiled", [False, True])
def test_borders_of_any_kind(layout, compiled, backend):
    """A column of a table, a negative view, made in inference mode: all are read as what they say."""
    if layout == "column":
        boundaries = torch.stack([BOUNDARIES, BOUNDARIES + 7], 1)[:, 0]
    elif layout == "negative":
        boundaries = torch._neg_view(-BOUNDARIES)
    else:
        with torch.inference_mode():
            boundaries = BOUNDARIES.clone()
    torch._dynamo.reset()
    op = torch.compile(lora_linear, fullgraph=True, backend="aot_eager") if compiled else lora_linear
    results = []
    for run, cu_seqlens in ((op, boundaries), (lora_linear, BOUNDARIES)):
        arguments = _arguments(x=torch.ones(12, 8).cumsum(0), cu_seqlens=cu_seqlens)
        a = arguments["lora_a"].requires_grad_()
        y = run(**arguments, backend=backend)
        results.append((y.detach(), *torch.autograd.grad(y.sum(), a)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernel)])
def test_attention_takes_the_same(backend):
    q, k, v = (torch.randn(12, heads, 8) for heads in (4, 2, 2))
    boundaries = torch.stack([BOUNDARIES, BOUNDARIES + 7], 1)[:, 0]
    with use_backend(backend):
        expected = packed_attention(q, k, v, BOUNDARIES, scale=0.25)
        got = packed_attention(_imaginary(q), _imaginary(k), _imaginary(v), boundaries, scale=np.float32(0.25))
        assert torch.equal(got, expected)
        assert packed_attention(q, k, _zeros(v), BOUNDARIES).count_nonzero() == 0
        shared = torch.randn(40).as_strided((12, 4, 8), (1, 1, 1))
        torch.testing.assert_close(
            packed_attention(shared, k, v, BOUNDARIES), packed_attention(shared.contiguous(), k, v, BOUNDARIES)
        )
        no_sample = packed_attention(q[:0], k[:0], v[:0].requires_grad_(), BOUNDARIES[:1])
        assert no_sample.requires_grad and no_sample.shape == (0, 4, 8)


def test_borders_changed_before_the_backward(backend):
    """Are noticed by autograd: the gradients of other samples would be wrong ones."""
    boundaries = BOUNDARIES.clone()
    arguments = _arguments(x=torch.randn(12, 8), cu_seqlens=boundaries)
    arguments["lora_a"].requires_grad_()
    y = lora_linear(**arguments, backend=backend)
    boundaries[1] = 7
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    "scaling",
    [np.float32(2), np.float64(2), np.float16(2), np.int64(2), Fraction(4, 2), 2],
    ids=lambda scaling: type(scaling).__name__,
)
def test_numbers(scaling, backend):
    expected = lora_linear(**_arguments(scaling=2.0), backend=backend)
    assert torch.equal(lora_linear(**_arguments(scaling=scaling), backend=backend), expected)


@pytest.mark.parametrize(
    ("scaling", "error", "message"),
    [
        (np.True_, TypeError, "scaling must be a number or a Tensor, got a bool"),
        (Decimal(2), TypeError, "scaling must be a number or a Tensor, got a Decimal"),
        (2j, TypeError, "scaling must be a number or a Tensor, got a complex"),
        (np.ones(3), TypeError, "scaling must be a number or a Tensor, got a ndarray"),
        (10**400, ValueError, "scaling must be a number that a float can hold"),
        (torch.ones(3).to(torch.float8_e4m3fn), TypeError, "scaling must be float32, .* got torch.float8_e4m3fn"),
    ],
)
def test_no_numbers(scaling, error, message, backend):
    with pytest.raises(error, match=message):
        lora_linear(**_arguments(scaling=scaling), backend=backend)


@pytest.mark.parametrize("name", ["x", "weight", "lora_a", "lora_b", "bias"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (Hidden, TypeError, "must be a plain Tensor, got a Hidden"),
        (Tensor.to_sparse, TypeError, "must be a strided Tensor, got torch.sparse_coo"),
        (Tensor.to_mkldnn, TypeError, "must be a strided Tensor, got torch._mkldnn"),
        (lambda t: torch.nested.nested_tensor([t, t]), TypeError, "must be a strided Tensor, got a nested one"),
        (lambda t: nn.UninitializedParameter(), ValueError, "must be initialised, got a UninitializedParameter"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), TypeError, "must be .*got torch.qint8"),
        (lambda t: t.to(torch.cfloat).conj(), TypeError, "must be .*got torch.complex64"),
    ],
    ids=["subclass", "sparse", "mkldnn", "nested", "uninitialised", "quantised", "complex"],
)
@pytest.mark.filterwarnings("ignore")
def test_refused_by_name(name, change, error, message, backend):
    arguments = _arguments()
    arguments[name] = change(arguments[name])
    with pytest.raises(error, match=f"^{name} {message}"):
        lora_linear(**arguments, backend=backend)


@pytest.mark.filterwarnings("ignore")
def test_attention_and_borders_refuse_by_name():
    q = torch.zeros(12, 4, 8)
    with pytest.raises(TypeError, match="^v must be a plain Tensor, got a Hidden"):
        packed_attention(q, q, Hidden(q), BOUNDARIES)
    with pytest.raises(TypeError, match="^k must be a strided Tensor, got torch.sparse_coo"):
        packed_attention(q, q.to_sparse(), q, BOUNDARIES)
    with pytest.raises(TypeError, match="^cu_seqlens must be a strided Tensor, got torch.sparse_coo"):
        packed_attention(q, q, q, BOUNDARIES.to_sparse())
    with pytest.raises(TypeError, match="^scale must be a number, got a str"):
        packed_attention(q, q, q, BOUNDARIES, scale="1")
    with torch.autocast("cpu"), pytest.raises(TypeError, match="^q must be .* got torch.int64"):
        packed_attention(q.long(), q, q, BOUNDARIES)


@pytest.mark.parametrize("kind", [nn.Parameter, nn.Buffer, lambda t: t.as_subclass(type("Plain", (Tensor,), {}))])
def test_subclasses_that_only_add(kind, backend):
    arguments = _arguments()
    expected = lora_linear(**arguments, backend=backend)
    wrapped = {name: kind(t) for name, t in arguments.items()}
    wrapped["weight"].requires_grad_(False)
    assert torch.equal(lora_linear(**wrapped, backend=backend), expected)


def test_no_other_derivative(backend):
    """Tangents are not dropped in silence."""
    arguments = _arguments()
    with forward_ad.dual_level(), pytest.raises(ValueError, match="^x and .* no forward-mode tangents"):
        x = forward_ad.make_dual(arguments["x"], torch.ones(3, 4, 8))
        lora_linear(**arguments | {"x": x}, backend=backend)
    for transform in (torch.func.grad, torch.func.jacfwd):
        with pytest.raises(ValueError, match="^x and the other tensors must not be differentiated inside torch.func"):
            transform(lambda x: lora_linear(**arguments | {"x": x}, backend=backend).sum())(arguments["x"])


def test_inference_tensors(backend):
    """Serve where nothing has to be saved, and are named where something has."""
    arguments = _arguments()
    with torch.inference_mode():
        weight = arguments["weight"].clone()
    arguments["lora_a"].requires_grad_()
    expected = lora_linear(**arguments, backend=backend)
    assert torch.equal(lora_linear(**arguments | {"weight": weight}, backend=backend), expected)
    arguments["x"].requires_grad_()
    with pytest.raises(ValueError, match="^weight must not be an inference tensor"):
        lora_linear(**arguments | {"weight": weight}, backend=backend)


@pytest.mark.filterwarnings("ignore")
def test_a_trace_follows_its_inputs():
    arguments = _arguments()
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: lora_linear(**arguments | {"x": x}), (arguments["x"],))
        other = torch.randn(3, 4, 8)
        torch.testing.assert_close(traced(other), lora_linear(**arguments | {"x": other}))


def test_gradients_of_another_layout():
    inputs: Inputs = make_inputs(Case())
    (y,) = call(inputs)
    with pytest.raises(TypeError, match="^grad_outputs must be a plain strided Tensor"):
        torch.autograd.grad(y, inputs.x, torch.ones_like(y).to_sparse())
