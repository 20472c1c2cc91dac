"""packed_attention: values and gradients by the error rule, parents, layouts, instruction sets, threads, errors."""

from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cora_kernels import backends, packed_attention, use_backend
from cora_kernels.backends import cpu
from cora_kernels.testing import SHORT_NAMES, assert_by_rule

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
needs_kernel = pytest.mark.skipif(cpu.availability() is not None, reason=f"cpu: {cpu.availability()}")


class Shape(NamedTuple):
    lengths: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    parents: tuple[int, ...] | None = None

    def __str__(self) -> str:
        lengths = "_".join(map(str, self.lengths)) or "none"
        parents = "" if self.parents is None else f"-P{'_'.join(map(str, self.parents))}"
        return f"{lengths}-H{self.heads}-G{self.kv_heads}-D{self.dim}{parents}"


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
    Shape((257, 40, 600, 255), 3, 1, 20),  # of more queries than the backward keeps P and dS of at a time
]
FAMILIES = [
    Shape((70, 7, 20, 1, 33), 6, 2, 64, (-1, 0, 0, 0, 0)),
    Shape((5, 9, 5, 6, 4, 40), 4, 2, 16, (3, 3, 5, -1, 3, -1)),  # children before their parent, two families entangled
    Shape((31, 17, 1), 2, 1, 8, (-1, 0, 0)),  # an odd parent: with the odd child it has 48 keys, whole vectors
    Shape((15, 1, 17, 33), 3, 1, 5, (-1, 0, 0, -1)),
    Shape((1, 1, 1), 1, 1, 2, (-1, 0, 0)),
    Shape((0, 6, 9), 2, 1, 7, (-1, 0, 0)),  # an empty parent
    Shape((12, 0, 3, 0), 2, 2, 8, (-1, 0, 0, -1)),  # an empty child
    Shape((4, 8, 0, 5, 7), 2, 1, 8, (-1, 0, -1, 2, 2)),  # an empty parent after one that is not
    Shape((9, 40, 3), 4, 1, 50, (-1, -1, -1)),  # nobody has one
    Shape((24, *[2 + i % 5 for i in range(40)]), 4, 2, 24, (-1, *[0] * 40)),
    Shape((), 2, 1, 8, ()),
    Shape((261, 300, 7), 2, 1, 16, (-1, 0, 0)),  # more queries than a block in an odd parent and in a child of it
]
Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]


def operands(shape: Shape, dtype: torch.dtype, scale: float = 1.0) -> Operands:
    """q, k and v as one buffer of projections gives them, views with strides of their own; cu_seqlens and parents."""
    generator = torch.Generator().manual_seed(0)
    widths = (shape.heads, shape.kv_heads, shape.kv_heads)
    buffer = scale * torch.randn(sum(shape.lengths), sum(widths), shape.dim, generator=generator, dtype=FP64)
    q, k, v = (t.requires_grad_() for t in buffer.to(dtype).split(widths, 1))
    parents = None if shape.parents is None else torch.tensor(shape.parents, dtype=torch.int32)
    return q, k, v, torch.tensor([0, *shape.lengths]).cumsum(0).int(), parents


def definition(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *, parents: Tensor | None = None) -> Tensor:
    """The formula itself, with a mask, one sample after the other."""
    outs = [q[:0]]
    rows = [torch.arange(start, stop) for start, stop in pairwise(cu_seqlens.tolist())]
    for own, parent in zip(rows, [-1] * len(rows) if parents is None else parents.tolist(), strict=True):
        before = rows[parent] if parent >= 0 else own[:0]
        of_head = q[own].transpose(0, 1)
        keys, values = (
            t[torch.cat([before, own])].transpose(0, 1).repeat_interleave(q.shape[1] // k.shape[1], 0) for t in (k, v)
        )
        s = of_head @ keys.transpose(1, 2) * q.shape[2] ** -0.5
        future = torch.ones(s.shape[1:], dtype=torch.bool).triu(1 + len(before))
        outs.append((s.masked_fill(future, float("-inf")).softmax(-1) @ values).transpose(0, 1))
    return torch.cat(outs)


def results(op, tensors: Operands) -> dict[str, Tensor]:
    *leaves, cu_seqlens, parents = tensors
    out = op(*leaves, cu_seqlens, parents=parents)
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(out.shape, generator=generator, dtype=FP64).to(BF16).to(out)
    gradients = torch.autograd.grad(out, leaves, g, materialize_grads=True)
    return {"o": out.detach()} | dict(zip(("dq", "dk", "dv"), gradients, strict=True))


def leaves_in(tensors: Operands, dtype: torch.dtype) -> Operands:
    q, k, v, cu_seqlens, parents = tensors
    q, k, v = (t.detach().to(dtype).requires_grad_() for t in (q, k, v))
    return q, k, v, cu_seqlens, parents


def assert_correct(tensors: Operands) -> None:
    got, usual = results(packed_attention, tensors), results(definition, tensors)
    exact = results(definition, leaves_in(tensors, FP64))
    for name, value in got.items():
        assert value.dtype == tensors[0].dtype
        assert_by_rule(name, value, exact[name], usual[name], value.dtype)


@needs_kernel
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=SHORT_NAMES.get)
@pytest.mark.parametrize("shape", SHAPES + FAMILIES, ids=str)
def test_every_instruction_set(shape, dtype, isa, poison):
    assert_correct(operands(shape, dtype))


