"""The norm and the gate between linears: values and gradients by the error rule, layouts, threads, who serves."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cora_kernels import use_backend
from cora_kernels.backends import cpu
from cora_kernels.pointwise import rms_norm, silu_gate
from cora_kernels.testing import assert_by_rule

FP64, DTYPES = torch.float64, (torch.float32, torch.bfloat16, torch.float16)
needs_kernel = pytest.mark.skipif(cpu.availability() is not None, reason=f"cpu: {cpu.availability()}")
SHAPES = [(7, 576), (2, 3), (3, 5, 33), (0, 8), (70, 100), (16,)]


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return rms_norm(x, weight, 1e-5)


def gate(a: Tensor, b: Tensor) -> Tensor:
    return silu_gate(a, b)


def stock_norm(x: Tensor, weight: Tensor) -> Tensor:
    """As transformers has it."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def stock_gate(a: Tensor, b: Tensor) -> Tensor:
    return F.silu(a) * b


OPS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "rms_norm": (norm, stock_norm),
    "silu_gate": (gate, stock_gate),
}
by_op = pytest.mark.parametrize("name", OPS)


def made(name: str, shape: Sequence[int], dtype: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    """Operands; those of the norm end in its weight, which has no gradient."""
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(shape, generator=generator, dtype=FP64)
    other = torch.randn(shape[-1:] if name == "rms_norm" else shape, generator=generator, dtype=FP64)
    return [x.to(dtype).requires_grad_(), other.to(dtype).requires_grad_(name == "silu_gate")]


def results(op: Callable[..., Tensor], operands: Sequence[Tensor]) -> dict[str, Tensor]:
    y = op(*operands)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=FP64).to(torch.bfloat16).to(y)
    leaves = [one for one in operands if one.requires_grad]
    found = torch.autograd.grad(y, leaves, g)
    return {"y": y.detach()} | {f"d{i}": one for i, one in enumerate(found)}


@by_op
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_rule(name, shape, scale, dtype, isa, poison):
    op, stock = OPS[name]
    operands = made(name, shape, dtype, scale)
    exact = results(stock, [one.detach().double().requires_grad_(one.requires_grad) for one in operands])
    ours, usual = results(op, operands), results(stock, operands)
    for what, value in ours.items():
        assert value.dtype == dtype and value.shape == usual[what].shape
        assert_by_rule(what, value, exact[what], usual[what], dtype)


@by_op
@pytest.mark.parametrize("why", ["backend", "float64", "autocast", "compiled", "vmap", "weight", "tangent"])
def test_elsewhere_torch_serves_the_same(name, why):
    op, stock = OPS[name]
    operands = made(name, (6, 40), FP64 if why == "float64" else torch.float32)
    if why == "weight":
        operands = [one.detach().clone().requires_grad_() for one in operands]
    if why == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            ours, usual = results(op, operands), results(stock, operands)
    elif why == "compiled":
        ours = results(torch.compile(op, backend="aot_eager", fullgraph=True), operands)
        usual = results(stock, operands)
    elif why == "vmap":
        x, other = (one.detach() for one in operands)
        dims = (0, 0 if name == "silu_gate" else None)
        ours = {"y": torch.func.vmap(op, dims)(x, other)}
        usual = {"y": stock(x, other)}
    elif why == "tangent":
        x, other = (one.detach() for one in operands)
        ours, usual = (
            dict(enumerate(torch.func.jvp(lambda t, f=f: f(t, other), (x,), (torch.ones_like(x),))))
            for f in (op, stock)
        )
    else:
        with use_backend("chain" if why == "backend" else None):
            ours, usual = results(op, operands), results(stock, operands)
    for what, value in ours.items():
        torch.testing.assert_close(value, usual[what], atol=2e-6, rtol=2e-6)


@by_op
def test_the_weight_has_a_gradient_where_it_asks_for_one(name):
    operands = [one.detach().requires_grad_() for one in made(name, (5, 12), FP64)]
    assert torch.autograd.gradcheck(OPS[name][0], operands)


@by_op
@needs_kernel
def test_any_layout_and_any_number_of_threads(name):
    x, other = (one.detach() for one in made(name, (600, 64), torch.bfloat16))
    wide = torch.stack([x, x], 1)[:, 0].requires_grad_()  # rows apart
    turned = x.t().contiguous().t().requires_grad_()  # columns contiguous
    other.requires_grad_(name == "silu_gate")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results(OPS[name][0], [x.clone().requires_grad_(), other])
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            for one in (wide, turned):
                for what, value in results(OPS[name][0], [one, other]).items():
                    assert torch.equal(value, expected[what]), f"{what} differs with {n} threads"
    finally:
        torch.set_num_threads(threads)


@needs_kernel
@by_op
def test_one_kernel_each_way(name):
    operands = made(name, (4, 32), torch.float32)
    with torch.profiler.profile() as profile:
        results(OPS[name][0], operands)
    found = [event.name for event in profile.events() if event.name.startswith("cora_kernels::")]
    assert found == [f"cora_kernels::cpu_{name}", f"cora_kernels::cpu_{name}_backward"]


@needs_kernel
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e30, -1e30, -89.0, -120.0, 0.0])
def test_numbers_at_the_edge(value, isa):
    """The gate goes to 0 on the left, to itself on the right; the norm of what is too large is 0, as torch has it."""
    x, one = torch.tensor([[value, 1.0]]), torch.ones(1, 2)
    for ours, usual in ((silu_gate(x, one), F.silu(x)), (norm(x, one[0]), stock_norm(x, one[0]))):
        if value == float("-inf"):  # torch's gate is -inf · 0 there
            usual = torch.where(usual.isnan(), ours, usual)
        torch.testing.assert_close(ours, usual, atol=1e-30, rtol=1e-5, equal_nan=True)


@needs_kernel
def test_opcheck():
    x, w, g, scales = torch.randn(6, 8), torch.randn(8), torch.randn(6, 8), torch.rand(6)
    ops = torch.ops.cora_kernels
    calls: dict[Any, tuple[Any, ...]] = {
        ops.cpu_rms_norm: (x, w, 1e-5),
        ops.cpu_rms_norm_backward: (g, x, w, scales),
        ops.cpu_silu_gate: (x, g),
        ops.cpu_silu_gate_backward: (g, x, x),
    }
    for op, arguments in calls.items():
        torch.library.opcheck(op.default, arguments)
    for op, arguments in calls.items():  # what a caller of the ops themselves gets for shapes that do not fit
        with pytest.raises(RuntimeError, match="must be"):
            op(*(one[:, ::2] if isinstance(one, Tensor) and one.dim() == 2 else one for one in arguments))


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"weight must be \[8\], as the last dimension of x, got \[7\]"):
        rms_norm(torch.ones(2, 8), torch.ones(7), 1e-5)
    with pytest.raises(ValueError, match=r"up must be \[2, 8\], as gate, got \[2, 1\]"):
        silu_gate(torch.ones(2, 8), torch.ones(2, 1))
