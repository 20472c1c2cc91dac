"""The kernels under Triton's interpreter, on CPU tensors: the numeric suite of every backend, and what is special here.

The interpreter must be chosen before the kernels are defined: these tests run pytest again, in a process of its own.
"""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cora_kernels import backends, tune
from cora_kernels.operands import Operands
from cora_kernels.planning import choose, gpus, tuning_file
from cora_kernels.planning.cost import Problem
from cora_kernels.planning.tile_sizes import descriptor_configs, gemm_configs
from cora_kernels.planning.versions import has_descriptors
from cora_kernels.segments import Segments
from cora_kernels.testing import Case, assert_correct, call, make_inputs, results

pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETS, reason="runs inside test_suite_under_the_interpreter")
SUITES = ["tests/kernels/test_numerics.py", "tests/kernels/test_autograd.py", "tests/triton/test_interpreted.py"]
STRATEGIES = ["one_pass", "two_kernels", "separate", "decode"]


@pytest.mark.skipif(INTERPRETS, reason="is the test that starts this process")
@pytest.mark.parametrize("suite", SUITES)
def test_suite_under_the_interpreter(suite):
    """Without autocast, which goes to bfloat16: the interpreter computes that wrongly, the simulator has it instead."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", suite, "-k", "triton and not autocast"]
    done = subprocess.run(command, cwd=root, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@interpreted
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "case",
    [
        replace(case, dtype=dtype)
        for dtype, case in product(
            (torch.float32, torch.float16),
            (
                Case(batch=3, length=5, k=33, n=(65,), r=5, sample_b=True, bias=True),
                Case(batch=2, length=17, k=40, n=(24, 9), r=20),
                Case(lengths=(33, 2, 0, 30), k=48, n=(31,), r=70, sample_b=True, tensor_scaling=True),
                Case(lengths=(5, 4), k=16, n=(40, 8), r=4, one_a=False, sample_a=False),
                Case(batch=28, length=2, k=33, n=(40,), r=5, bias=True),  # decode: in one launch, of few in two
            ),
        )
    ],
    ids=str,
)
def test_strategies(case, strategy, prefer):
    prefer(strategy)
    assert_correct(make_inputs(case), "triton")


@pytest.fixture
def hopper(monkeypatch):
    """Calls are planned as on an H100, whose GEMM of descriptors the interpreter has, too."""
    if not has_descriptors():
        pytest.skip("this Triton is older than 3.4")
    monkeypatch.setattr(gpus, "gpu_of", lambda device: gpus.GPUS["H100"])


@interpreted
@pytest.mark.parametrize(
    "case",
    [
        Case(batch=3, length=5, k=40, n=(72,), r=8, dtype=torch.float16, sample_b=True, bias=True),
        Case(lengths=(130, 2, 0, 30), k=72, n=(16, 264), r=24, dtype=torch.float16, one_a=False, tensor_scaling=True),
        Case(batch=2, length=128, k=16, n=(24,), r=72, dtype=torch.float16),
    ],
    ids=str,
)
def test_descriptors(case, prefer, hopper):
    prefer("descriptors")
    inputs = make_inputs(case)
    assert_correct(inputs, "triton")
    first, again = (results(lambda i: call(i, "triton"), inputs) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@interpreted
def test_descriptors_beyond_32_bits(prefer, hopper):
    """More than 2³¹ elements between the first and the last row."""
    prefer("descriptors")
    inputs = make_inputs(Case(lengths=(9, 8), k=16, n=(24,), r=8, dtype=torch.float16), requires_grad=False)
    try:
        store = torch.empty(17 * 2**27, dtype=torch.float16)
    except RuntimeError:
        pytest.skip("no address space for 4.6 GB that are never touched")
    rows = store.as_strided((17, 16), (2**27, 1))
    rows.copy_(inputs.x)
    assert torch.equal(call(replace(inputs, x=rows), "triton")[0], call(inputs, "triton")[0])


@interpreted
def test_tuning_times_descriptors_where_the_part_has_them(hopper):
    """Both tiles, each once, as they are persistent already; and the rate of the faster one."""
    ran = []

    def clock(run):
        ran.append(run.args)
        run()
        return 1.0

    problem = Problem(6, 24, 40, 8, 2, 3, torch.float16, sample_b=True)
    tune.measure_all(problem, torch.device("cpu"), clock)
    assert [tile for name, tile in ran if name == "descriptors"] == list(descriptor_configs("sm_90"))
    rates = tune.measure_rates(torch.device("cpu"), lambda run: run() is None or 1e-3)
    assert 0 < rates["gemm_descriptors"] <= 1 and rates["fill_descriptors"] > 0


FUSED = [
    Case(batch=3, length=5, k=33, n=(65,), r=5, sample_b=True, bias=True),
    Case(batch=2, length=70, k=24, n=(300,), r=20),
    Case(lengths=(33, 2, 0, 130), k=48, n=(31,), r=32, sample_b=True),
    Case(lengths=(1, 0, 4), k=16, n=(257,), r=1, sample_a=False),
]


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", FUSED, ids=str)
def test_shrink_outer(case, dtype, monkeypatch):
    asked = []
    monkeypatch.setattr(choose, "fuses", lambda problem, gpu: asked.append(problem) is None)
    inputs = make_inputs(replace(case, dtype=dtype))
    assert_correct(inputs, "triton")
    first, again = (results(lambda i: call(i, "triton"), inputs) for _ in range(2))
    assert asked and all(torch.equal(first[name], again[name]) for name in first)


@interpreted
def test_shrink_outer_with_a_scaling_for_each_sample(monkeypatch):
    """It serves where B is each sample's too, and leaves the others to the two kernels."""
    monkeypatch.setattr(choose, "fuses", lambda problem, gpu: True)
    for sample_b in (True, False):
        inputs = make_inputs(Case(lengths=(3, 0, 40), n=(50,), sample_b=sample_b, tensor_scaling=True))
        inputs.scaling.requires_grad_(False)
        assert_correct(inputs, "triton")


