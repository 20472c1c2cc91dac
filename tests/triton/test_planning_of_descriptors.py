"""When the GEMM of tensor descriptors is a plan, what the others are told, and what it is taken to cost."""

import pytest
import torch

from cora_kernels import explain
from cora_kernels.planning import choose, cost, gpus, tuning_file, versions
from cora_kernels.planning.cost import Problem
from cora_kernels.planning.gpus import GPUS
from cora_kernels.planning.tile_sizes import descriptor_configs
from cora_kernels.segments import Segments

BF16 = torch.bfloat16
H100 = GPUS["H100"]
PROBLEM = Problem(8192, 4096, 4096, 16, 8, 1024, BF16)


@pytest.fixture(autouse=True)
def newest_triton(monkeypatch):
    """The plans of another version are not remembered."""

    def installed(version: tuple[int, int] | None) -> None:
        monkeypatch.setattr(versions, "triton_version", lambda: version)
        choose.plans.cache_clear()

    installed((3, 9))
    yield installed
    choose.plans.cache_clear()


@pytest.mark.parametrize(
    ("part", "backend", "changes", "reason"),
    [
        ("H100", "cuda", {}, "of Triton alone"),
        ("A100", "triton", {}, "on Hopper and data-centre Blackwell"),
        ("RTX 5090", "triton", {}, "on Hopper and data-centre Blackwell"),
        ("MI300X", "triton", {}, "on Hopper and data-centre Blackwell"),
        ("H100", "triton", {"dtype": torch.float32}, "bfloat16 and float16"),
        ("H100", "triton", {"inputs": 4100}, "K, N and r in multiples of 8"),
        ("H100", "triton", {"outputs": 4095}, "K, N and r in multiples of 8"),
        ("B200", "triton", {"rank": 12}, "K, N and r in multiples of 8"),
        ("H200", "triton", {"described": False}, "x, W and B of one dtype, in rows of whole 16 bytes"),
    ],
)
def test_who_is_excluded_is_told_why(part, backend, changes, reason):
    problem = PROBLEM._replace(**changes)
    assert choose.reasons(problem, GPUS[part], backend)["descriptors"] == reason
    assert "descriptors" not in [plan.strategy for plan in choose.plans(problem, GPUS[part], backend)]
    assert choose.choose(problem, GPUS[part], backend, "descriptors") == choose.choose(problem, GPUS[part], backend)


@pytest.mark.parametrize("version", [(3, 2), (3, 3), (3, 4), (3, 10), None])
def test_an_older_triton_has_none(version, newest_triton):
    newest_triton(version)
    reason = choose.reasons(PROBLEM, H100, "triton").get("descriptors")
    assert reason == ("Triton 3.4 or later" if version in ((3, 2), (3, 3)) else None)


@pytest.mark.parametrize("part", ["H100", "GH200", "H200", "H20", "B200"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"sample_b": True}, {"length": None, "sample_b": True}, {"rank": 8}, {"s_given": True, "added": True}],
    ids=str,
)
def test_it_is_a_plan_of_these_parts(part, changes):
    problem = PROBLEM._replace(**changes)
    plan = choose.choose(problem, GPUS[part], "triton", "descriptors")
    assert plan.strategy == "descriptors" and plan.config in descriptor_configs(GPUS[part].arch)
    assert [launch.kernel for launch in plan.launches][-1] == "descriptor GEMM" and plan.config.persistent


def test_explain_says_what_it_would_cost():
    y = explain((8, 1024, 4096, 4096, 16), "H100", sample_b=True).steps[0]
    assert (
        dict(y.others)["descriptors"]
        == choose.choose(PROBLEM._replace(sample_b=True), H100, "triton", "descriptors").seconds
    )
    assert "descriptors: bfloat16 and float16" in str(explain((8, 64, 64, 64, 8), "H100", dtype=torch.float32))
    assert "descriptors: of Triton alone" in str(explain((8, 64, 64, 64, 8), "H100", backend="cuda"))


def test_it_costs_what_its_rate_says():
    """The pointer GEMM at that rate over whole tiles, and more of the CPU."""
    one = PROBLEM._replace(s_given=True)
    (launch,) = cost.descriptors(one, H100, descriptor_configs("sm_90")).launches
    rates = H100._replace(gemm=H100.gemm_descriptors, fill=H100.fill_descriptors)
    (pointers,) = cost.two_kernels(one, rates, descriptor_configs("sm_90")).launches
    assert launch.seconds == pytest.approx(pointers.seconds) and launch.bytes == pointers.bytes
    assert launch.host > pointers.host


