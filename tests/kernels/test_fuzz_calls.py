"""Random calls: results and all gradients by the error rule, or one TypeError or ValueError that names an argument.

Values are small whole numbers, so that most sums are exact in every dtype: an error is a fault, not a rounding.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cora_kernels import backends, packed_attention, use_backend
from cora_kernels.backends import cpu, extension
from cora_kernels.dispatch import select
from cora_kernels.testing import FLOORS, Case, Hidden, Inputs, assert_by_rule, call, definition, eager, make_inputs

HALVES = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *HALVES)
ISAS = () if cpu.availability() else tuple(extension._C.cpu_isas())


def _serves_here(name: str) -> bool:
    """Whether a backend takes tensors on the CPU: "triton" where its kernels are interpreted."""
    inputs = make_inputs(Case())
    try:
        return bool(select(name, inputs.x, inputs.operands()))
    except ValueError:
        return False


# How a call is served: a backend and, of "cpu", an instruction set.
SERVERS = [(name, None) for name in backends() if name != "cpu" and _serves_here(name)]
SERVERS += [("cpu", isa) for isa in ISAS] + ([(None, None)] if ISAS else [])
ARGUMENTS = ("x", "weight", "lora_a", "lora_b", "bias", "scaling", "cu_seqlens")

SIZES = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 32, 33, 48, 70]))
SCALINGS = st.sampled_from(
    [1.0, 0.5, -2.0, 0.0, 2, np.float32(0.5), np.float64(2), np.int64(-1), np.float16(0.5), Fraction(1, 2)]
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The products are small, and threads that wait for each other slow down a machine that runs other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def served_by(server: tuple[str | None, str | None]):
    name, isa = server
    if isa is not None:
        extension._C.set_cpu_isa(isa)
    try:
        with use_backend(name):
            yield
    finally:
        if isa is not None:
            extension._C.set_cpu_isa(None)


class Plain(Tensor):
    """A subclass that changes nothing."""


def _steps(t: Tensor) -> Tensor:
    """Every other number of a wider buffer."""
    wide = t.new_zeros(*t.shape[:-1], 2 * t.shape[-1] + 1)
    wide[..., 1::2] = t
    return wide[..., 1::2]


def _turned(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def _offset(t: Tensor) -> Tensor:
    """Inside a larger buffer, off every alignment."""
    buffer = t.new_full((t.numel() + 3,), 7.0 if t.is_floating_point() else 7)
    buffer[3:] = t.reshape(-1)
    return buffer[3:].view(t.shape)


def _repeated(t: Tensor) -> Tensor:
    """The first along the first dimension for all, of stride 0."""
    return t[:1].expand(t.shape) if len(t) else t


def _overlapping(t: Tensor) -> Tensor:
    """Windows that share their numbers, one further on for each step in every dimension."""
    buffer = t.reshape(-1).repeat(2)[: sum(t.shape) + 1] if t.numel() else t.new_zeros(sum(t.shape) + 1)
    return buffer.as_strided(t.shape, (1,) * t.dim()) if len(buffer) >= sum(t.shape) else t


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "steps": _steps,
    "turned": _turned,
    "offset": _offset,
    "repeated": _repeated,
    "overlapping": _overlapping,
    "negative": lambda t: torch._neg_view(-t),
    "zeros": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "parameter": lambda t: nn.Parameter(t, requires_grad=False),
    "subclass": lambda t: t.as_subclass(Plain),
}


@dataclass(frozen=True)
class Call:
    """One drawn call: its inputs, who serves it, and in which layout the gradient of each y comes."""

    inputs: Inputs
    server: tuple[str | None, str | None]
    gradients: str

    def __repr__(self) -> str:
        i = self.inputs
        named = {"x": i.x, "scaling": i.scaling, "cu_seqlens": i.cu_seqlens}
        for name, tensors in (("w", i.weights), ("a", i.lora_as), ("b", i.lora_bs), ("bias", i.biases)):
            named |= {f"{name}{j}": t for j, t in enumerate(tensors)}
        told = [f"{name}={_told(value)}" for name, value in named.items() if value is not None]
        return f"Call({self.server}, gradients {self.gradients}, {', '.join(told)})"


def _told(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    if value.dtype == torch.int32:
        return f"{value.tolist()} by {value.stride()}"
    marks = "".join(mark for mark, on in (("-", value.is_neg()), ("0", value._is_zerotensor())) if on)
    grad = " grad" if value.requires_grad else ""
    return f"{marks}{str(value.dtype)[6:]}{list(value.shape)} by {value.stride()}{grad}"


@st.composite
def calls(draw: st.DrawFn) -> Call:
    server = draw(st.sampled_from(SERVERS))
    # Triton's interpreter has no right bfloat16.
    floats = {"triton": (torch.float32, torch.float16)}.get(str(server[0]), FLOATS)
    dtype = draw(st.sampled_from((*floats, torch.float64) if server[0] in ("chain", "reference") else floats))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    packed = draw(st.booleans())
    lengths = draw(st.lists(st.integers(0, 6), max_size=4))
    batch = len(lengths)
    length = draw(st.sampled_from([0, 1, 1, 2, 5, 33]))
    n = draw(st.lists(SIZES, min_size=1, max_size=3))
    k, one_a = draw(SIZES), draw(st.booleans())
    ranks = draw(st.lists(st.integers(1, 9), min_size=1 if one_a else len(n), max_size=1 if one_a else len(n)))
    layouts, grads = st.sampled_from(tuple(LAYOUTS)), st.booleans()

    def tensor(*shape: int, dtype: torch.dtype = dtype, grad: bool = True) -> Tensor:
        largest = 1 if dtype in HALVES else 2
        values = torch.randint(-largest, largest + 1, shape, generator=generator).to(dtype)
        t = LAYOUTS[draw(layouts)](values).detach()
        return t.requires_grad_() if grad and draw(grads) else t

    def factor(rows: int, cols: int, shared: bool = False) -> Tensor:
        kinds = (torch.float64,) if dtype == torch.float64 else floats
        lead = (batch,) if draw(st.booleans()) and not shared else ()
        return tensor(*lead, rows, cols, dtype=draw(st.sampled_from(kinds)))

    weights = tuple(tensor(width, k, grad=False) for width in n)
    lora_as = tuple(factor(k, rank) for rank in ranks)
    # "concat" is for a B that the batch shares.
    lora_bs = tuple(factor(ranks[j % len(ranks)], width, server[0] == "concat") for j, width in enumerate(n))
    if len(set(ranks)) == 1 and draw(st.booleans()):
        lora_as = lora_as[:1] * len(lora_as)
    if len(set(n)) == len(set(ranks)) == 1 and draw(st.booleans()):
        lora_bs = lora_bs[:1] * len(lora_bs)
    scaling: Any = draw(SCALINGS)
    if draw(st.booleans()):
        scaling = tensor(batch, dtype=draw(st.sampled_from((*FLOATS, torch.float64))))
    boundaries = torch.tensor([0, *lengths]).cumsum(0).int()
    if draw(st.booleans()):
        boundaries = LAYOUTS[draw(st.sampled_from(("steps", "offset", "negative")))](boundaries)
    inputs = Inputs(
        x=tensor(sum(lengths), k) if packed else tensor(batch, length, k),
        weights=weights,
        lora_as=lora_as,
        lora_bs=lora_bs,
        biases=tuple(tensor(width) if draw(st.booleans()) else None for width in n),
        scaling=scaling,
        cu_seqlens=boundaries if packed else None,
    )
    return Call(inputs, server, draw(layouts))


def _copied(inputs: Inputs, dtype: torch.dtype | None) -> Inputs:
    """Contiguous leaves of their own, of one dtype if it is given; what was one tensor stays one."""
    made: dict[int, Tensor] = {}

    def one(t: Tensor) -> Tensor:
        if id(t) not in made:
            copy = t.detach().clone().as_subclass(Tensor).contiguous().to(dtype or t.dtype)
            made[id(t)] = copy.requires_grad_(t.requires_grad)
        return made[id(t)]

    return replace(
        inputs,
        x=one(inputs.x),
        weights=tuple(map(one, inputs.weights)),
        lora_as=tuple(map(one, inputs.lora_as)),
        lora_bs=tuple(map(one, inputs.lora_bs)),
        biases=tuple(bias if bias is None else one(bias) for bias in inputs.biases),
        scaling=one(inputs.scaling) if isinstance(inputs.scaling, Tensor) else float(inputs.scaling),
        cu_seqlens=None if inputs.cu_seqlens is None else inputs.cu_seqlens.clone().contiguous(),
    )


def _gradients(ys: Sequence[Tensor], leaves: list[Tensor], layout: str) -> list[Tensor]:
    """Of the leaves, for one gradient of each y in a layout. Zeros where no y depends on any, as the formula without a
    sample on the factors."""
    generator = torch.Generator().manual_seed(1)
    gs = [torch.randint(-1, 2, y.shape, generator=generator).to(y.dtype) for y in ys]
    of_each = [(y, LAYOUTS[layout](g).detach()) for y, g in zip(ys, gs, strict=True) if y.requires_grad]
    if not of_each or not leaves:
        return [torch.zeros_like(leaf) for leaf in leaves]
    outputs, gs = zip(*of_each, strict=True)
    return list(torch.autograd.grad(outputs, leaves, gs, materialize_grads=True))


def _results(op: Callable[[Inputs], Sequence[Tensor]], inputs: Inputs, layout: str) -> dict[str, Tensor]:
    ys, leaves = op(inputs), inputs.leaves()
    found = _gradients(ys, list(leaves.values()), layout)
    named = {f"y[{j}]": y.detach() for j, y in enumerate(ys)}
    return named | {f"d {name}": gradient for name, gradient in zip(leaves, found, strict=True)}


def _check(drawn: Call) -> None:
    leaves = drawn.inputs.leaves()
    with served_by(drawn.server):
        assert all(y.requires_grad == bool(leaves) for y in call(drawn.inputs))
        got = _results(call, drawn.inputs, drawn.gradients)
    exact = _results(definition, _copied(drawn.inputs, torch.float64), drawn.gradients)
    usual = _results(eager, _copied(drawn.inputs, None), drawn.gradients)
    for name, value in got.items():
        assert value.dtype == (leaves[name[2:]].dtype if name.startswith("d ") else drawn.inputs.x.dtype), name
        assert_by_rule(name, value, exact[name], usual[name], drawn.inputs.x.dtype)


@given(calls())
def test_lora_linear(drawn: Call) -> None:
    _check(drawn)


def _inference(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


ODD: dict[str, Callable[[Tensor], Any]] = {
    "sparse": Tensor.to_sparse,
    "mkldnn": lambda t: t.float().to_mkldnn(),
    "nested": lambda t: torch.nested.nested_tensor(list(t.flatten(1)) if t.dim() > 1 else [t, t]),
    "jagged": lambda t: torch.nested.nested_tensor([t.flatten(), t.flatten()], layout=torch.jagged),
    "hidden": Hidden,
    "uninitialised": lambda t: nn.UninitializedParameter(requires_grad=False),
    "inference": _inference,
    "meta": lambda t: t.to("meta"),
    "float64": Tensor.double,
    "float16": Tensor.half,
    "int64": Tensor.long,
    "bool": Tensor.bool,
    "complex": lambda t: t.to(torch.cfloat).conj(),
    "float8": lambda t: t.float().to(torch.float8_e4m3fn),
    "quantised": lambda t: torch.quantize_per_tensor(t.float(), 0.5, 0, torch.qint8),
    "one more": lambda t: torch.cat([t, t[-1:]]),
    "one less": lambda t: t[1:],
    "a dimension": lambda t: t[None],
    "flat": lambda t: t.flatten(),
    "number": lambda t: t.flatten()[0] if t.numel() else t.new_zeros(()),
    "array": lambda t: t.detach().float().numpy(),
    "list": lambda t: t.detach().float().tolist(),
    "None": lambda t: None,
    "text": lambda t: "1.0",
    "a bool": lambda t: True,
    "a NumPy bool": lambda t: np.True_,
    "a complex number": lambda t: 1j,
    "decimal": lambda t: Decimal("0.5"),
    "huge": lambda t: 10**400,
    "class": lambda t: Tensor,
}


@pytest.mark.filterwarnings("ignore:.*(prototype|deprecated)")
@given(calls(), st.sampled_from(ARGUMENTS), st.sampled_from(tuple(ODD)), st.integers(0, 2))
def test_something_odd(drawn: Call, argument: str, odd: str, j: int) -> None:
    """One argument is replaced: the call is right all the same, or refused with the argument's name."""
    fields = {"weight": "weights", "lora_a": "lora_as", "lora_b": "lora_bs", "bias": "biases"}
    field = fields.get(argument, argument)
    before = getattr(drawn.inputs, field)
    value = before[j % len(before)] if argument in fields else before
    value = value if isinstance(value, Tensor) else torch.ones(len(drawn.inputs.lora_as[0]))
    changed = ODD[odd](value.detach().clone().as_subclass(Tensor))
    if argument in fields:
        changed = tuple(changed if i == j % len(before) else t for i, t in enumerate(before))
    drawn = replace(drawn, inputs=replace(drawn.inputs, **{field: changed}))
    try:
        with served_by(drawn.server):
            _results(call, drawn.inputs, drawn.gradients)
    except (TypeError, ValueError) as error:
        assert any(name in str(error) for name in ARGUMENTS), error
    else:
        if not any(t.is_meta for t in drawn.inputs.weights):
            _check(drawn)


