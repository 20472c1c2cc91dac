"""Outputs and every gradient, by name, under the error rule: layouts, dtypes, awkward sizes, views, frozen subsets."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from cora_kernels.testing import (
    FLOORS,
    Case,
    assert_correct,
    assert_samples_are_apart,
    call,
    definition,
    make_inputs,
    relative_error,
    results,
)

LAYOUTS = [
    Case(lengths=lengths, sample_a=sample_a, sample_b=sample_b, n=n, one_a=one_a, tensor_scaling=scaling, bias=scaling)
    for lengths, sample_a, sample_b, scaling, (n, one_a) in product(
        (None, (4, 0, 9, 1)),
        (True, False),
        (True, False),
        (False, True),
        (((40,), True), ((40, 8, 17), True), ((40, 8), False)),
    )
]
SIZES = [
    Case(batch=1, length=1, k=1, n=(1,), r=1),
    Case(batch=2, length=3, k=5, n=(7,), r=3),
    Case(batch=3, length=17, k=33, n=(65,), r=5),
    Case(batch=5, length=2, k=31, n=(130,), r=1, sample_b=True),
    Case(batch=4, length=1, k=64, n=(48,), r=16),
    Case(batch=2, length=5, k=8, n=(12,), r=20, sample_b=True),
    Case(batch=2, length=70, k=40, n=(24, 9), r=9),
    Case(lengths=(1, 1, 1), k=19, n=(23,), r=2),
    Case(lengths=(33, 2, 65), k=48, n=(31, 5), r=7, sample_b=True),
]
EMPTY = [
    Case(batch=0),
    Case(batch=0, sample_b=True, bias=True, tensor_scaling=True),
    Case(batch=0, sample_a=False, n=(40, 8)),
    Case(length=0, sample_b=True),
    Case(length=0, sample_a=False, bias=True, tensor_scaling=True),
    Case(lengths=(0, 5, 0, 0, 3, 0), sample_b=True),
    Case(lengths=(0, 0), bias=True, tensor_scaling=True),
    Case(lengths=(), sample_b=True),
    Case(lengths=(), sample_a=False, n=(40, 8)),
]
DTYPES = [
    (torch.float64, None),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, None),
    (torch.bfloat16, torch.float32),
    (torch.float16, None),
    (torch.float16, torch.float32),
]
VARIETY = [
    Case(bias=True),
    Case(sample_a=False, n=(40, 17)),
    Case(sample_b=True, tensor_scaling=True, n=(40, 17)),
    Case(lengths=(4, 0, 9), sample_b=True, bias=True, tensor_scaling=True),
    Case(batch=4, length=1, k=64, n=(48, 16), r=8, one_a=False),
]


@pytest.mark.parametrize("case", LAYOUTS + SIZES + EMPTY, ids=str)
def test_layouts_and_sizes(case, backend, device, poison, serves):
    inputs = make_inputs(case, device)
    serves(inputs)
    assert_correct(inputs, backend)


@pytest.mark.parametrize(
    "case", [replace(case, dtype=x, factor_dtype=ab) for (x, ab), case in product(DTYPES, VARIETY)], ids=str
)
def test_dtypes(case, backend, device, poison, serves):
    inputs = make_inputs(case, device)
    serves(inputs)
    assert_correct(inputs, backend)


def _inside(t):
    """The same values as a view at an odd offset, with NaN before, after and between the rows."""
    store = torch.full((*t.shape[:-1], t.shape[-1] + 5), float("nan"), dtype=t.dtype, device=t.device)
    store[..., 3 : 3 + t.shape[-1]] = t
    return store[..., 3 : 3 + t.shape[-1]]


def _transposed(t):
    return t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t.repeat_interleave(2)[::2]


def _reversed_batch(t):
    """Samples (or rows) in memory the other way round and with another one between."""
    return torch.stack([t, torch.full_like(t, float("nan"))], 1).flip(0)[:, 0].flip(0)


@pytest.mark.parametrize("view", [_inside, _transposed, _reversed_batch])
@pytest.mark.parametrize(
    "case",
    [
        Case(bias=True),
        Case(sample_b=True, tensor_scaling=True, n=(40, 16)),
        Case(sample_a=False),
        Case(lengths=(4, 0, 9), sample_b=True),
    ],
    ids=str,
)
def test_views(case, view, backend, device, poison, serves):
    inputs = make_inputs(case, device).map(view)
    serves(inputs)
    assert_correct(inputs, backend)


def test_expanded_input_and_gradient(backend, device, serves):
    """x and g with stride 0: one row for all, and the gradient of a sum."""
    inputs = make_inputs(Case(sample_b=True), device)
    serves(inputs)
    inputs = replace(inputs, x=inputs.x.detach()[:, :1].expand(3, 7, 24).requires_grad_())
    assert_correct(inputs, backend)
    inputs.x.grad = None
    call(inputs, backend)[0].sum().backward()
    exact = inputs.map(lambda t: t.double())
    definition(exact)[0].sum().backward()
    for name, leaf in inputs.leaves().items():
        assert relative_error(leaf.grad, exact.leaves()[name].grad) < FLOORS[torch.float32], name


@pytest.mark.parametrize("lengths", [None, (4, 0, 9)], ids=["padded", "packed"])
@pytest.mark.parametrize(
    "kept", list(product((True, False), repeat=5)), ids=lambda kept: "".join("01"[k] for k in kept)
)
def test_frozen_subsets(kept, lengths, backend, serves):
    """Every subset of x, scaling, A, B and bias may be frozen: the other gradients are what they were."""
    inputs = make_inputs(Case(lengths=lengths, bias=True, tensor_scaling=True, sample_b=True))
    serves(inputs)
    for leaf, keep in zip(inputs.leaves().values(), kept, strict=True):
        leaf.requires_grad_(keep)
    assert_correct(inputs, backend)


def test_unused_output_of_a_group(backend, serves):
    inputs = make_inputs(Case(n=(40, 8)))
    serves(inputs)
    got = torch.autograd.grad(call(inputs, backend)[0].sum(), list(inputs.leaves().values()))
    exact = inputs.map(lambda t: t.double())
    expected = torch.autograd.grad(definition(exact)[0].sum(), list(exact.leaves().values()), materialize_grads=True)
    for name, gradient, value in zip(inputs.leaves(), got, expected, strict=True):
        assert relative_error(gradient, value) < FLOORS[torch.float32], name


@pytest.mark.parametrize("case", [Case(), Case(lengths=(4, 0, 9), sample_b=True)], ids=str)
def test_scaling_gradient_at_zero(case, backend, serves):
    """ds is <S, dS> of the unscaled factors: it does not vanish, or turn into 0/0, where the scaling itself is 0."""
    inputs = make_inputs(replace(case, tensor_scaling=True))
    serves(inputs)
    with torch.no_grad():
        inputs.scaling[1:] = 0.0
    assert_correct(inputs, backend)
    assert (results(lambda i: call(i, backend), inputs)["d scaling"] != 0).sum() >= 2


def test_no_grad_gives_the_same_bits(backend, device, serves):
    inputs = make_inputs(Case(n=(40, 8), bias=True), device)
    serves(inputs)
    with torch.no_grad():
        bare = call(inputs, backend)
    assert all(torch.equal(y, z) for y, z in zip(call(inputs, backend), bare, strict=True))


@pytest.mark.parametrize("case", [Case(batch=8, length=33, n=(40, 8)), Case(lengths=(4, 0, 9), sample_b=True)], ids=str)
def test_deterministic(case, backend, device, serves):
    inputs = make_inputs(case, device)
    serves(inputs)
    first = results(lambda i: call(i, backend), inputs)
    for _ in range(5):
        again = results(lambda i: call(i, backend), inputs)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_sample_does_not_see_its_neighbours(backend, device, serves):
    """With NaN in every other sample, a sample's output and gradients stay what they are."""
    inputs = make_inputs(Case(batch=3, sample_b=True), device)
    serves(inputs)
    assert_samples_are_apart(inputs, backend)