@interpreted
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_is_deterministic(strategy, prefer):
    prefer(strategy)
    inputs = make_inputs(Case(batch=3, length=4, k=600, n=(40,), sample_b=True))
    first = results(lambda i: call(i, "triton"), inputs)
    again = results(lambda i: call(i, "triton"), inputs)
    assert all(torch.equal(first[name], again[name]) for name in first)


@interpreted
@pytest.mark.parametrize("strategy", STRATEGIES[:3])
def test_tensors_beyond_32_bits(strategy, prefer):
    """More than 2³¹ elements between the first and the last row, and offsets inside one tile that need 64 bits too."""
    prefer(strategy)
    inputs = make_inputs(Case(lengths=(9, 8), k=16, n=(24,), r=4, dtype=torch.float16), requires_grad=False)
    far = 2**27
    try:
        store = torch.empty(17 * far, dtype=torch.float16)
    except RuntimeError:
        pytest.skip("no address space for 4.6 GB that are never touched")
    rows = store.as_strided((17, 16), (far, 1))
    rows.copy_(inputs.x)
    assert torch.equal(call(replace(inputs, x=rows), "triton")[0], call(inputs, "triton")[0])


@interpreted
@pytest.mark.parametrize(("what", "count", "far"), [("rows", 70, 2**25), ("weight", 140, 2**24)])
def test_tiles_beyond_32_bits(what, count, far):
    """More than 2³¹ elements from one tile to the next, too."""
    from cora_kernels.backends.triton import strategies

    try:
        store = torch.empty(count * far, dtype=torch.float16)
    except RuntimeError:
        pytest.skip("no address space for 4.7 GB that are never touched")
    spread = store.as_strided((count, 8), (far, 1))
    near = torch.randn(count, 8).half()
    spread.copy_(near)

    def run(t):
        if what == "rows":
            return strategies.outer(t, torch.ones(count, 3), Segments(1, count, count, None), True, torch.float32)
        g, a, b = (torch.ones(shape, dtype=torch.float16) for shape in ((5, count), (8, 3), (3, count)))
        operands = Operands([t], [a], [b], [None], 1.0, Segments(1, 5, 5, None))
        return strategies.backward_input([g], operands, True)[0]

    assert torch.equal(run(spread), run(near))


