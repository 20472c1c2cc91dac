"""Compiled sm_80 PTX, executed: every result by the error rule, nothing out of bounds, no race in shared memory."""

from dataclasses import replace

import pytest
import torch

from cora_kernels.backends.concat import Concat
from cora_kernels.planning import choose, gpus
from cora_kernels.segments import Segments
from cora_kernels.testing import (
    Case,
    assert_by_rule,
    assert_correct,
    assert_samples_are_apart,
    definition,
    eager,
    make_inputs,
)

pytest.importorskip("triton", reason="Triton is not installed")

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SHAPES = [
    Case(batch=1, length=1, k=1, n=(1,), r=1),
    Case(batch=2, length=3, k=5, n=(7,), r=3, bias=True),
    Case(batch=3, length=17, k=33, n=(65,), r=5, sample_b=True),
    Case(batch=5, length=2, k=31, n=(130,), r=1, sample_b=True, tensor_scaling=True),
    Case(batch=4, length=1, k=64, n=(48,), r=16),
    Case(batch=2, length=5, k=8, n=(12,), r=20, sample_a=False, bias=True),
    Case(batch=2, length=70, k=40, n=(24,), r=9),
    Case(batch=1, length=129, k=72, n=(136,), r=16, sample_b=True),
    Case(batch=2, length=9, k=130, n=(67,), r=70),
    Case(lengths=(1, 1, 1), k=19, n=(23,), r=2),
    Case(lengths=(33, 2, 0, 65), k=48, n=(31,), r=7, sample_b=True, bias=True),
    Case(lengths=(0, 5, 0, 0, 3, 0), sample_b=True, tensor_scaling=True),
    Case(batch=2, length=6, k=16, n=(40, 8, 17), r=4, bias=True),
    Case(lengths=(4, 0, 9, 1), n=(40, 8), r=4, one_a=False, sample_b=True),
    Case(batch=1, length=2, k=3, n=(5,), r=7),
    Case(batch=7, length=1, k=17, n=(3,), r=2, sample_b=True),
    Case(batch=2, length=16, k=64, n=(64,), r=16, sample_b=True),
    Case(batch=3, length=31, k=15, n=(9,), r=8, bias=True),
    Case(batch=2, length=65, k=16, n=(129,), r=4, sample_a=False, sample_b=True),
    Case(batch=1, length=64, k=128, n=(64,), r=32),
    Case(batch=2, length=33, k=31, n=(33,), r=31, sample_b=True),
    Case(batch=3, length=4, k=257, n=(2,), r=3, tensor_scaling=True),
    Case(batch=2, length=7, k=2, n=(257,), r=6, sample_b=True),
    Case(batch=19, length=3, k=24, n=(40,), r=4, sample_b=True, bias=True),
    Case(lengths=(17,), k=21, n=(13,), r=11),
    Case(lengths=(16, 16, 32), k=32, n=(64,), r=16, sample_b=True),
    Case(lengths=(7, 1, 60, 3), k=9, n=(70,), r=5, sample_a=False, sample_b=True),
    Case(lengths=(2, 3, 4, 5, 6, 7), k=37, n=(41,), r=12, tensor_scaling=True),
    Case(lengths=(0, 1, 40), k=65, n=(66,), r=17, bias=True),
    Case(lengths=(5, 6), k=40, n=(16, 24), r=3, sample_a=False),
    Case(batch=3, length=5, k=18, n=(6, 10), r=5, one_a=False, tensor_scaling=True),
    Case(batch=2, length=11, k=50, n=(20,), r=48, sample_b=True, bias=True),
    Case(batch=1, length=3, k=300, n=(19,), r=130),
]
STRATEGIES = ["one_pass", "two_kernels", "separate", "decode"]


@pytest.mark.parametrize(
    ("case", "strategy"), [(replace(case, dtype=BF16), STRATEGIES[i % 3]) for i, case in enumerate(SHAPES)], ids=str
)
def test_shapes(case, strategy, ptxsim, prefer):
    prefer(strategy)
    with ptxsim.triton_launches(racecheck="raise", initcheck="raise") as launches:
        assert_correct(make_inputs(case), "triton")
    assert launches


