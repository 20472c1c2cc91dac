"""The CUDA kernels' PTX, executed: every result by the error rule, nothing out of bounds, no race in shared memory."""

import re
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from cora_kernels.operands import Operands
from cora_kernels.planning import choose, gpus
from cora_kernels.segments import Segments
from cora_kernels.testing import Case, assert_correct, assert_samples_are_apart, call, make_inputs, results

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# Samples of more than eight rows, or packed: one pass or two kernels, outer.
SHAPES = [
    Case(batch=3, length=17, k=40, n=(72,), r=3, sample_b=True, bias=True),
    Case(batch=2, length=70, k=136, n=(24,), r=16),
    Case(lengths=(1, 127, 0, 128, 129), k=72, n=(200,), r=8, sample_b=True),
    Case(batch=1, length=129, k=200, n=(136,), r=24, sample_b=True, bias=True),
    Case(batch=2, length=33, k=56, n=(264,), r=64, sample_b=True),
    Case(lengths=(33, 2, 0, 65), k=104, n=(32,), r=1, sample_a=False, sample_b=True, tensor_scaling=True),
    Case(batch=2, length=21, k=16, n=(40, 8, 24), r=4, bias=True),
    Case(lengths=(4, 0, 9, 1), k=24, n=(40, 8), r=16, one_a=False, sample_b=True, factor_dtype=FP32),
]
MORE_SHAPES = [
    Case(batch=1, length=9, k=8, n=(8,), r=1),
    Case(batch=2, length=16, k=64, n=(64,), r=16, sample_b=True),
    Case(batch=3, length=31, k=24, n=(16,), r=8, bias=True),
    Case(batch=2, length=65, k=16, n=(136,), r=3, sample_a=False, sample_b=True),
    Case(batch=1, length=64, k=128, n=(64,), r=32),
    Case(batch=2, length=33, k=40, n=(32,), r=31, sample_b=True, factor_dtype=FP32),
    Case(batch=3, length=14, k=264, n=(8,), r=24, tensor_scaling=True),
    Case(batch=19, length=13, k=24, n=(40,), r=4, sample_b=True, bias=True),
    Case(lengths=(17,), k=24, n=(16,), r=11),
    Case(lengths=(16, 16, 32), k=32, n=(64,), r=16, sample_b=True),
    Case(lengths=(7, 1, 60, 3), k=16, n=(72,), r=5, sample_a=False, sample_b=True),
    Case(lengths=(2, 3, 4, 5, 6, 7), k=40, n=(48,), r=12, tensor_scaling=True),
    Case(lengths=(0, 1, 40), k=72, n=(72,), r=17, bias=True),
    Case(lengths=(5, 6), k=40, n=(16, 24), r=3, sample_a=False),
    Case(batch=3, length=15, k=24, n=(8, 16), r=5, one_a=False, tensor_scaling=True),
    Case(batch=2, length=11, k=56, n=(24,), r=48, sample_b=True, bias=True),
    Case(batch=1, length=30, k=304, n=(24,), r=130),
    Case(lengths=(127, 129, 1), k=96, n=(128,), r=64, sample_b=True),
    Case(lengths=(128, 0, 128), k=64, n=(136,), r=24, sample_b=True, factor_dtype=FP32),
    Case(batch=1, length=260, k=32, n=(24,), r=8, sample_a=False),
]
DECODED = [
    Case(batch=3, length=1, k=72, n=(304,), r=16, sample_b=True, bias=True),
    Case(batch=2, length=8, k=40, n=(72,), r=5, tensor_scaling=True),
    Case(batch=5, length=3, k=40, n=(24, 8), r=3, factor_dtype=FP32),
    Case(batch=2, length=2, k=1096, n=(2120,), r=24, sample_b=True),
]
MORE_DECODED = [
    Case(batch=b, length=t, k=k, n=(n,), r=r, sample_a=a, sample_b=sample_b, bias=b % 2 == 0, one_a=False)
    for i, (b, t, k, n, r) in enumerate(
        [
            (1, 1, 8, 8, 1),
            (7, 1, 24, 2056, 3),
            (4, 1, 64, 48, 64),
            (3, 1, 1032, 16, 8),
            (9, 2, 16, 40, 16),
            (2, 2, 200, 136, 128),
            (5, 3, 2056, 24, 24),
            (3, 4, 48, 64, 3),
            (6, 4, 24, 8, 1),
            (1, 5, 136, 72, 9),
            (4, 5, 72, 96, 40),
            (2, 6, 24, 264, 16),
            (3, 7, 40, 128, 64),
            (2, 7, 304, 24, 2),
            (8, 8, 8, 16, 8),
            (1, 8, 520, 40, 100),
            (3, 1, 96, 4104, 16),
        ]
    )
    for a, sample_b in [((True, False), (True, True), (False, True))[i % 3]]
]
slow = pytest.mark.slow


