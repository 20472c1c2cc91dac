"""What tests and benchmarks share: random inputs, the definition in float64, eager torch, and the error rule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cora_kernels.functional import lora_linear, lora_linear_group
from cora_kernels.operands import Operands
from cora_kernels.segments import Segments

# The error rule: a relative Frobenius error against float64 may be 1.25 times that of eager torch in the same dtype, or
# anything under the floor of that dtype.
EAGER_FACTOR = 1.25
FLOORS = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 8e-4, torch.bfloat16: 6e-3}
SHORT_NAMES = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Case:
    """The shape of one call. `lengths` packs the batch: one segment each, and then `length` is not used."""

    batch: int = 3
    length: int = 7
    k: int = 24
    n: tuple[int, ...] = (40,)
    r: int = 4
    dtype: torch.dtype = torch.float32
    factor_dtype: torch.dtype | None = None
    lengths: tuple[int, ...] | None = None
    sample_a: bool = True
    sample_b: bool = False
    one_a: bool = True
    bias: bool = False
    tensor_scaling: bool = False

    def __str__(self) -> str:
        shape = f"B{self.batch}-T{self.length}" if self.lengths is None else "packed" + "_".join(map(str, self.lengths))
        parts = [shape, f"K{self.k}", "N" + "_".join(map(str, self.n)), f"R{self.r}", SHORT_NAMES[self.dtype]]
        parts += [] if self.factor_dtype is None else ["AB" + SHORT_NAMES[self.factor_dtype]]
        parts += [] if self.sample_a else ["sharedA"]
        parts += ["sampleB"] if self.sample_b else []
        parts += [] if self.one_a else ["manyA"]
        parts += ["bias"] if self.bias else []
        parts += ["tensorscale"] if self.tensor_scaling else []
        return "-".join(parts)


@dataclass(frozen=True)
class Inputs:
    """The arguments of lora_linear_group, with biases and lora_as always as tuples."""

    x: Tensor
    weights: tuple[Tensor, ...]
    lora_as: tuple[Tensor, ...]
    lora_bs: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    scaling: float | Tensor
    cu_seqlens: Tensor | None

    def operands(self) -> Operands:
        """As the backends take them."""
        segments = Segments.of(self.x, self.cu_seqlens)
        return Operands(self.weights, self.lora_as, self.lora_bs, self.biases, self.scaling, segments)

    def leaves(self) -> dict[str, Tensor]:
        """The tensors that require grad, by name."""
        named: dict[str, object] = {"x": self.x, "scaling": self.scaling}
        for name, tensors in (("lora_a", self.lora_as), ("lora_b", self.lora_bs), ("bias", self.biases)):
            named |= {f"{name}[{j}]": t for j, t in enumerate(tensors)}
        return {name: t for name, t in named.items() if isinstance(t, Tensor) and t.requires_grad}

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """Every floating tensor changed, as new leaves that require grad where the old ones did."""

        def one(t: Tensor) -> Tensor:
            return change(t.detach()).requires_grad_(t.requires_grad)

        return replace(
            self,
            x=one(self.x),
            weights=tuple(one(w) for w in self.weights),
            lora_as=tuple(one(a) for a in self.lora_as),
            lora_bs=tuple(one(b) for b in self.lora_bs),
            biases=tuple(bias if bias is None else one(bias) for bias in self.biases),
            scaling=one(self.scaling) if isinstance(self.scaling, Tensor) else self.scaling,
        )


def make_inputs(case: Case, device: str = "cpu", seed: int = 0, requires_grad: bool = True) -> Inputs:
    """Random inputs scaled so that both terms of y are of about unit size; all but the weights are leaves."""
    generator = torch.Generator().manual_seed(seed)
    factor_dtype = case.factor_dtype or case.dtype
    batch = case.batch if case.lengths is None else len(case.lengths)
    rows = (case.batch, case.length) if case.lengths is None else (sum(case.lengths),)

    def tensor(*shape: int, dtype: torch.dtype, scale: float = 1.0, grad: bool = requires_grad) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
        return values.to(device=device, dtype=dtype).requires_grad_(grad)

    cu_seqlens = None
    if case.lengths is not None:
        cu_seqlens = torch.tensor([0, *case.lengths]).cumsum(0).to(device=device, dtype=torch.int32)
    a_shape = (batch, case.k, case.r) if case.sample_a else (case.k, case.r)
    return Inputs(
        x=tensor(*rows, case.k, dtype=case.dtype),
        weights=tuple(tensor(n, case.k, dtype=case.dtype, scale=case.k**-0.5, grad=False) for n in case.n),
        lora_as=tuple(
            tensor(*a_shape, dtype=factor_dtype, scale=case.k**-0.5) for _ in range(1 if case.one_a else len(case.n))
        ),
        lora_bs=tuple(
            tensor(*((batch,) if case.sample_b else ()), case.r, n, dtype=factor_dtype, scale=case.r**-0.5)
            for n in case.n
        ),
        biases=tuple(tensor(n, dtype=case.dtype) if case.bias else None for n in case.n),
        scaling=tensor(batch, dtype=torch.float64 if case.dtype == torch.float64 else torch.float32)
        if case.tensor_scaling
        else 0.75,
        cu_seqlens=cu_seqlens,
    )


def call(inputs: Inputs, backend: str | None = None) -> tuple[Tensor, ...]:
    """The op: lora_linear for one weight, lora_linear_group for several."""
    options: dict[str, Any] = {"scaling": inputs.scaling, "cu_seqlens": inputs.cu_seqlens, "backend": backend}
    if len(inputs.weights) == 1:
        weight, a, b, bias = inputs.weights[0], inputs.lora_as[0], inputs.lora_bs[0], inputs.biases[0]
        return (lora_linear(inputs.x, weight, a, b, bias, **options),)
    lora_a = inputs.lora_as[0] if len(inputs.lora_as) == 1 else inputs.lora_as
    return lora_linear_group(inputs.x, inputs.weights, lora_a, inputs.lora_bs, inputs.biases, **options)


def definition(inputs: Inputs) -> tuple[Tensor, ...]:
    """The formula itself, one sample after the other."""
    x, scaling = inputs.x, inputs.scaling
    samples = list(x) if inputs.cu_seqlens is None else [x[i:j] for i, j in pairwise(inputs.cu_seqlens.tolist())]

    def factor(t: Tensor, i: int) -> Tensor:
        return t[i] if t.dim() == 3 else t

    ys = []
    for j, (weight, b, bias) in enumerate(zip(inputs.weights, inputs.lora_bs, inputs.biases, strict=True)):
        a = inputs.lora_as[j % len(inputs.lora_as)]
        parts = []
        for i, sample in enumerate(samples):
            s = scaling[i] if isinstance(scaling, Tensor) else scaling
            parts.append(F.linear(sample, weight, bias) + s * ((sample @ factor(a, i)) @ factor(b, i)))
        if not parts:
            ys.append(F.linear(x, weight, bias))
        else:
            ys.append(torch.stack(parts) if inputs.cu_seqlens is None else torch.cat(parts))
    return tuple(ys)


def eager(inputs: Inputs) -> tuple[Tensor, ...]:
    """What one writes without this package: linear, bmm, bmm, mul, add in the dtype of x, packed batches padded."""
    x, scaling = inputs.x, inputs.scaling
    real = None
    if inputs.cu_seqlens is not None:
        lengths = inputs.cu_seqlens.diff()
        real = torch.arange(int(lengths.max()) if len(lengths) else 0, device=x.device) < lengths[:, None]
        x = x.new_zeros(*real.shape, x.shape[1]).masked_scatter(real[:, :, None], x)
    if isinstance(scaling, Tensor):
        scaling = scaling.to(x.dtype)[:, None, None]
    ys = []
    for j, (weight, b, bias) in enumerate(zip(inputs.weights, inputs.lora_bs, inputs.biases, strict=True)):
        a = inputs.lora_as[j % len(inputs.lora_as)]
        y = F.linear(x, weight, bias) + scaling * (x @ a.to(x.dtype) @ b.to(x.dtype))
        ys.append(y if real is None else y[real])
    return tuple(ys)


def results(op: Callable[[Inputs], Sequence[Tensor]], inputs: Inputs, seed: int = 1) -> dict[str, Tensor]:
    """Every output, and the gradient of every leaf for one random gradient of each output, by name."""
    ys = op(inputs)
    generator = torch.Generator().manual_seed(seed)
    named = {f"y[{j}]": y.detach() for j, y in enumerate(ys)}
    leaves = inputs.leaves()
    if leaves:
        gs = [torch.randn(y.shape, generator=generator, dtype=torch.float64).bfloat16().to(y) for y in ys]
        gradients = torch.autograd.grad(ys, list(leaves.values()), gs, materialize_grads=True)
        named |= {f"d {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return named


def relative_error(got: Tensor, exact: Tensor) -> float:
    """‖got − exact‖ / ‖exact‖ (Frobenius) in float64; where exact is all zeros, 0 if got is too and else infinite."""
    exact = exact.double().cpu()
    error, norm = (got.double().cpu() - exact).norm().item(), exact.norm().item()
    if norm == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / norm


def assert_by_rule(name: str, got: Tensor, exact: Tensor, eager: Tensor, dtype: torch.dtype) -> None:
    """The error rule: got may be 1.25 times as wrong as eager in the same dtype, or have any error under its floor."""
    assert got.shape == exact.shape, f"{name}: shape {list(got.shape)}, expected {list(exact.shape)}"
    error, allowed = relative_error(got, exact), max(EAGER_FACTOR * relative_error(eager, exact), FLOORS[dtype])
    assert error <= allowed, f"{name}: relative error {error:.3g}, allowed {allowed:.3g}"


def assert_samples_are_apart(inputs: Inputs, backend: str | None) -> None:
    """NaN and inf in every other sample of x, A and B: outputs and gradients of the second stay what they are."""
    clean = results(lambda i: call(i, backend), inputs)
    with torch.no_grad():
        for t, bad in ((inputs.x, "nan"), (inputs.lora_as[0], "inf"), (inputs.lora_bs[0], "nan")):
            t[::2] = float(bad)
    dirty = results(lambda i: call(i, backend), inputs)
    for name in clean:
        assert torch.equal(clean[name][1], dirty[name][1]), name
        assert not dirty[name][::2].isfinite().any(), name


def assert_correct(inputs: Inputs, backend: str | None) -> None:
    """Outputs and every gradient of a backend by the error rule, each in the dtype of its own."""
    got = results(lambda i: call(i, backend), inputs)
    exact = results(definition, inputs.map(lambda t: t.double()))
    usual = results(eager, inputs)
    leaves = inputs.leaves()
    for name, value in got.items():
        expected = leaves[name[2:]].dtype if name.startswith("d ") else inputs.x.dtype
        assert value.dtype == expected, f"{name}: {value.dtype}, expected {expected}"
        assert_by_rule(name, value, exact[name], usual[name], inputs.x.dtype)


class Hidden(Tensor):
    """A float outside and something else inside, as quantised weights are: no backend can read it."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Hidden":
        made: Hidden = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        raise NotImplementedError(f"{function} of what is hidden")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return "Hidden()"