@pytest.mark.parametrize(
    "case",
    [
        Case(batch=3, length=1, k=70, n=(300,), r=16, dtype=BF16, sample_b=True, bias=True),
        Case(batch=2, length=8, k=33, n=(65,), r=5, dtype=BF16, tensor_scaling=True),
        Case(batch=5, length=3, k=40, n=(24, 9), r=3, dtype=FP32),
        Case(batch=28, length=1, k=70, n=(30,), r=5, dtype=BF16, sample_b=True, bias=True),
        Case(batch=30, length=2, k=33, n=(17,), r=3, dtype=FP32, tensor_scaling=True),
    ],
    ids=str,
)
def test_decode(case, ptxsim, prefer):
    prefer("decode")
    inputs = make_inputs(case)
    if case.tensor_scaling:
        inputs.scaling.requires_grad_(False)
    with ptxsim.triton_launches(racecheck="raise", initcheck="raise") as launches:
        assert_correct(inputs, "triton")
    assert "decode_kernel" in [name for name, _ in launches]


@pytest.mark.parametrize(
    "case",
    [
        Case(batch=2, length=70, k=1160, n=(24, 40), r=9),
        Case(lengths=(33, 2, 0, 65), k=48, n=(31,), r=7, bias=True, tensor_scaling=True),
        Case(batch=1, length=3, k=300, n=(19,), r=130),
        Case(batch=2, length=5, k=65, n=(12,), r=20, sample_a=False),
    ],
    ids=str,
)
def test_the_shrink_writes_x_and_s_side_by_side(case, ptxsim, poison):
    """x bit for bit, S rounded, zeros behind it and nothing else; and [x | S]·[W | Bᵀ]ᵀ of that is right."""
    from cora_kernels.backends.triton import backend, strategies

    inputs = make_inputs(replace(case, dtype=BF16), requires_grad=False)
    x, operands = inputs.x.reshape(-1, case.k), inputs.operands()
    around = torch.full((len(x), case.k + 200), float("nan"), dtype=BF16)
    wide = around[:, : case.k + 192]
    call_ = [x], [inputs.lora_as[0]], inputs.scaling, operands.segments
    with ptxsim.triton_launches(racecheck="raise", initcheck="raise"):
        s, expected = strategies.shrink(*call_, wide), strategies.shrink(*call_)
        ys, _ = Concat(backend).forward(x, operands)
    zeros = s.new_zeros(len(x), 192 - case.r)
    assert torch.equal(s, expected) and torch.equal(wide, torch.cat([x, s.bfloat16(), zeros.bfloat16()], 1))
    assert around[:, case.k + 192 :].isnan().all()
    exact = definition(inputs.map(lambda t: t.double()))
    for y, one, usual in zip(ys, exact, eager(inputs), strict=True):
        assert_by_rule("y", y, one.reshape(y.shape), usual.reshape(y.shape), BF16)


@pytest.mark.parametrize("strategy", ["one_pass", "two_kernels"])
@pytest.mark.parametrize(
    "case",
    [
        Case(batch=1, length=140, k=72, n=(136,), r=16, sample_b=True, bias=True),
        Case(lengths=(129, 0, 70, 1), k=130, n=(200,), r=5, tensor_scaling=True),
    ],
    ids=str,
)
def test_hopper(case, strategy, ptxsim, prefer, monkeypatch):
    """sm_90, whose large tiles are multiplied by warp groups."""
    monkeypatch.setattr(gpus, "gpu_of", lambda device: gpus.GPUS["H100"])
    prefer(strategy)
    with ptxsim.triton_launches(target=90, racecheck=True, initcheck="raise") as launches:
        assert_correct(make_inputs(replace(case, dtype=BF16)), "triton")
    assert any("wgmma" in opcode for _, stats in launches for opcode in stats.by_opcode)
    # Warps that hold copies of the narrow S all store it, by one instruction: the same values to the same place.
    hazards = [hazard for _, stats in launches for hazard in stats.hazards]
    assert all(h.kind == "WAW" and h.line == h.other_line and "stmatrix" in h.text for h in hazards), hazards


