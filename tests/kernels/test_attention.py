"""packed_attention: values and gradients by the error rule, layouts, instruction sets, threads, errors."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cora_kernels import packed_attention, use_backend
from cora_kernels.backends import cpu, extension
from cora_kernels.testing import SHORT_NAMES, assert_by_rule

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
ISAS = [] if cpu.availability() else extension._C.cpu_isas()
needs_kernel = pytest.mark.skipif(cpu.availability() is not None, reason=f"cpu: {cpu.availability()}")


class Shape(NamedTuple):
    lengths: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 2
    dim: int = 16

    def __str__(self) -> str:
        return f"{'_'.join(map(str, self.lengths)) or 'none'}-H{self.heads}-G{self.kv_heads}-D{self.dim}"


SHAPES = [
    Shape((7, 1, 33, 16, 70), heads=6, kv_heads=2, dim=64),
    Shape((1,), 1, 1, 2),
    Shape((2, 3), 1, 1, 1),
    Shape((50, 0, 3), 3, 1, 5),
    Shape((17, 49), 4, 4, 70),
    Shape((0, 0, 8, 0, 9), 2, 1, 7),
    Shape((130,), 5, 1, 24),
    Shape((0, 0), 2, 2, 8),
    Shape((), 2, 1, 8),
]
Operands = tuple[Tensor, Tensor, Tensor, Tensor]


def operands(shape: Shape, dtype: torch.dtype, scale: float = 1.0) -> Operands:
    """q, k and v as one buffer of projections gives them, views with strides of their own; and cu_seqlens."""
    generator = torch.Generator().manual_seed(0)
    widths = (shape.heads, shape.kv_heads, shape.kv_heads)
    buffer = scale * torch.randn(sum(shape.lengths), sum(widths), shape.dim, generator=generator, dtype=FP64)
    q, k, v = (t.requires_grad_() for t in buffer.to(dtype).split(widths, 1))
    return q, k, v, torch.tensor([0, *shape.lengths]).cumsum(0).int()


def definition(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The formula itself, with a mask, one sample after the other."""
    outs = [q[:0]]
    boundaries = cu_seqlens.tolist()
    for start, stop in zip(boundaries, boundaries[1:], strict=False):
        of_head = [t[start:stop].transpose(0, 1) for t in (q, k, v)]
        keys, values = (t.repeat_interleave(q.shape[1] // k.shape[1], 0) for t in of_head[1:])
        s = of_head[0] @ keys.transpose(1, 2) * q.shape[2] ** -0.5
        future = torch.ones(stop - start, stop - start, dtype=torch.bool).triu(1)
        outs.append((s.masked_fill(future, float("-inf")).softmax(-1) @ values).transpose(0, 1))
    return torch.cat(outs)


def results(op, tensors: Operands) -> dict[str, Tensor]:
    *leaves, cu_seqlens = tensors
    out = op(*leaves, cu_seqlens)
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(out.shape, generator=generator, dtype=FP64).to(BF16).to(out)
    gradients = torch.autograd.grad(out, leaves, g, materialize_grads=True)
    return {"o": out.detach()} | dict(zip(("dq", "dk", "dv"), gradients, strict=True))


def leaves_in(tensors: Operands, dtype: torch.dtype) -> Operands:
    q, k, v, cu_seqlens = tensors
    q, k, v = (t.detach().to(dtype).requires_grad_() for t in (q, k, v))
    return q, k, v, cu_seqlens


def assert_correct(tensors: Operands) -> None:
    got, usual = results(packed_attention, tensors), results(definition, tensors)
    exact = results(definition, leaves_in(tensors, FP64))
    for name, value in got.items():
        assert value.dtype == tensors[0].dtype
        assert_by_rule(name, value, exact[name], usual[name], value.dtype)


@pytest.fixture(params=ISAS)
def isa(request):
    extension._C.set_cpu_isa(request.param)
    yield request.param
    extension._C.set_cpu_isa(None)


@needs_kernel
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=SHORT_NAMES.get)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_instruction_set(shape, dtype, isa, poison):
    assert_correct(operands(shape, dtype))


@pytest.mark.parametrize("backend", ["chain", "reference"])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_without_the_kernel(shape, backend):
    with use_backend(backend):
        assert_correct(operands(shape, FP32))
        assert_correct(operands(shape, FP64))


@pytest.mark.parametrize("scale", [30.0, 1e-3], ids=["sharp", "flat"])
def test_scores_of_any_size(scale):
    assert_correct(operands(SHAPES[0], FP32, scale))


def test_gradcheck():
    q, k, v, cu_seqlens = operands(Shape((3, 0, 2), 2, 1, 3), FP64)
    assert torch.autograd.gradcheck(lambda *leaves: packed_attention(*leaves, cu_seqlens, scale=0.7), (q, k, v))


@needs_kernel
def test_the_same_bits_for_any_number_of_threads():
    tensors = operands(Shape((9, 40, 3, 70, 21), 6, 3, 16), BF16)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            runs += [results(packed_attention, tensors) for _ in range(5)]
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(run[name], value) for name, value in runs[0].items())