@interpreted
def test_tuning_times_every_strategy_and_tile(tmp_path, monkeypatch):
    """Timed by a clock that finds the separate kernels, then one tile of the two, the fastest: each is then chosen."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device = torch.device("cpu")
    problem = Problem(6, 24, 40, 4, 2, 3, torch.float16)
    ran = []

    def clock(run):
        ran.append(run.args)
        run()
        return 1.0 if run.args == fastest else 2.0

    for fastest in (("separate", None), ("two_kernels", gemm_configs("sm_80", torch.float16, False)[3])):
        best = tune.measure_strategies(problem, device, clock)
        assert (best["strategy"], best["config"]) == fastest
        tuning_file.save("A100", {}, {choose.key_of(problem): best})
        choose.choose.cache_clear()
        plan = choose.choose(problem, gpus.gpu_of(device), "triton")
        assert (plan.strategy, plan.config) == fastest
    assert {strategy for strategy, _ in ran} == set(STRATEGIES)
    assert len(set(ran)) == 2 + 5 + 2 + 4 + 2, (
        "two strategies without tiles, five tiles of one and four of the other, persistent"
    )
    choose.choose.cache_clear()
    tuning_file.load.cache_clear()


@interpreted
def test_tuning_measures_the_rates():
    rates = tune.measure_rates(torch.device("cpu"), lambda run: run() is None or 1e-3)
    assert set(rates) == {"matrix", "simple", "bandwidth", "gemm", "fill", "exposed"}
    assert all(rate > 0 for rate in rates.values())


@interpreted
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_scaling_without_dimensions_is_the_number(strategy, prefer):
    """As torch.compile hands a number on, for one compiled call to serve every value of it."""
    from cora_kernels.backends.triton import strategies

    prefer(strategy)
    inputs = make_inputs(Case(batch=2, length=5, k=33, n=(40,), r=5, sample_b=True), requires_grad=False)
    operands, x = inputs.operands(), inputs.x.flatten(0, 1)
    scaled = operands._replace(scaling=torch.tensor(operands.scaling))
    for got, expected in zip(strategies.forward(x, scaled), strategies.forward(x, operands), strict=True):
        assert torch.equal(got[0], expected[0])


@interpreted
@pytest.mark.parametrize("strategy", STRATEGIES[:3])
def test_an_infinite_column_of_one_sample_is_not_that_of_another(strategy, prefer):
    """In a tile of both: each sample's own columns are lost, and no more."""
    prefer(strategy)
    inputs = make_inputs(
        Case(lengths=(3, 4), k=16, n=(24,), r=4, dtype=torch.float16, sample_b=True), requires_grad=False
    )
    inputs.lora_bs[0][0, :, 5], inputs.lora_bs[0][1, :, 9] = float("inf"), float("inf")
    (y,) = call(inputs, "triton")
    lost = torch.zeros(7, 24, dtype=torch.bool)
    lost[:3, 5], lost[3:, 9] = True, True
    assert torch.equal(y.isfinite(), ~lost)


@interpreted
def test_strided_boundaries():
    """Every other number of a wider tensor: the kernels read boundaries next to one another."""
    inputs = make_inputs(Case(lengths=(3, 0, 5), sample_b=True), requires_grad=False)
    wide = inputs.cu_seqlens.repeat_interleave(2)
    wide[1::2] = 99
    strided = replace(inputs, cu_seqlens=wide[::2])
    assert torch.equal(call(strided, "triton")[0], call(inputs, "triton")[0])


def test_availability_says_why():
    if INTERPRETS or torch.cuda.is_available():
        assert backends()["triton"] is None
    else:
        assert "no GPU is there" in backends()["triton"]
        with pytest.raises(ValueError, match="'triton' cannot serve this call: no GPU is there"):
            call(make_inputs(Case()), "triton")


@pytest.mark.skipif(INTERPRETS or torch.cuda.is_available(), reason="Triton launches kernels here")
def test_a_gpu_that_triton_cannot_use_is_left_to_others(monkeypatch):
    from cora_kernels.backends.triton import backend

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "Triton cannot launch kernels here (" in backends()["triton"]
    backend._driver_error.cache_clear()
    x = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float16)
    nothing = Operands((), (), (), (), 1.0, Segments(1, 1, 1, None))
    reasons = backend.not_supported_reasons(x, nothing)
    assert reasons == ["it needs compute capability 8.0 (Ampere) or later"]