@pytest.mark.parametrize(
    "case", [replace(case, dtype=BF16) for case in SHAPES if case.r <= 32 and len(case.n) == 1], ids=str
)
def test_shrink_outer(case, ptxsim, monkeypatch):
    monkeypatch.setattr(choose, "fuses", lambda problem, gpu: True)
    inputs = make_inputs(case)
    if case.tensor_scaling:
        inputs.scaling.requires_grad_(False)
    with ptxsim.triton_launches(racecheck="raise", initcheck="raise") as launches:
        assert_correct(inputs, "triton")
    served = case.sample_b or not case.tensor_scaling
    assert ("shrink_outer_kernel" in [name for name, _ in launches]) == served


@pytest.mark.parametrize("dtypes", [(FP32, None), (FP32, BF16), (BF16, FP32), (FP16, None)], ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES[:2])
def test_dtypes(dtypes, strategy, ptxsim, prefer):
    prefer(strategy)
    case = Case(lengths=(21, 0, 30), k=40, n=(33,), r=6, dtype=dtypes[0], factor_dtype=dtypes[1], sample_b=True)
    with ptxsim.triton_launches(racecheck="raise", initcheck="raise"):
        assert_correct(make_inputs(case), "triton")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_sample_does_not_see_its_neighbours(strategy, ptxsim, prefer):
    """inf and NaN in every other sample, tiles that straddle: a sample's output and gradients stay what they are."""
    prefer(strategy)
    inputs = make_inputs(Case(batch=3, sample_b=True, dtype=BF16))
    with ptxsim.triton_launches():
        assert_samples_are_apart(inputs, "triton")


@pytest.mark.parametrize("boundaries", [[0, 5, 5, 90], [-7, 30, 2, 20], [20, 10, 0, -1]], ids=str)
def test_wrong_boundaries_stay_in_bounds(boundaries, ptxsim, prefer):
    """On a GPU nobody reads cu_seqlens back to check it: whatever it holds, nothing outside the tensors is touched."""
    from cora_kernels.backends.triton import strategies

    inputs = make_inputs(Case(lengths=(9, 8, 3), k=16, n=(24,), r=4, dtype=BF16, sample_b=True), requires_grad=False)
    segments = Segments(3, 20, None, torch.tensor(boundaries, dtype=torch.int32))
    operands = inputs.operands()._replace(segments=segments)
    for strategy in STRATEGIES[:3]:
        with ptxsim.triton_launches():
            (y,), (s,) = strategies.forward(inputs.x, operands, strategy=strategy)
            strategies.backward_input([y], operands, True, strategy=strategy)
            strategies.outer(s, y, segments, True, torch.float32)


def test_persistent_grid(ptxsim):
    """Programs that walk many tiles each write the bits that one program a tile writes."""
    from cora_kernels.backends.triton.lowrank_gemm import lowrank_gemm
    from cora_kernels.planning.tile_sizes import GemmConfig

    inputs = make_inputs(Case(lengths=(170, 130), k=32, n=(400,), r=4, dtype=BF16, sample_b=True), requires_grad=False)
    segments = Segments.of(inputs.x, inputs.cu_seqlens)
    s = torch.randn(300, 4)
    config = GemmConfig(16, 16, 32, 4, 2, GROUP_M=4)
    operands = inputs.x, inputs.weights[0].t(), s, inputs.lora_bs[0], segments
    with ptxsim.triton_launches(racecheck="raise") as launches:
        plain = lowrank_gemm(*operands, config)
        persistent = lowrank_gemm(*operands, config._replace(persistent=True))
    assert [stats.ctas for _, stats in launches] == [19 * 25, 108]
    assert torch.equal(plain, persistent)
