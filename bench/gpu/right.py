"""Is it right? Every backend on the GPU by the error rule, and what no CPU can say: graphs, streams, compiled code."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from bench.gpu.machine import ROOT, Machine
from cora_kernels.backends.wide_weights import make_room
from cora_kernels.planning.tile_sizes import descriptor_configs
from cora_kernels.planning.versions import has_descriptors
from cora_kernels.segments import Segments
from cora_kernels.testing import Case, Inputs, assert_by_rule, assert_correct, call, make_inputs, results

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
BORDERS = (0, 1, 127, 128, 129)
Check = Callable[[Machine, str], None]


def cases() -> Iterator[Case]:
    """Dtypes × shapes, ranks from 1 to 64, packed samples around the sizes of tiles."""
    for dtype, (r, sample_b) in product(
        (BF16, FP16), ((1, False), (4, True), (8, False), (16, True), (24, True), (64, False))
    ):
        yield Case(batch=3, length=65, k=136, n=(200,), r=r, dtype=dtype, sample_b=sample_b, bias=True)
        yield Case(lengths=BORDERS, k=136, n=(200,), r=r, dtype=dtype, sample_b=sample_b)
        yield Case(batch=4, length=5, k=136, n=(72,), r=r, dtype=dtype, sample_b=sample_b)
    for r, dtypes in product((8, 17), ((BF16, FP32), (FP16, FP32))):
        yield Case(batch=2, length=33, k=264, n=(136,), r=r, dtype=dtypes[0], factor_dtype=dtypes[1])
    for dtype in (BF16, FP16):
        yield Case(batch=2, length=130, k=1024, n=(1024, 256, 256), r=16, dtype=dtype)
        yield Case(lengths=BORDERS, k=256, n=(512,), r=16, dtype=dtype, sample_a=False, sample_b=True)
        yield Case(lengths=BORDERS, k=64, n=(72, 24), r=8, dtype=dtype, one_a=False, tensor_scaling=True)
        yield Case(batch=1, length=1, k=8, n=(8,), r=1, dtype=dtype)
        yield Case(batch=8, length=1, k=2048, n=(2048,), r=16, dtype=dtype, sample_b=True)
        yield Case(batch=2, length=300, k=2048, n=(520,), r=32, dtype=dtype, sample_b=True)
    for r in (1, 8, 24, 64):
        yield Case(batch=2, length=65, k=72, n=(136,), r=r, dtype=FP32, sample_b=True)
        yield Case(lengths=BORDERS, k=72, n=(136,), r=r, dtype=FP32)


def _inputs(machine: Machine, case: Case, grad: bool = False) -> Inputs:
    return make_inputs(case, str(machine.device), requires_grad=grad)


def _strided_boundaries(machine: Machine, backend: str) -> None:
    inputs = _inputs(machine, Case(lengths=(3, 0, 5), k=64, n=(64,), dtype=machine.dtype))
    assert inputs.cu_seqlens is not None
    strided = replace(inputs, cu_seqlens=inputs.cu_seqlens.repeat_interleave(2)[::2])
    assert torch.equal(call(strided, backend)[0], call(inputs, backend)[0]), "another result than of contiguous ones"


def _twenty_repeats(machine: Machine, backend: str) -> None:
    inputs = _inputs(machine, Case(lengths=BORDERS, k=264, n=(136,), r=16, dtype=machine.dtype, sample_b=True), True)
    first = results(lambda i: call(i, backend), inputs)
    for _ in range(1 if machine.rehearses else 20):
        again = results(lambda i: call(i, backend), inputs)
        assert all(torch.equal(first[name], again[name]) for name in first), "other bits in a repetition"


def _side_stream(machine: Machine, backend: str) -> None:
    inputs = _inputs(machine, Case(batch=2, length=65, k=136, n=(136,), r=8, dtype=machine.dtype))
    found = machine.on_side_stream(lambda: call(inputs, backend)[0])
    assert torch.equal(found, call(inputs, backend)[0]), "another result on a stream of its own"


def _second_gpu(machine: Machine, backend: str) -> None:
    case = Case(batch=2, length=65, k=136, n=(136,), r=8, dtype=machine.dtype)
    for device in machine.others():
        assert_correct(make_inputs(case, str(device)), backend)


def _beyond_32_bits(machine: Machine, backend: str) -> None:
    """More than 2³¹ elements from the first row of x to the last."""
    rows, far = 64, (2**31 // 60) // machine.scale**2 // 8 * 8
    inputs = _inputs(machine, Case(batch=1, length=rows, k=64, n=(64,), r=8, dtype=machine.dtype))
    spread = torch.empty(rows * far, dtype=inputs.x.dtype, device=machine.device).as_strided((1, rows, 64), (0, far, 1))
    spread.copy_(inputs.x)
    found = call(replace(inputs, x=spread), backend)[0]
    assert torch.equal(found, call(inputs, backend)[0]), "another result where rows lie far apart"


def _graph_replay(machine: Machine, backend: str) -> None:
    """Captured with one batch, replayed with another: other rows, other boundaries, other factors."""
    case = Case(lengths=(70, 0, 59), k=136, n=(136,), r=8, dtype=machine.dtype, sample_b=True)
    inputs, other = _inputs(machine, case), make_inputs(case, str(machine.device), 1, False)
    out = [torch.empty(0)]

    def run() -> None:
        out[0] = call(inputs, backend)[0]

    replay = machine.captured(run)
    assert inputs.cu_seqlens is not None
    with torch.no_grad():
        inputs.x.copy_(other.x)
        inputs.lora_as[0].copy_(other.lora_as[0])
        inputs.lora_bs[0].copy_(other.lora_bs[0])
        inputs.cu_seqlens.copy_(torch.tensor([0, 3, 100, 129]))
    replay()
    machine.synchronize()
    assert torch.equal(out[0], call(inputs, backend)[0]), "the replay does not read what is there now"


def _concat(machine: Machine, backend: str) -> None:
    """With room behind each weight, on two streams and in a graph that reads another B afterwards."""
    for case in (Case(batch=2, length=65, k=136, n=(136, 72), r=8), Case(lengths=BORDERS, k=264, n=(136,), r=70)):
        inputs = make_inputs(replace(case, dtype=machine.dtype, bias=True), str(machine.device))
        weights = tuple(torch.nn.Parameter(weight.clone(), requires_grad=False) for weight in inputs.weights)
        for weight in weights:
            make_room(weight, case.r)
        inputs = replace(inputs, weights=weights)
        assert_correct(inputs, "concat")

    def run() -> Tensor:
        return call(inputs, "concat")[0].detach()

    assert torch.equal(machine.on_side_stream(run), run()), "another result on a stream of its own"
    out = [torch.empty(0)]

    def kept() -> None:
        out[0] = run()

    replay = machine.captured(kept)
    with torch.no_grad():
        inputs.lora_bs[0].mul_(2)
    replay()
    machine.synchronize()
    assert torch.equal(out[0], run()), "the replay does not read the B that is there now"


def _descriptors(machine: Machine, backend: str) -> None:
    """The GEMM of tensor descriptors, by whose strategy the default may send nothing: y and dx in every tile it has."""
    if backend != "triton":
        raise NotImplementedError("the GEMM of descriptors is of Triton alone")
    # A rehearsal is interpreted, on the CPU of any machine.
    tiles = descriptor_configs("sm_90" if machine.rehearses else machine.gpu().arch) if has_descriptors() else ()
    if not tiles:
        raise NotImplementedError("the GEMM of descriptors needs Triton 3.4 and Hopper or data-centre Blackwell")
    from cora_kernels.backends.triton.descriptor_gemm import descriptor_gemm

    cases = (
        Case(batch=3, length=65, k=136, n=(200,), r=8, bias=True),
        Case(lengths=BORDERS, k=264, n=(520,), r=40, sample_b=True, bias=True),
        Case(batch=2, length=256, k=1024, n=(2048,), r=16, sample_b=True),
    )
    for case, tile in product(cases[: 2 if machine.rehearses else 3], tiles):
        inputs = _inputs(machine, replace(case, dtype=machine.dtype))
        x, segments, b, bias = inputs.x.flatten(0, -2), inputs.operands().segments, inputs.lora_bs[0], inputs.biases[0]
        g, a, w = torch.randn_like(x @ inputs.weights[0].t()), inputs.lora_as[0], inputs.weights[0]
        s = torch.randn(len(x), case.r, device=machine.device)
        there = torch.randn_like(x)
        y = descriptor_gemm(x, w.t(), s, b, segments, tile, bias)
        dx = descriptor_gemm(g, w, s, a.mT, segments, tile, None, there.clone())
        _assert_product("y", y, x, w.t(), s, b, segments, bias)
        _assert_product("dx", dx, g, w, s, a.mT, segments, there)


def _assert_product(
    name: str, got: Tensor, x: Tensor, w: Tensor, s: Tensor, b: Tensor, segments: Segments, more: Tensor | None
) -> None:
    """got = x·w + s·b + more by the error rule."""
    counts = torch.full((segments.batch,), segments.length or 0, device=x.device)
    if segments.cu_seqlens is not None:
        counts = segments.cu_seqlens.diff()

    def defined(dtype: torch.dtype) -> Tensor:
        per_row = b.to(dtype).repeat_interleave(counts, 0) if b.dim() == 3 else b.to(dtype).expand(len(x), -1, -1)
        delta = (s.to(dtype)[:, None] @ per_row)[:, 0]
        return x.to(dtype) @ w.to(dtype) + delta + (0 if more is None else more.to(dtype))

    assert_by_rule(name, got, defined(torch.float64), defined(x.dtype), x.dtype)


def _compiled(mode: str | None) -> Check:
    def check(machine: Machine, backend: str) -> None:
        """Forward and backward, with a scaling that changes afterwards."""
        torch._dynamo.reset()
        options: dict[str, Any] = {"backend": "aot_eager"} if machine.rehearses else {"mode": mode}
        compiled = torch.compile(lambda inputs: call(inputs, backend), **options)
        case = Case(batch=2, length=40, k=72, n=(72,), r=8, dtype=machine.dtype, sample_b=True)
        for seed, scaling in enumerate((0.5, 2.0) if machine.rehearses else (0.5, 0.5, 0.25, 2.0)):
            inputs = replace(make_inputs(case, str(machine.device), seed), scaling=scaling)
            if not machine.rehearses:
                torch.compiler.cudagraph_mark_step_begin()
            got = {name: t.clone() for name, t in results(compiled, inputs).items()}
            expected = results(lambda i: call(i, backend), inputs)
            for name in expected:
                assert torch.equal(got[name], expected[name]), f"{name} differs from eager at scaling {scaling}"

    return check


def _sanitizer(machine: Machine, backend: str) -> None:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise NotImplementedError("compute-sanitizer is not on the machine")
    command = [tool, "--error-exitcode=9", sys.executable, "-m", "bench.gpu.sanitized", backend]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.stdout + done.stderr)[-300:]


CHECKS: dict[str, Check] = {
    "strided boundaries": _strided_boundaries,
    "the same bits twenty times": _twenty_repeats,
    "a stream of its own": _side_stream,
    "the other GPUs": _second_gpu,
    "beyond 2^31 elements": _beyond_32_bits,
    "graph, replayed with other data": _graph_replay,
    "concat": _concat,
    "descriptors": _descriptors,
    "torch.compile": _compiled(None),
    "torch.compile, reduce-overhead": _compiled("reduce-overhead"),
    "compute-sanitizer": _sanitizer,
}


def right(machine: Machine, fast: bool) -> dict[str, Any]:
    """By backend: how many cases and checks passed, each failure with its reason, and what was left out, with why."""
    found = {}
    for backend in machine.usable():
        passed, failed, absent = 0, {}, {}
        chosen = list(cases())[:: 22 if machine.rehearses else 3 if fast else 1]
        tasks: dict[str, Callable[[], None]] = {str(c): _correct(machine, c, backend) for c in chosen}
        tasks |= {name: _bound(check, machine, backend) for name, check in CHECKS.items()}
        for name, task in tasks.items():
            try:
                task()
                passed += 1
            except NotImplementedError as reason:
                absent[name] = str(reason)
            except ValueError as error:
                refused = "cannot serve this call" in str(error)
                (absent if refused else failed)[name] = str(error)[:200]
            except Exception as error:  # every failure of a kernel, of whatever kind, belongs into the report
                failed[name] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        found[backend] = {"passed": passed, "failed": failed, "absent": absent}
    return found


def _correct(machine: Machine, case: Case, backend: str) -> Callable[[], None]:
    return lambda: assert_correct(make_inputs(case, str(machine.device)), backend)


def _bound(check: Check, machine: Machine, backend: str) -> Callable[[], None]:
    return lambda: check(machine, backend)