@pytest.mark.parametrize("backend", ["chain", "reference"])
@pytest.mark.parametrize("shape", SHAPES[:4] + FAMILIES, ids=str)
def test_without_the_kernel(shape, backend):
    with use_backend(backend):
        assert_correct(operands(shape, FP32))
        assert_correct(operands(shape, FP64))


@pytest.mark.parametrize("shape", [SHAPES[0], FAMILIES[0]], ids=str)
@pytest.mark.parametrize("scale", [30.0, 1e-3], ids=["sharp", "flat"])
def test_scores_of_any_size(scale, shape):
    assert_correct(operands(shape, FP32, scale))


@pytest.mark.parametrize("parents", [None, (-1, 0, 0, -1)])
def test_gradcheck(parents):
    q, k, v, cu_seqlens, parents = operands(Shape((3, 0, 2, 1), 2, 1, 3, parents), FP64)

    def op(*leaves: Tensor) -> Tensor:
        return packed_attention(*leaves, cu_seqlens, parents=parents, scale=0.7)

    assert torch.autograd.gradcheck(op, (q, k, v))


@needs_kernel
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=SHORT_NAMES.get)
@pytest.mark.parametrize("shape", FAMILIES[:4], ids=str)
def test_children_are_their_samples_with_the_parent_copied_in(shape, dtype):
    """Each child as a sample that holds its parent's rows: the same output and gradients, summed over the copies."""
    *leaves, cu_seqlens, parents = operands(shape, dtype)
    spans = [torch.arange(start, stop) for start, stop in pairwise(cu_seqlens.tolist())]
    before = [spans[parent] if parent >= 0 else spans[0][:0] for parent in shape.parents]
    pairs = list(zip(before, spans, strict=True))
    own = torch.cat([torch.arange(len(left) + len(right)) >= len(left) for left, right in pairs])
    rows = torch.cat([row for pair in pairs for row in pair])
    lengths = [0, *(len(left) + len(right) for left, right in pairs)]
    q, k, v = leaves
    copied = packed_attention(q[rows], k[rows], v[rows], torch.tensor(lengths).cumsum(0).int())[own]
    shared = packed_attention(q, k, v, cu_seqlens, parents=parents)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == FP32 else {"atol": 0.05, "rtol": 0.05}
    torch.testing.assert_close(shared, copied, **tolerance)
    g = torch.randn_like(shared)
    expected = torch.autograd.grad(copied, leaves, g)
    for name, got, value in zip("qkv", torch.autograd.grad(shared, leaves, g), expected, strict=True):
        torch.testing.assert_close(got, value, **tolerance, msg=lambda text, name=name: f"d{name}: {text}")


@needs_kernel
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=SHORT_NAMES.get)
def test_parents_that_nobody_has_change_no_bit(dtype):
    shape = Shape((9, 40, 0, 70, 21), 6, 3, 16)
    without = results(packed_attention, operands(shape, dtype))
    with_none = results(packed_attention, operands(shape._replace(parents=(-1,) * 5), dtype))
    assert all(torch.equal(value, with_none[name]) for name, value in without.items())


@needs_kernel
@pytest.mark.parametrize("stride", ["steps", "offset"])
def test_parents_of_any_stride(stride):
    q, k, v, cu_seqlens, parents = operands(FAMILIES[1], FP32)
    wide = torch.full((2 * len(parents) + 1,), 99, dtype=torch.int32)
    view = wide[1::2] if stride == "steps" else wide[3 : 3 + len(parents)]
    view.copy_(parents)
    expected = packed_attention(q, k, v, cu_seqlens, parents=parents)
    assert torch.equal(packed_attention(q, k, v, cu_seqlens, parents=view), expected)


@needs_kernel
@pytest.mark.parametrize("shape", [Shape((9, 40, 3, 70, 21), 6, 3, 16), FAMILIES[1], FAMILIES[9]], ids=str)
def test_the_same_bits_for_any_number_of_threads(shape):
    tensors = operands(shape, BF16)
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
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=SHORT_NAMES.get)
def test_a_child_sees_its_parent_and_no_other_child(dtype):
    tensors = operands(Shape((15, 8, 33, 20, 6), parents=(-1, 0, 0, 4, -1)), dtype)
    clean = results(packed_attention, tensors)
    with torch.no_grad():
        for t in tensors[:3]:
            t[23:] = float("nan")
    dirty = results(packed_attention, tensors)
    assert all(dirty["o"][23:].isnan().flatten(1).any(1))
    for name in ("o", "dq"):
        assert torch.equal(dirty[name][:23], clean[name][:23]), name
    for name in ("dk", "dv"):
        assert torch.equal(dirty[name][15:23], clean[name][15:23]), name
        assert dirty[name][:15].isnan().all(), "its gradients are those of all its children"


