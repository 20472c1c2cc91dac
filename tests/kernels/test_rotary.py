"""Queries and keys turned by their positions: values and gradients by the error rule, layouts, threads, who serves."""

import pytest
import torch
from torch import Tensor

from cora_kernels import use_backend
from cora_kernels.backends import cpu
from cora_kernels.pointwise import rotary
from cora_kernels.testing import assert_by_rule

FP64, DTYPES = torch.float64, (torch.float32, torch.bfloat16, torch.float16)
needs_kernel = pytest.mark.skipif(cpu.availability() is not None, reason=f"cpu: {cpu.availability()}")
NAMES = ("q", "k", "dq", "dk")


def stock(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """As transformers has it."""

    def turned(x: Tensor) -> Tensor:
        low, high = x.chunk(2, -1)
        return x * cos.unsqueeze(1) + torch.cat((-high, low), -1) * sin.unsqueeze(1)

    return turned(q), turned(k)


def made(
    dtype: torch.dtype,
    batch: int = 2,
    heads: int = 9,
    kv_heads: int = 3,
    length: int = 7,
    width: int = 64,
    own: int = 1,
) -> list[Tensor]:
    """q and k as linears give them, heads side by side; cos and sin of no angle, whose halves differ."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=FP64).to(dtype)

    q, k = (normal(batch, length, n, width).transpose(1, 2).requires_grad_() for n in (heads, kv_heads))
    return [q, k, normal(own, length, width), normal(own, length, width)]


def results(op, operands: list[Tensor]) -> list[Tensor]:
    ys = op(*operands)
    generator = torch.Generator().manual_seed(1)
    gs = [torch.randn(y.shape, generator=generator, dtype=FP64).to(torch.bfloat16).to(y) for y in ys]
    return [*(y.detach() for y in ys), *torch.autograd.grad(ys, [one for one in operands if one.requires_grad], gs)]


def doubled(operands: list[Tensor]) -> list[Tensor]:
    return [one.detach().double().requires_grad_(one.requires_grad) for one in operands]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"own": 2},
        {"width": 2},
        {"width": 34, "heads": 1, "kv_heads": 1},
        {"length": 0},
        {"batch": 1, "length": 300},
    ],
    ids=str,
)
def test_the_error_rule(shape, dtype, isa, poison):
    operands = made(dtype, **shape)
    exact, usual = results(stock, doubled(operands)), results(stock, operands)
    for name, value, other, wanted in zip(NAMES, results(rotary, operands), usual, exact, strict=True):
        # The heads of a token side by side, as linears read and write them.
        assert value.dtype == dtype and value.shape == other.shape and value.transpose(1, 2).is_contiguous()
        assert_by_rule(name, value, wanted, other, dtype)


@pytest.mark.parametrize("why", ["backend", "float64", "autocast", "compiled", "vmap", "tangent", "angles"])
def test_elsewhere_torch_serves_the_same(why):
    operands = made(FP64 if why == "float64" else torch.float32)
    if why == "angles":
        operands = [one.detach().requires_grad_() for one in operands]
    if why in ("vmap", "tangent"):
        q, *rest = (one.detach() for one in operands)
        if why == "vmap":
            found = [torch.func.vmap(lambda one, op=op: op(one, *rest)[0])(q[None]) for op in (rotary, stock)]
        else:
            found = [torch.func.jvp(lambda one, op=op: op(one, *rest)[0], (q,), (q,))[1] for op in (rotary, stock)]
        torch.testing.assert_close(*found)
        return
    op = torch.compile(rotary, backend="aot_eager", fullgraph=True) if why == "compiled" else rotary
    with (
        use_backend("chain" if why == "backend" else None),
        torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"),
    ):
        pairs = zip(results(op, operands), results(stock, operands), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other)


def test_angles_have_gradients_where_they_ask_for_them():
    operands = [one.detach().requires_grad_() for one in made(FP64, batch=1, heads=2, kv_heads=1, length=3, width=4)]
    assert torch.autograd.gradcheck(rotary, operands)


@needs_kernel
def test_any_layout_and_any_number_of_threads():
    operands = made(torch.bfloat16, batch=3, length=200, own=3)
    q, k, cos, sin = (one.detach() for one in operands)
    by_head = q.contiguous().requires_grad_()  # the rows of a head side by side
    apart = torch.stack([k, k], -1)[..., 0].requires_grad_()  # elements apart
    wide = torch.stack([cos, sin], 1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results(rotary, operands)
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            for name, one, other in zip(
                NAMES, results(rotary, [by_head, apart, *wide.unbind(1)]), expected, strict=True
            ):
                assert torch.equal(one, other), f"{name} differs with {n} threads"
    finally:
        torch.set_num_threads(threads)


@needs_kernel
def test_one_kernel_each_way():
    with torch.profiler.profile() as profile:
        results(rotary, made(torch.float32))
    found = [event.name for event in profile.events() if event.name.startswith("cora_kernels::")]
    assert found == ["cora_kernels::cpu_rotary"] * 4


@needs_kernel
def test_opcheck():
    x, cos, sin = torch.randn(2, 5, 3, 8), torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    op = torch.ops.cora_kernels.cpu_rotary.default
    for backward in (False, True):
        torch.library.opcheck(op, (x, cos, sin, backward))
    for wrong in ((x[..., :7], cos, sin), (x, cos[:, :4], sin), (x, cos, sin[..., :4]), (x, cos.bfloat16(), sin)):
        with pytest.raises((RuntimeError, TypeError), match="must be"):
            op(*wrong, False)


def test_what_is_refused():
    q, k, cos, sin = made(torch.float32)
    for arguments, message in (
        ((q[0], k, cos, sin), r"q must be \[B, H, T, D\], D even, got \[9, 7, 64\]"),
        ((q[..., :63], k, cos, sin), r"q must be \[B, H, T, D\], D even, got \[2, 9, 7, 63\]"),
        ((q, k[:, :, :6], cos, sin), r"k must be \[2, G, 7, 64\] to suit q, got \[2, 3, 6, 64\]"),
        ((q, k, cos[..., :32], sin), r"cos must be \[2 or 1, 7, 64\] to suit q, got \[1, 7, 32\]"),
        ((q, k, cos, sin.expand(2, -1, -1)), r"sin must be \[1, 7, 64\], as cos, got \[2, 7, 64\]"),
    ):
        with pytest.raises(ValueError, match=message):
            rotary(*arguments)