@needs_kernel
def test_a_sample_does_not_see_its_neighbours():
    tensors = operands(Shape((9, 8, 20)), FP32)
    clean = results(packed_attention, tensors)
    with torch.no_grad():
        for t in tensors[:3]:
            t[:9], t[17:] = float("nan"), float("inf")
    dirty = results(packed_attention, tensors)
    for name, value in clean.items():
        assert torch.equal(value[9:17], dirty[name][9:17]), name
        assert dirty[name][:9].isnan().all()


@needs_kernel
def test_a_position_does_not_see_later_ones():
    tensors = operands(Shape((30,)), FP32)
    clean = packed_attention(*tensors)
    with torch.no_grad():
        for t in tensors[:3]:
            t[13:] *= -3
    assert torch.equal(packed_attention(*tensors)[:13], clean[:13])


@needs_kernel
def test_compiles_whole_and_once_for_all_lengths():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(packed_attention, backend=counter, fullgraph=True, dynamic=True)
    for lengths in ((5, 9), (8, 3, 11), (30, 2, 7, 4)):
        tensors = operands(Shape(lengths), FP32)
        for name, value in results(compiled, tensors).items():
            assert torch.equal(value, results(packed_attention, tensors)[name]), name
    assert counter.frame_count == 1


def test_autocast_casts_as_torchs_attention_does():
    tensors = operands(SHAPES[3], FP32)
    with torch.autocast("cpu", torch.bfloat16):
        out = packed_attention(*tensors)
        q, k, v = (t[:50].transpose(0, 1)[None] for t in tensors[:3])
        assert out.dtype == F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).dtype == BF16
    assert torch.equal(out, packed_attention(*leaves_in(tensors, BF16)))


@needs_kernel
def test_double_backward_raises():
    q, k, v, cu_seqlens = operands(Shape((4,)), FP32)
    (dq,) = torch.autograd.grad(packed_attention(q, k, v, cu_seqlens).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


Q, K, BOUNDARIES = torch.zeros(5, 4, 8), torch.zeros(5, 2, 8), torch.tensor([0, 2, 5], dtype=torch.int32)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"q": [1.0]}, TypeError, "q must be a Tensor, got a list"),
        ({"q": Q.int()}, TypeError, "q must be float32, bfloat16, float16 or float64"),
        ({"k": K.bfloat16()}, TypeError, "k must be .* as q is, got torch.bfloat16"),
        ({"q": Q[0]}, ValueError, r"q must be \[M, heads, D\]"),
        ({"v": K[:4]}, ValueError, r"v must be .* M and D of q \[5, 4, 8\]"),
        ({"k": K[:, :, :7]}, ValueError, r"k must be .* got \[5, 2, 7\]"),
        ({"q": Q[:, :0]}, ValueError, "no empty dimension but M"),
        ({"q": Q[:, :3]}, ValueError, r"heads divide those of q \[5, 3, 8\]"),
        ({"k": K[:, :1]}, ValueError, "k and v must be of one shape"),
        ({"cu_seqlens": BOUNDARIES.long()}, TypeError, "cu_seqlens must be int32, got torch.int64"),
        ({"cu_seqlens": BOUNDARIES[None]}, ValueError, r"cu_seqlens must be \[B \+ 1\]"),
        ({"cu_seqlens": BOUNDARIES + 1}, ValueError, "must start at 0"),
        ({"cu_seqlens": BOUNDARIES[:2]}, ValueError, "must end at the number of rows"),
        ({"cu_seqlens": BOUNDARIES[[0, 2, 1, 2]]}, ValueError, "must not decrease"),
        ({"k": K.to("meta")}, ValueError, "k must be on the device of q, cpu, got meta"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernel)])
def test_errors(changed, error, message, backend):
    call = {"q": Q, "k": K, "v": K, "cu_seqlens": BOUNDARIES} | changed
    with pytest.raises(error, match=message), use_backend(backend):
        packed_attention(**call)