@st.composite
def attentions(
    draw: st.DrawFn,
) -> tuple[list[Tensor], Tensor, Tensor | None, Any, tuple[str | None, str | None], str]:
    server = draw(st.sampled_from(SERVERS))
    dtype = draw(st.sampled_from((*FLOATS, torch.float64)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    lengths = draw(st.lists(st.integers(0, 17), max_size=5))
    kv_heads, per_head, dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(SIZES)
    layouts = st.sampled_from(tuple(LAYOUTS))

    def tensor(heads: int) -> Tensor:
        values = torch.randint(-2, 3, (sum(lengths), heads, dim), generator=generator).to(dtype) / 2
        return LAYOUTS[draw(layouts)](values).detach().requires_grad_(draw(st.booleans()))

    def integers(values: Tensor) -> Tensor:
        return LAYOUTS[draw(st.sampled_from(("contiguous", "steps", "offset", "negative")))](values.int())

    boundaries, parents = integers(torch.tensor([0, *lengths]).cumsum(0)), None
    if draw(st.booleans()):
        alone = [i for i in range(len(lengths)) if draw(st.booleans())]
        parents = [-1 if i in alone else draw(st.sampled_from([-1, *alone])) for i in range(len(lengths))]
        parents = integers(torch.tensor(parents))
    scale = draw(st.sampled_from([None, 0.5, 1, np.float32(0.25), Fraction(1, 4)]))
    qkv = [tensor(kv_heads * per_head), tensor(kv_heads), tensor(kv_heads)]
    return qkv, boundaries, parents, scale, server, draw(layouts)


def _attended(q: Tensor, k: Tensor, v: Tensor, boundaries: list[int], parents: list[int], scale: float) -> Tensor:
    """The formula, a sample after the other."""
    outs, per_head = [q[:0]], q.shape[1] // k.shape[1]
    samples = [list(range(*one)) for one in pairwise(boundaries)]
    for own, parent in zip(samples, parents, strict=True):
        before = samples[parent] if parent >= 0 else []
        keys, values = (t[before + own].transpose(0, 1).repeat_interleave(per_head, 0) for t in (k, v))
        future = torch.ones(len(own), len(before) + len(own), dtype=torch.bool).triu(1 + len(before))
        scores = (q[own].transpose(0, 1) @ keys.transpose(1, 2) * scale).masked_fill(future, -math.inf)
        outs.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(outs)


@given(attentions())
def test_packed_attention(drawn: tuple) -> None:
    leaves, boundaries, parents, scale, server, layout = drawn
    of_samples = [-1] * (len(boundaries) - 1) if parents is None else parents.tolist()

    def results(op: Callable[..., Tensor], qkv: list[Tensor]) -> dict[str, Tensor]:
        out, wanted = op(*qkv), [t for t in qkv if t.requires_grad]
        found = _gradients([out], wanted, layout)
        return {"o": out.detach()} | {f"d{i}": gradient for i, gradient in enumerate(found)}

    def formula(*qkv: Tensor) -> Tensor:
        factor = qkv[0].shape[2] ** -0.5 if scale is None else float(scale)
        return _attended(*qkv, boundaries.tolist(), of_samples, factor)

    def copied(dtype: torch.dtype) -> list[Tensor]:
        return [t.detach().clone().as_subclass(Tensor).to(dtype).requires_grad_(t.requires_grad) for t in leaves]

    with served_by(server):
        got = results(lambda *qkv: packed_attention(*qkv, boundaries, parents=parents, scale=scale), leaves)
    exact, usual = results(formula, copied(torch.float64)), results(formula, copied(leaves[0].dtype))
    dtype = leaves[0].dtype
    for name, value in got.items():
        # Values are of size 1, gradients differences of them: what cancels may be wrong by the floor of its terms.
        if (value - exact[name]).norm() > FLOORS[dtype] * math.sqrt(value.numel()):
            assert_by_rule(name, value, exact[name], usual[name], dtype)
