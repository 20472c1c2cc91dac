"""Adapters: every way to compute y_i = x_i·Wᵀ + s·(x_i·A_i)·B_i, behind one interface.

A contestant prepares a case and returns the function that is timed, without arguments. What a user pays once per batch
or per model (padding indices, loading adapters, compiling) belongs into the preparation.
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import peers
from bench.cases import BenchCase
from cora_kernels import backends
from cora_kernels.backends.weight_packs import keep_packed
from cora_kernels.backends.wide_weights import make_room
from cora_kernels.testing import Inputs, call

Run = Callable[[], tuple[Tensor, ...]]
Formula = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
# Copies of A, B or W beyond this are not tried.
MOST_COPIES = 4 << 30


class Unsupported(Exception):
    """Why a contestant cannot run a case."""


@dataclass(frozen=True)
class Contestant:
    name: str
    about: str
    prepare: Callable[[BenchCase, Inputs], Run]
    ours: bool = False
    # It computes x·Wᵀ alone. The first one is what the others are measured by.
    floor: bool = False


def _lengths(inputs: Inputs) -> Tensor:
    """Rows of every sample [B]."""
    if inputs.cu_seqlens is not None:
        return inputs.cu_seqlens.diff().long()
    return torch.full((inputs.x.shape[0],), inputs.x.shape[1], device=inputs.x.device)


def _scaling(inputs: Inputs) -> float:
    if isinstance(inputs.scaling, Tensor):
        raise Unsupported("cases have one scaling for all samples")
    return inputs.scaling


def _columns(inputs: Inputs) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(W, A, B) of every projection."""
    lora_as = inputs.lora_as * (len(inputs.weights) // len(inputs.lora_as))
    return list(zip(inputs.weights, lora_as, inputs.lora_bs, strict=True))


def _padded(formula: Formula) -> Callable[[BenchCase, Inputs], Run]:
    """For a formula of x [B, T, K] in x's dtype: packed rows are padded and taken out again, factors are cast."""

    def prepare(case: BenchCase, inputs: Inputs) -> Run:
        scaling, columns, x = _scaling(inputs), _columns(inputs), inputs.x
        if inputs.cu_seqlens is None:
            return lambda: tuple(formula(x, w, a.to(x.dtype), b.to(x.dtype), scaling) for w, a, b in columns)
        lengths = _lengths(inputs)
        batch, longest = len(lengths), int(lengths.max())
        rows = (torch.arange(longest, device=x.device) < lengths[:, None]).flatten().nonzero()[:, 0]

        def run() -> tuple[Tensor, ...]:
            wide = x.new_zeros(batch * longest, x.shape[1]).index_copy(0, rows, x).view(batch, longest, -1)
            ys = (formula(wide, w, a.to(x.dtype), b.to(x.dtype), scaling) for w, a, b in columns)
            return tuple(y.flatten(0, 1)[rows] for y in ys)

        return run

    return prepare


def _frozen(case: BenchCase, inputs: Inputs) -> Run:
    return lambda: tuple(F.linear(inputs.x, w) for w in inputs.weights)


def _library(case: BenchCase, inputs: Inputs) -> None:
    """Raises where another library's x·Wᵀ says nothing that F.linear's does not."""
    if case.backward or inputs.x.is_cuda or inputs.x.dtype != torch.float32:
        raise Unsupported("a floor of the forward in fp32 on a CPU")


def _onednn(case: BenchCase, inputs: Inputs) -> Run:
    _library(case, inputs)
    if not torch.backends.mkldnn.is_available():
        raise Unsupported("this torch was built without oneDNN")
    linear, rows = torch.ops.mkldnn._linear_pointwise, inputs.x.flatten(0, -2)
    packed = [torch.ops.mkldnn._reorder_linear_weight(w, len(rows)) for w in inputs.weights]
    return lambda: tuple(linear(rows, w, None, "none", [], "").view(*inputs.x.shape[:-1], -1) for w in packed)


def _numpy(case: BenchCase, inputs: Inputs) -> Run:
    _library(case, inputs)
    # By default its threads spin for milliseconds after a product, beside the next contestant.
    if "OPENBLAS_THREAD_TIMEOUT" not in os.environ:
        raise Unsupported("needs OPENBLAS_THREAD_TIMEOUT=4 in the environment, as make bench sets it")
    x, weights = inputs.x.detach().numpy(), [w.numpy().T for w in inputs.weights]
    return lambda: tuple(torch.from_numpy(np.matmul(x, w)) for w in weights)


def _eager(x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    return F.linear(x, w) + scaling * (x @ a @ b)


def _einsum(x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    s = torch.einsum("btk,bkr->btr", x, a)
    delta = torch.einsum("btr,brn->btn", s, b) if b.dim() == 3 else torch.einsum("btr,rn->btn", s, b)
    return F.linear(x, w) + scaling * delta


def _baddbmm(x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    return F.linear(x, w).baddbmm_(torch.bmm(x, a), b.expand(x.shape[0], *b.shape[-2:]), alpha=scaling)


def _beta_chain(x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    y = (torch.bmm(x, a) * scaling) @ b
    return y.flatten(0, 1).addmm_(x.flatten(0, 1), w.t()).view_as(y)


def _merged(x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    return torch.bmm(x, w.t() + scaling * (a @ b))


def _vmap(x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    one = torch.func.vmap(lambda x, a, b: F.linear(x, w) + scaling * (x @ a @ b), (0, 0, 0 if b.dim() == 3 else None))
    return one(x, a, b)


def _limited(copies: Callable[[BenchCase], int], prepare: Callable[[BenchCase, Inputs], Run]) -> Callable[..., Run]:
    """Refuses a case in which the contestant's copies, `copies` elements, would not fit."""

    def limited(case: BenchCase, inputs: Inputs) -> Run:
        size = copies(case) * case.shape.dtype.itemsize
        if size > MOST_COPIES:
            raise Unsupported(f"its copies take {size / 2**30:.0f} GiB")
        return prepare(case, inputs)

    return limited


def _compiled(mode: str | None) -> Callable[[BenchCase, Inputs], Run]:
    def prepare(case: BenchCase, inputs: Inputs) -> Run:
        if mode is not None and not case.autotune:
            raise Unsupported("tunes for minutes: in a few cases of the quick set, and in --full")
        return torch.compile(_padded(_eager)(case, inputs), mode=mode)  # type: ignore[no-any-return]

    return prepare


def _per_token(case: BenchCase, inputs: Inputs) -> Run:
    scaling, columns, lengths = _scaling(inputs), _columns(inputs), _lengths(inputs)
    x = inputs.x

    def run() -> tuple[Tensor, ...]:
        rows, ys = x.reshape(-1, 1, x.shape[-1]), []
        for w, a, b in columns:
            each_a = a.to(x.dtype).repeat_interleave(lengths, 0)
            each_b = b.to(x.dtype).expand(len(lengths), *b.shape[-2:]).repeat_interleave(lengths, 0)
            delta = torch.bmm(torch.bmm(rows, each_a), each_b)
            ys.append(F.linear(x, w) + scaling * delta.reshape(*x.shape[:-1], -1))
        return tuple(ys)

    return run


def _sample_loop(case: BenchCase, inputs: Inputs) -> Run:
    scaling, columns, x = _scaling(inputs), _columns(inputs), inputs.x
    lengths = _lengths(inputs).tolist()

    def run() -> tuple[Tensor, ...]:
        samples, ys = x.reshape(-1, x.shape[-1]).split(lengths), []
        for w, a, b in columns:
            a, b = a.to(x.dtype), b.to(x.dtype)
            deltas = [sample @ a[i] @ (b[i] if b.dim() == 3 else b) for i, sample in enumerate(samples)]
            ys.append(F.linear(x, w) + scaling * torch.cat(deltas).view(*x.shape[:-1], -1))
        return tuple(ys)

    return run


def _peft(case: BenchCase, inputs: Inputs) -> Run:
    if case.backward:
        raise Unsupported("a model of PEFT raises for adapter_names in training")
    if inputs.cu_seqlens is not None:
        raise Unsupported("adapter_names takes one name per row of a padded batch")
    try:
        from peft import LoraConfig
        from peft.tuners.lora.layer import Linear
    except ImportError as error:
        raise Unsupported(str(error)) from None
    x, names, layers = inputs.x, [f"sample{i}" for i in range(inputs.x.shape[0])], []
    config = LoraConfig(r=case.shape.r, lora_alpha=1, init_lora_weights=False)
    for w, a, b in _columns(inputs):
        base = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, device="meta")
        base.weight = torch.nn.Parameter(w, requires_grad=False)
        layer = Linear(base, names[0], config, r=case.shape.r, lora_alpha=1)
        for i, name in enumerate(names):
            if i:
                layer.update_layer(name, case.shape.r, 1, config)
            layer.scaling[name] = _scaling(inputs)
            layer.lora_A[name].weight.data = a[i].t().to(x.dtype).contiguous()
            layer.lora_B[name].weight.data = (b[i] if b.dim() == 3 else b).t().to(x.dtype).contiguous()
        layers.append(layer.eval())
    return lambda: tuple(layer(x, adapter_names=names) for layer in layers)


def _grouped_mm(case: BenchCase, inputs: Inputs) -> Run:
    if not hasattr(F, "grouped_mm"):
        raise Unsupported("needs a torch with torch.nn.functional.grouped_mm")
    scaling, columns, x = _scaling(inputs), _columns(inputs), inputs.x
    ends = _lengths(inputs).cumsum(0).int()

    def run() -> tuple[Tensor, ...]:
        rows, ys = x.reshape(-1, x.shape[-1]), []
        for w, a, b in columns:
            a, b = a.to(x.dtype), b.to(x.dtype)
            s = F.grouped_mm(rows, a, offs=ends)
            delta = F.grouped_mm(s, b, offs=ends) if b.dim() == 3 else s @ b
            ys.append(F.linear(x, w) + scaling * delta.view(*x.shape[:-1], -1))
        return tuple(ys)

    return run


def _sorted_grouped_mm(case: BenchCase, inputs: Inputs) -> Run:
    """As SkyRL's trainer lays it out: tokens of any adapter in any order, sorted by adapter in every call."""
    if not hasattr(F, "grouped_mm"):
        raise Unsupported("needs a torch with torch.nn.functional.grouped_mm")
    scaling, columns, x = _scaling(inputs), _columns(inputs), inputs.x
    lengths = _lengths(inputs)
    adapters = torch.arange(len(lengths), device=x.device).repeat_interleave(lengths)

    def run() -> tuple[Tensor, ...]:
        order = adapters.argsort(stable=True)
        back, ends = order.argsort(), adapters.bincount(minlength=len(lengths)).cumsum(0).int()
        rows, ys = x.reshape(-1, x.shape[-1])[order], []
        for w, a, b in columns:
            each_b = b.to(x.dtype).expand(len(lengths), *b.shape[-2:]).contiguous()
            delta = F.grouped_mm(F.grouped_mm(rows, a.to(x.dtype), offs=ends), each_b, offs=ends)[back]
            ys.append(F.linear(x, w) + scaling * delta.view(*x.shape[:-1], -1))
        return tuple(ys)

    return run


def _ours(backend: str, keep: bool = True) -> Callable[[BenchCase, Inputs], Run]:
    """keep: packed copies of W are kept, as in a patched model; of own tensors, so that other calls keep nothing."""

    def prepare(case: BenchCase, inputs: Inputs) -> Run:
        reason = backends()[backend]
        if reason is not None:
            raise Unsupported(reason)
        if not keep:
            return lambda: call(inputs, backend)
        kept = replace(inputs, weights=tuple(weight.detach() for weight in inputs.weights))
        for weight in kept.weights:
            keep_packed(weight)
        return lambda: call(kept, backend)

    return prepare


def _concat(case: BenchCase, inputs: Inputs) -> Run:
    """With room behind each W, as `cora.patch(concat=True)` lays it out."""
    rank = max(a.shape[-1] for a in inputs.lora_as)
    if any(b.dim() == 3 for b in inputs.lora_bs):
        raise Unsupported("needs a B that the batch shares")
    weights = tuple(torch.nn.Parameter(weight.detach().clone(), requires_grad=False) for weight in inputs.weights)
    for weight in weights:
        make_room(weight, rank)
        keep_packed(weight)
    return lambda: call(replace(inputs, weights=weights), "concat")


def _gpu_peer(package: str, lacks: str) -> Callable[[BenchCase, Inputs], Run]:
    """A peer whose kernels cannot compute a case: the reason is in the table instead of a time."""

    def prepare(case: BenchCase, inputs: Inputs) -> Run:
        there = "" if importlib.util.find_spec(package) else "not installed; "
        raise Unsupported(there + lacks)

    return prepare


def _token_copies(case: BenchCase) -> int:
    return case.rows * case.shape.r * (case.shape.k + max(case.shape.n))


def _merged_copies(case: BenchCase) -> int:
    return 2 * len(case.samples) * case.shape.k * max(case.shape.n)


CONTESTANTS: tuple[Contestant, ...] = (
    Contestant("frozen linear", "F.linear alone, the floor: no delta at all", _frozen, floor=True),
    Contestant("oneDNN", "x·Wᵀ alone by oneDNN's fp32 product, W packed once", _onednn, floor=True),
    Contestant("NumPy", "x·Wᵀ alone by NumPy's library, OpenBLAS in its wheels", _numpy, floor=True),
    Contestant("eager bmm", "F.linear, bmm, bmm, mul, add", _padded(_eager)),
    Contestant("einsum", "F.linear and two einsums, as in VLoRA", _padded(_einsum)),
    Contestant("baddbmm_", "the second bmm accumulates in place", _padded(_baddbmm)),
    Contestant("beta=1 chain", "S·B first, x·W added by addmm_", _padded(_beta_chain)),
    Contestant("torch.compile", "eager bmm compiled", _compiled(None)),
    Contestant("compile max-autotune", "the same, tuned", _compiled("max-autotune-no-cudagraphs")),
    Contestant("per-token copies", "A and B repeated for every token", _limited(_token_copies, _per_token)),
    Contestant("merged W_i", "W + s·A_i·B_i for every sample", _limited(_merged_copies, _padded(_merged))),
    Contestant("per-sample loop", "a Python loop over samples", _sample_loop),
    Contestant("PEFT", "adapter_names, one loaded adapter per sample", _peft),
    Contestant("grouped_mm", "torch.nn.functional.grouped_mm over samples", _grouped_mm),
    Contestant("grouped_mm, sorted", "the same of tokens sorted by adapter, as SkyRL trains", _sorted_grouped_mm),
    Contestant("vmap", "torch.func.vmap of one sample", _padded(_vmap)),
    Contestant("PEFT's mixed batch", "its layer's formula, which trains", _padded(peers.peft_mixed_batch)),
    Contestant("LoRAFusion's formula", "S·B added to x·W, in torch", _padded(peers.lorafusion)),
    Contestant("unsloth's formula", "addmm_ of each sample, in torch", _padded(peers.unsloth)),
    Contestant("unsloth", "fast_lora", _gpu_peer("unsloth", "fast_lora has one adapter for the whole batch")),
    Contestant("LoRAFusion", "fused", _gpu_peer("lorafusion", "at most 4 adapters, segments padded to 128 rows")),
    Contestant("vLLM", "lora_shrink, lora_expand", _gpu_peer("vllm", "reads slots of loaded adapters; no backward")),
    Contestant("liger", "fused ops", _gpu_peer("liger_kernel", "has no kernel of a linear with low-rank factors")),
    *(
        Contestant(f"ours: {name}", f"cora_kernels, backend {name!r}", _ours(name), ours=True)
        for name in ("cpu", "triton", "cuda", "chain")
    ),
    Contestant("ours: concat", "[x | S]·[W | Bᵀ]ᵀ by torch's GEMM, the rest by ours", _concat, ours=True),
    Contestant("ours: cpu, bare", "the same without kept copies of W, packed in each call", _ours("cpu", keep=False)),
)