def every(cases, more, stride=1):
    """Cases with a strategy and a number of multiprocessors each: every tile has its turn; the others if asked."""
    drawn = [(case, ("one_pass", "two_kernels")[i % 2], (108, 1)[i // 2 % 2]) for i, case in enumerate(cases)]
    others = [
        (case, strategy, count)
        for case in [*cases, *more]
        for strategy in ("one_pass", "two_kernels")
        for count in (108, 1)
        if (case, strategy, count) not in drawn
    ]
    return [*drawn, *(pytest.param(*other, marks=slow) for other in others[::stride])]


@pytest.mark.parametrize(("case", "strategy", "multiprocessors"), every(SHAPES, MORE_SHAPES), ids=str)
def test_shapes(case, strategy, multiprocessors, simulator, prefer, poison):
    prefer(strategy)
    with simulator.running(multiprocessors) as launches:
        assert_correct(make_inputs(replace(case, dtype=BF16)), "cuda")
    assert {"lowrank_gemm", "outer"} <= {kernel for kernel, _ in launches}


@pytest.mark.parametrize("case", [*SHAPES[:4], *(pytest.param(case, marks=slow) for case in SHAPES[4:])], ids=str)
def test_the_delta_alone(case, simulator, prefer, poison):
    """S·B by the GEMM's kernel with no depth to walk, and the base by torch's GEMM on top."""
    prefer("separate")
    with simulator.running() as launches:
        assert_correct(make_inputs(replace(case, dtype=BF16)), "cuda")
    gemms = [stats for kernel, stats in launches if kernel == "lowrank_gemm"]
    # Twice that, with whole tiles, for S·B and dS·Aᵀ: no product with W is among them.
    rows, wide = sum(case.lengths) if case.lengths else case.batch * case.length, max(case.k, *case.n)
    whole = 2 * (rows + 128) * (wide + 128) * 64 * (1 + len(case.lengths or ()))
    assert gemms and all(sum(stats.mma_flops.values()) <= whole for stats in gemms)


def test_a_scaling_on_the_gpu_is_read_by_the_kernel(simulator, prefer):
    """A number as a tensor without dimensions, as torch.compile hands it on, is the number."""
    inputs = make_inputs(Case(batch=2, length=20, k=40, n=(24,), r=8, sample_b=True, dtype=BF16), requires_grad=False)
    x, ops = inputs.x.flatten(0, 1), torch.ops.cora_kernels
    arguments = list(inputs.weights), list(inputs.lora_as), list(inputs.lora_bs), [None]
    for strategy in ("one_pass", "two_kernels", "separate"):
        with simulator.running():
            y = ops.cuda_forward(x, *arguments, None, 0.75, None, 2, [], [strategy])[0]
            of_tensor = ops.cuda_forward(x, *arguments, torch.tensor(0.75), 1.0, None, 2, [], [strategy])[0]
        assert torch.equal(y, of_tensor)


@pytest.mark.parametrize("case", [*DECODED, *(pytest.param(case, marks=slow) for case in MORE_DECODED)], ids=str)
def test_decode(case, simulator, prefer, poison):
    prefer("decode")
    inputs = make_inputs(replace(case, dtype=BF16))
    if case.tensor_scaling:
        inputs.scaling.requires_grad_(False)
    with simulator.running() as launches:
        assert_correct(inputs, "cuda")
    assert "decode" in {kernel for kernel, _ in launches}


@pytest.mark.parametrize(
    ("strategy", "multiprocessors"), [pytest.param("one_pass", 108, marks=slow), ("two_kernels", 1)]
)
@pytest.mark.parametrize("factors", [None, pytest.param(FP32, marks=slow)], ids=str)
def test_fp16(strategy, multiprocessors, factors, simulator, prefer):
    prefer(strategy)
    case = Case(lengths=(21, 0, 30), k=40, n=(136,), r=6, dtype=FP16, factor_dtype=factors, sample_b=True)
    with simulator.running(multiprocessors):
        assert_correct(make_inputs(case), "cuda")
        assert_correct(make_inputs(replace(case, lengths=None, length=4)), "cuda")


@pytest.mark.parametrize("order", [pytest.param("reverse", marks=slow), "random"])
def test_any_order_of_warps(order, simulator, prefer):
    """A missing barrier shows in the numbers where warps do not run in step."""
    prefer("one_pass")
    case = Case(lengths=(40, 30), k=136, n=(72,), r=16, dtype=BF16, sample_b=True)
    with simulator.running(order=order):
        assert_correct(make_inputs(case), "cuda")


@pytest.mark.parametrize("strategy", ["one_pass", "two_kernels", "decode"])
def test_a_sample_does_not_see_its_neighbours(strategy, simulator, prefer):
    """inf and NaN in every other sample, tiles that straddle: a sample's output and gradients stay what they are."""
    prefer(strategy)
    inputs = make_inputs(Case(batch=3, length=7 if strategy == "decode" else 11, sample_b=True, dtype=BF16))
    with simulator.running():
        assert_samples_are_apart(inputs, "cuda")


@pytest.mark.parametrize(
    "boundaries", [[0, 5, 5, 90], [-7, 30, 2, 20], [20, 10, 0, -1], [2**31 - 1, -(2**31), 7, 3]], ids=str
)
def test_wrong_boundaries_stay_in_bounds(boundaries, simulator, prefer):
    """On a GPU nobody reads cu_seqlens back to check it: whatever it holds, nothing outside the tensors is touched."""
    from cora_kernels.backends import cuda

    inputs = make_inputs(Case(lengths=(9, 8, 3), k=16, n=(24,), r=4, dtype=BF16, sample_b=True), requires_grad=False)
    segments = Segments(3, 20, None, torch.tensor(boundaries, dtype=torch.int32))
    operands = inputs.operands()._replace(segments=segments)
    for strategy in ("one_pass", "two_kernels"):
        prefer(strategy)
        with simulator.running():
            (y,), (s,) = cuda.forward(inputs.x, operands)
            cuda.backward_input([y], operands, True)
            cuda.outer(s, y, segments, True, torch.float32)


def test_layouts(simulator, prefer):
    """Factors and weights as transposed views, gradients and S off their alignment: read in place, or copied."""
    from cora_kernels.backends import cuda

    prefer("one_pass")
    inputs = make_inputs(Case(batch=2, length=20, k=40, n=(24,), r=8, sample_b=True, dtype=BF16))
    segments = Segments.of(inputs.x, None)
    x, weight, a, b = inputs.x.reshape(40, 40).detach(), *inputs.weights, *inputs.lora_as, *inputs.lora_bs
    operands = Operands([weight], [a], [b], [None], 0.5, segments)
    turned = Operands(
        *([t.detach().transpose(-1, -2).contiguous().transpose(-1, -2)] for t in (weight, a, b)), [None], 0.5, segments
    )
    with simulator.running():
        (y,), (s,) = cuda.forward(x, operands)
        (y_turned,), _ = cuda.forward(x, turned)
        dx, (ds,) = cuda.backward_input([y], operands, True)
        shifted = torch.cat([y.new_zeros(40, 1), y], 1)[:, 1:]
        dx_turned, _ = cuda.backward_input([shifted], turned, True)
    assert torch.equal(y, y_turned) and torch.equal(dx, dx_turned)


def test_same_bits(simulator, prefer):
    """Whichever warp is first: also where rows are split into planes."""
    from cora_kernels.backends import cuda

    prefer("two_kernels")
    inputs = make_inputs(Case(lengths=(10, 21), k=40, n=(24,), r=4, dtype=BF16))
    wide, narrow = torch.randn(513, 8, dtype=BF16), torch.randn(513, 3)
    found = []
    for order in ("lockstep", "random"):
        with simulator.running(order=order) as launches:
            sums = cuda.outer(wide, narrow, Segments(1, 513, 513, None), False, FP32)
            found.append(results(lambda i: call(i, "cuda"), inputs) | {"split": sums})
        assert any("sum_planes" in stats.kernel for _, stats in launches), "rows were not split"
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


KERNELS = {
    "one_pass": ["lowrank_gemm"],
    "two_kernels": ["shrink", "lowrank_gemm"],
    "separate": ["shrink", "lowrank_gemm"],
    "decode": ["decode"],
}


@pytest.mark.parametrize(
    ("case", "rates", "strategy"),
    [
        (Case(batch=2, length=16, k=8, n=(1024,), r=16), {}, "one_pass"),
        (Case(batch=2, length=16, k=8, n=(8,), r=33), {}, "two_kernels"),
        (Case(batch=2, length=160, k=72, n=(72,), r=33), {"matrix": 1e9, "gemm_cuda": 0.5}, "separate"),
        (Case(batch=2, length=8, k=72, n=(4096,), r=4), {"matrix": 1e10}, "decode"),
        (Case(lengths=(3, 4), k=8, n=(8,), r=4), {}, "one_pass"),
    ],
    ids=str,
)
def test_the_strategy_follows_the_rule(case, rates, strategy, simulator, monkeypatch):
    """Whichever the cost rule finds the fastest on a GPU of such rates is launched."""
    gpu = gpus.GPUS["A100"]._replace(**rates)
    monkeypatch.setattr(gpus, "gpu_of", lambda device: gpu)
    inputs = make_inputs(replace(case, dtype=BF16), requires_grad=False)
    with simulator.recording(multiprocessors=108) as launches:
        call(inputs, "cuda")
    assert [re.search("lowrank_gemm|shrink|decode", name)[0] for name, *_ in launches] == KERNELS[strategy]


@pytest.mark.parametrize("case", [*SHAPES, *MORE_SHAPES, *DECODED], ids=str)
@pytest.mark.parametrize("multiprocessors", [108, 4])
def test_the_tile_planned_is_the_tile_launched(case, multiprocessors, simulator, monkeypatch):
    """`explain` names the tile that csrc/cuda/lowrank_gemm.cu picks."""
    gpu = gpus.GPUS["A100"]._replace(multiprocessors=multiprocessors)
    monkeypatch.setattr(gpus, "gpu_of", lambda device: gpu)
    inputs, planned = make_inputs(replace(case, dtype=BF16), requires_grad=False), []
    rule = choose.choose

    def recorded(problem, gpu, backend):
        plan = rule(problem, gpu, backend)
        alone = choose._cuda_tile(problem, gpu, False) if plan.strategy == "separate" else None
        planned.append(plan.config or alone)
        return plan

    monkeypatch.setattr(choose, "choose", recorded)
    with simulator.recording(multiprocessors) as launches:
        call(inputs, "cuda")
    tiles = [re.findall(r"Li(\d+)E", name)[:3] for name, *_ in launches if "GemmTile" in name]
    assert tiles == [[str(n) for n in tile[:3]] for tile in planned if tile]


@pytest.mark.parametrize(
    ("strategy", "T", "r", "given", "message"),
    [
        ("one_pass", 16, 33, False, "one_pass: expected a rank of at most 32 and no S, got rank 33"),
        ("one_pass", 16, 4, True, "one_pass: expected a rank of at most 32 and no S, got rank 4 and S"),
        ("decode", 9, 4, False, "decode: expected samples of 1 to 8 rows, .* got 9 rows .0: packed., rank 4"),
        ("decode", 8, 129, False, "decode: expected .* a rank of at most 128 .* got 8 rows .0: packed., rank 129"),
        ("chain", 8, 4, False, "strategy: expected one_pass, two_kernels, separate or decode, got chain"),
    ],
)
def test_a_strategy_that_cannot_run_is_refused(strategy, T, r, given, message, simulator):
    x, w = torch.zeros(2 * T, 16, dtype=BF16), torch.zeros(8, 16, dtype=BF16)
    a, b = torch.zeros(2, 16, r, dtype=BF16), torch.zeros(r, 8, dtype=BF16)
    s = [torch.zeros(2 * T, r)] * given
    with simulator.recording(108) as launches, pytest.raises(RuntimeError, match=message):
        torch.ops.cora_kernels.cuda_forward(x, [w], [a], [b], [None], None, 1.0, None, 2, s, [strategy])
    assert launches == []


def test_torch_compile(simulator):
    """One graph, no other for another scaling or length once these are dynamic, and the bits of eager."""
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(lambda inputs: call(inputs, "cuda"), backend=counter, fullgraph=True)
    graphs = []
    for length, scaling in ((11, 0.5), (12, 0.5), (12, 0.25), (14, 2.0)):
        inputs = replace(make_inputs(Case(batch=2, length=length, sample_b=True, dtype=BF16)), scaling=scaling)
        with simulator.running(racecheck=False, initcheck=False):
            got, expected = results(compiled, inputs), results(lambda i: call(i, "cuda"), inputs)
        assert all(torch.equal(got[name], expected[name]) for name in expected)
        graphs.append(counter.frame_count)
    assert graphs[0] == 1 and graphs[2] == graphs[3], graphs


def test_fakes_tell_what_the_ops_return(simulator):
    ops = torch.ops.cora_kernels
    x, weight = torch.randn(6, 16).bfloat16(), torch.randn(8, 16).bfloat16()
    a, b, s = torch.randn(2, 16, 4), torch.randn(4, 8).bfloat16(), torch.randn(6, 4)
    utilities = ("test_schema", "test_faketensor")
    calls = {
        "cuda_shrink": [(x, a, None, 1.0, None, 2)],
        "cuda_forward": [
            (x, [weight], [a], [b], [None], None, 1.0, None, 2, given, ["two_kernels"]) for given in ([], [s])
        ],
        "cuda_backward_input": [
            (
                [x[:, :8].contiguous()],
                weights,
                [a] * len(weights),
                [b],
                None,
                1.0,
                None,
                2,
                1,
                [],
                ["one_pass"] * len(weights),
            )
            for weights in ([], [weight])
        ],
        "cuda_outer": [(x, s, None, 2, per_sample, torch.float32) for per_sample in (False, True)],
    }
    with simulator.running():
        for name, arguments in calls.items():
            for each in arguments:
                torch.library.opcheck(getattr(ops, name), each, test_utils=utilities)


def test_reasons(simulator):
    """What the kernels do not serve, said before anything is launched."""
    from cora_kernels import lora_linear

    x, weight = torch.randn(2, 3, 16, dtype=BF16), torch.randn(8, 16, dtype=BF16)
    a, b = torch.randn(2, 16, 4, dtype=BF16), torch.randn(4, 8, dtype=BF16)

    def refused(message, x=x, weight=weight, a=a, b=b):
        with pytest.raises(ValueError, match=f"backend 'cuda' cannot serve this call: .*{message}"):
            lora_linear(x, weight, a, b, backend="cuda")

    refused("x must be bfloat16 or float16, got torch.float32", x.float(), weight.float(), a.float(), b.float())
    refused(r"multiples of 8, got \(7, 16\)", weight=weight[:7], b=b[:, :7])
    refused("lora_a and lora_b must be float32 or, like x, torch.bfloat16, got torch.float16", a=a.half())
    refused("the rows of x must be 16-byte aligned", x=torch.randn(2, 3, 17, dtype=BF16)[..., 1:])
    refused("the rows of weight must be 16-byte aligned", weight=torch.randn(8, 17, dtype=BF16)[:, 1:])