@needs_kernel
def test_a_position_does_not_see_later_ones():
    *tensors, _ = operands(Shape((30,)), FP32)
    clean = packed_attention(*tensors)
    with torch.no_grad():
        for t in tensors[:3]:
            t[13:] *= -3
    assert torch.equal(packed_attention(*tensors)[:13], clean[:13])


@needs_kernel
@pytest.mark.parametrize("families", [False, True])
def test_compiles_whole_and_once_for_all_lengths(families):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(packed_attention, backend=counter, fullgraph=True, dynamic=True)
    for lengths in ((5, 9), (8, 3, 11), (30, 2, 7, 4)):
        parents = (-1, *[0] * (len(lengths) - 1)) if families else None
        # Sizes that are equal at first are taken for one.
        tensors = operands(Shape(lengths, 10, 5, parents=parents), FP32)
        for name, value in results(compiled, tensors).items():
            assert torch.equal(value, results(packed_attention, tensors)[name]), name
    assert counter.frame_count == 1


def test_autocast_casts_as_torchs_attention_does():
    tensors = operands(SHAPES[3], FP32)
    with torch.autocast("cpu", torch.bfloat16):
        out = packed_attention(*tensors[:4])
        q, k, v = (t[:50].transpose(0, 1)[None] for t in tensors[:3])
        assert out.dtype == F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).dtype == BF16
    assert torch.equal(out, packed_attention(*leaves_in(tensors, BF16)[:4]))


@needs_kernel
@pytest.mark.parametrize("shape", [SHAPES[3], FAMILIES[1]], ids=str)
def test_opcheck(shape):
    q, k, v, cu_seqlens, parents = (None if t is None else t.detach() for t in operands(shape, FP32))
    ops = torch.ops.cora_kernels
    out, sums = ops.cpu_attention(q, k, v, cu_seqlens, parents, 0.5)
    torch.library.opcheck(ops.cpu_attention.default, (q, k, v, cu_seqlens, parents, 0.5))
    torch.library.opcheck(ops.cpu_attention_backward.default, (out, q, k, v, sums, cu_seqlens, parents, 0.5))


@needs_kernel
def test_double_backward_raises():
    q, k, v, cu_seqlens, _ = operands(Shape((4,)), FP32)
    (dq,) = torch.autograd.grad(packed_attention(q, k, v, cu_seqlens).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


Q, K, BOUNDARIES = torch.zeros(5, 4, 8), torch.zeros(5, 2, 8), torch.tensor([0, 2, 5], dtype=torch.int32)
PARENTS = torch.tensor([-1, 0], dtype=torch.int32)


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
        ({"parents": [-1, 0]}, TypeError, "parents must be a Tensor, got a list"),
        ({"parents": PARENTS.long()}, TypeError, "parents must be int32, got torch.int64"),
        ({"parents": PARENTS[:1]}, ValueError, r"parents must be \[2\], one for each sample of cu_seqlens, got \[1\]"),
        ({"parents": PARENTS[None]}, ValueError, r"parents must be \[2\], .* got \[1, 2\]"),
        ({"parents": PARENTS.to("meta")}, ValueError, "parents must be on the device of cu_seqlens, cpu, got meta"),
        ({"parents": torch.tensor([-1, 2]).int()}, ValueError, r"one of the 2 samples, got parents\[1\] = 2"),
        ({"parents": PARENTS - 1}, ValueError, r"-1 or one of the 2 samples, got parents\[0\] = -2"),
        ({"parents": PARENTS + 1}, ValueError, r"other samples, got parents\[0\] = 0"),
        (
            {"parents": torch.tensor([1, 0]).int()},
            ValueError,
            r"have no parents .* parents\[0\] = 1 and parents\[1\] = 0",
        ),
        ({"k": K.to("meta")}, ValueError, "k must be on the device of q, cpu, got meta"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernel)])
def test_errors(changed, error, message, backend):
    call = {"q": Q, "k": K, "v": K, "cu_seqlens": BOUNDARIES} | changed
    with pytest.raises(error, match=message), use_backend(backend):
        packed_attention(**call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("backend", ["cpu", "chain"])
def test_overlapping_views_have_a_backward(backend, dtype):
    """k and v whose rows are windows of one memory, at a width that torch's products take only in plain strides."""
    if (reason := backends()[backend]) is not None:
        pytest.skip(f"{backend}: {reason}")
    memory = torch.randn(200, generator=torch.Generator().manual_seed(0)).to(dtype)
    q = torch.randn(12, 1, 31, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    views = [memory[start:].as_strided((12, 1, 31), (1, 31, 1)).requires_grad_() for start in (0, 7)]
    copies = [view.detach().contiguous().requires_grad_() for view in views]
    cu_seqlens = torch.tensor([0, 12], dtype=torch.int32)
    with use_backend(backend):
        outs = [packed_attention(q, *k_v, cu_seqlens) for k_v in (views, copies)]
    found, expected = (
        torch.autograd.grad(out.float().sum(), (q, *k_v)) for out, k_v in zip(outs, (views, copies), strict=True)
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
