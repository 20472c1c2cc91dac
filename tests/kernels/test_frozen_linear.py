"""x·Wᵀ of a frozen weight: values and gradients by the error rule, layouts, threads, and when a kernel serves."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cora_kernels import use_backend
from cora_kernels.backends import cpu
from cora_kernels.frozen_linear import frozen_linear
from cora_kernels.testing import assert_by_rule

FP64, DTYPES = torch.float64, (torch.float32, torch.bfloat16, torch.float16)
needs_kernel = pytest.mark.skipif(cpu.availability() is not None, reason=f"cpu: {cpu.availability()}")
OP = "cora_kernels::cpu_linear"


def made(dtype: torch.dtype, rows: int = 200, k: int = 96, n: int = 50) -> list[Tensor]:
    """x, which wants a gradient, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator, dtype=FP64) for shape in ((rows, k), (n, k), (n,)))
    return [x.to(dtype).requires_grad_(), weight.to(dtype), bias.to(dtype)]


def results(op: Any, x: Tensor, *others: Tensor) -> dict[str, Tensor]:
    y = op(x, *others)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=FP64).to(torch.bfloat16).to(y)
    leaves = {"dx": x} | {f"d{i}": one for i, one in enumerate(others) if one.requires_grad}
    return {"y": y.detach()} | dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), g), strict=True))


def kernels(run: Any) -> list[str]:
    """The names of the kernels that a call runs."""
    with torch.profiler.profile() as profile:
        run()
    return [event.name for event in profile.events() if event.name.startswith("cora_kernels::")]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(200, 96, 50), (128, 1, 1), (131, 33, 100), (600, 576, 192)], ids=str)
def test_the_error_rule(shape, biased, dtype, isa, poison):
    operands = made(dtype, *shape)[: 3 if biased else 2]
    exact = results(F.linear, *(one.detach().double().requires_grad_(one.requires_grad) for one in operands))
    usual = results(F.linear, *operands)
    for what, value in results(frozen_linear, *operands).items():
        assert value.dtype == dtype
        assert_by_rule(what, value, exact[what], usual[what], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_itself_in_every_dtype(dtype, isa, poison):
    """Also where torch is asked instead."""
    x, weight, bias = (one.detach() for one in made(dtype, 37))
    g = torch.randn(37, 50, generator=torch.Generator().manual_seed(2)).to(dtype)
    for name, found, exact, usual in (
        ("y", cpu.linear(x, weight, bias, False), F.linear(x.double(), weight.double(), bias.double()),
         F.linear(x, weight, bias)),
        ("dx", cpu.linear(g, weight, None, True), g.double() @ weight.double(), g @ weight),
    ):  # fmt: skip
        assert_by_rule(name, found, exact, usual, dtype)


@needs_kernel
def test_a_kernel_serves_where_it_is_faster(isa):
    emulates = isa in ("avx2", "avx512")
    for dtype, rows, served in (
        (torch.float32, 200, True),
        (torch.float32, 127, False),
        (torch.bfloat16, 200, emulates),
        (torch.bfloat16, 100, False),
        (torch.float16, 200, emulates),
    ):
        operands = made(dtype, rows)
        assert kernels(lambda operands=operands: results(frozen_linear, *operands)) == [OP, OP] * served


@pytest.mark.parametrize("why", ["backend", "float64", "autocast", "compiled", "vmap", "tangent", "weight", "bias"])
def test_elsewhere_torch_serves_the_same_bits(why):
    x, weight, bias = made(FP64 if why == "float64" else torch.float32)
    weight.requires_grad_(why == "weight")
    bias.requires_grad_(why == "bias")
    if why in ("vmap", "tangent"):
        x = x.detach()
        if why == "vmap":
            found = [torch.func.vmap(op, (0, None, None))(x[None], weight, bias) for op in (frozen_linear, F.linear)]
        else:
            ops = frozen_linear, F.linear
            found = [torch.func.jvp(lambda one, op=op: op(one, weight, bias), (x,), (x,))[1] for op in ops]
        assert torch.equal(*found)
        return
    op = torch.compile(frozen_linear, backend="aot_eager", fullgraph=True) if why == "compiled" else frozen_linear
    with (
        use_backend("chain" if why == "backend" else None),
        torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"),
    ):
        ours, usual = results(op, x, weight, bias), results(F.linear, x, weight, bias)
    assert ours.keys() == usual.keys()
    for what, value in ours.items():
        assert torch.equal(value, usual[what])


@needs_kernel
def test_any_layout_and_any_number_of_threads():
    x, weight, bias = made(torch.float32, 600)
    turned = x.detach().t().contiguous().t().requires_grad_()
    batched = torch.stack([x.detach(), x.detach()], 1)[:, 0].view(3, 200, 96).requires_grad_()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results(frozen_linear, x, weight, bias)
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            for one in (turned, batched):
                found = results(frozen_linear, one, weight.t().contiguous().t(), bias)
                assert found["y"].shape == (*one.shape[:-1], 50)
                for what, value in found.items():
                    assert torch.equal(value.reshape(600, -1), expected[what]), f"{what} differs with {n} threads"
    finally:
        torch.set_num_threads(threads)


@needs_kernel
def test_the_result_may_be_written_in_place():
    x, weight, _ = made(torch.float32)
    frozen_linear(x, weight).mul_(2).sum().backward()
    torch.testing.assert_close(x.grad, 2 * weight.sum(0).expand_as(x), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("wrong", ["x", "bias", "dtype"])
def test_errors_are_those_of_torch(wrong):
    x, weight, bias = (one.detach() for one in made(torch.float32))
    calls = {"x": (x[:, :-1], weight, None), "bias": (x, weight, bias[:7]), "dtype": (x, weight.bfloat16(), None)}
    with pytest.raises(RuntimeError) as expected:
        F.linear(*calls[wrong])
    with pytest.raises(RuntimeError) as found:
        frozen_linear(*calls[wrong])
    assert str(found.value) == str(expected.value)


@needs_kernel
def test_opcheck():
    x, weight, bias = (one.detach() for one in made(torch.float32, 20))
    op = torch.ops.cora_kernels.cpu_linear.default
    for arguments in ((x, weight, bias, False), (x, weight, None, False), (torch.randn(20, 50), weight, None, True)):
        torch.library.opcheck(op, arguments)
    for wrong in ((x[:, :-1], weight, bias, False), (x, weight, bias[:7], False), (x, weight, None, True)):
        with pytest.raises(RuntimeError, match="must be"):
            op(*wrong)