def test_tiles_of_one_sample_cost_what_they_leave_empty():
    """129 rows a sample fill half of two tiles, where B is each sample's own; A is no matter of this kernel."""
    full = Problem(64 * 128, 4096, 4096, 16, 64, 128, BF16, s_given=True)
    over = full._replace(rows=64 * 129, length=129)
    tiles = descriptor_configs("sm_90")
    shared = [cost.descriptors(one, H100, tiles).seconds for one in (full, over)]
    own = [cost.descriptors(one._replace(sample_b=True), H100, tiles).seconds for one in (full, over)]
    assert own[0] == pytest.approx(shared[0], rel=0.01)
    assert own[1] > 1.8 * own[0] and shared[1] < 1.1 * shared[0]


def test_nobody_timed_it_so_the_vendor_keeps_its_place():
    """For the linears of large models and of small ones; at the rate of the vendor's GEMM it would be chosen."""
    for part in ("H100", "H200", "B200"):
        for inputs, outputs in ((2048, 2048), (4096, 4096), (4096, 14336), (14336, 4096)):
            for problem in (PROBLEM, PROBLEM._replace(sample_a=False, sample_b=True)):
                one = problem._replace(inputs=inputs, outputs=outputs)
                assert choose.choose(one, GPUS[part], "triton").strategy == "separate"
                measured = GPUS[part]._replace(gemm_descriptors=1.0, fill_descriptors=1.0)
                assert choose.choose(one, measured, "triton").strategy == "descriptors"


def test_what_was_tuned_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for remembered in (choose.choose, tuning_file.load):
        remembered.cache_clear()
    tile = descriptor_configs("sm_90")[1]
    saved = {"strategy": "descriptors", "config": tile, "seconds": 1e-4}
    tuning_file.save("H100", {"gemm_descriptors": 0.95}, {choose.key_of(PROBLEM): saved})
    plan = choose.choose(PROBLEM, H100, "triton")
    assert (plan.strategy, plan.config) == ("descriptors", tile)
    assert tuning_file.load("H100")["gpu"] == {"gemm_descriptors": 0.95}
    # What descriptors cannot read goes by the rule, whatever was tuned for such sizes.
    assert choose.choose(PROBLEM._replace(described=False), H100, "triton").strategy != "descriptors"
    for remembered in (choose.choose, gpus.gpu_of, tuning_file.load):
        remembered.cache_clear()


def _matrix(rows: int, columns: int, offset: int = 0, stride: int = 0) -> torch.Tensor:
    stride = stride or columns
    return torch.zeros(offset + rows * stride, dtype=BF16)[offset:].as_strided((rows, columns), (stride, 1))


@pytest.mark.parametrize(
    ("view", "described"),
    [
        (_matrix(5, 16), True),
        (_matrix(5, 16).t(), True),
        (_matrix(5, 16, offset=8), True),
        (_matrix(5, 16, offset=4), False),
        (_matrix(5, 16, stride=24), True),
        (_matrix(5, 16, stride=20), False),
        (_matrix(5, 16)[:1].expand(5, 16), False),
        (_matrix(5, 16)[:, :1].expand(5, 16), False),
        (_matrix(5, 32)[:, ::2], False),
        (torch.zeros(64, dtype=BF16).as_strided((5, 16), (1, 1)), False),
        (torch.zeros(0, 16, dtype=BF16), False),
        (torch.zeros(3, 8, 16, dtype=BF16), True),
        (torch.zeros(3, 16, 8, dtype=BF16).mT, True),
        (torch.zeros(3, 16, 12, dtype=BF16).mT, False),
        (torch.zeros(8, 3, 16, dtype=BF16).transpose(0, 1), True),
        (torch.zeros(8, 16, dtype=BF16).expand(3, 8, 16), False),
    ],
    ids=lambda value: f"{list(value.shape)}-{value.stride()}" if isinstance(value, torch.Tensor) else str(value),
)
def test_what_a_descriptor_can_read(view, described):
    assert choose.is_described(view) == described


def test_a_problem_knows_how_its_operands_lie():
    x, w, a, b = (torch.zeros(shape, dtype=BF16) for shape in ((6, 24), (40, 24), (24, 8), (2, 8, 40)))
    segments = Segments(2, 6, 3, None)

    def described(x: torch.Tensor = x, w: torch.Tensor = w, b: torch.Tensor = b) -> bool:
        return choose.problem_of(x, w.t(), a, b, 1.0, segments, s_given=False, added=False).described

    assert described() and described(w=torch.zeros(24, 40, dtype=BF16).t())
    assert not described(x=torch.zeros(6, 25, dtype=BF16)[:, 1:])
    assert not described(w=torch.zeros(40, 25, dtype=BF16)[:, :24])
    assert not described(b=b.float()) and not described(b=torch.zeros(2, 8, 44, dtype=BF16)[:, :, :40])
