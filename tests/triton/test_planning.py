"""The cost rule, and what was tuned: no kernel runs here."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cora_kernels import explain, tune
from cora_kernels.planning import choose, cost, gpus, tile_sizes, tuning_file
from cora_kernels.planning.cost import Problem
from cora_kernels.planning.gpus import GPUS
from cora_kernels.planning.tile_sizes import gemm_configs

BF16 = torch.bfloat16


@dataclass(frozen=True)
class Properties:
    name: str
    major: int
    minor: int = 0
    multi_processor_count: int = 100


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory, and no memory of another one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for remembered in (choose.choose, gpus.gpu_of, tuning_file.load):
        remembered.cache_clear()
    yield tmp_path
    for remembered in (choose.choose, gpus.gpu_of, tuning_file.load):
        remembered.cache_clear()


@pytest.fixture
def device(monkeypatch, cache):
    """A GPU of the given properties."""

    def pretend(properties: Properties) -> torch.device:
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        return torch.device("cuda", 0)

    return pretend


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("rank", [16, 32])
def test_one_pass_wins_where_the_written_rule_says(gpu, rank):
    """N·r / BN < matrix rate / bandwidth, tested a factor of two away from equality: waves and tiles come in wholes."""
    for N in (64 * 2**i for i in range(9)):
        problem = Problem(2**20, 1024, N, rank, 2**7, 2**13, BF16)
        found = {plan.strategy: plan for plan in choose.plans(problem, gpu._replace(gemm=1.0, fill=0.0))}
        ratio = (N * rank / found["one_pass"].config.BN) / (gpu.matrix / gpu.bandwidth)
        if ratio < 0.5:
            assert found["one_pass"].seconds < found["two_kernels"].seconds, (N, ratio)
        if ratio > 2:
            assert found["one_pass"].seconds > found["two_kernels"].seconds, (N, ratio)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("samples, length", [(0, 7), (3, 0)])
def test_a_batch_without_rows_has_a_plan(samples, length, backend):
    problem = Problem(0, 24, 40, 4, samples, length, BF16, True, True)
    for gpu in GPUS.values():
        assert all(0 <= plan.seconds < 1 for plan in choose.plans(problem, gpu, backend))


def test_the_vendor_gemm_wins_where_our_gemm_is_slow():
    """Fusing the expand pays only while our GEMM is within 1.3·matrix / (K·bandwidth) of the vendor's."""
    gpu, problem = GPUS["H100"], Problem(2**16, 4096, 4096, 16, 8, 2**13, BF16)
    break_even = 1.3 * gpu.matrix / (4096 * gpu.bandwidth)
    for share, strategy in ((1 - 2 * break_even, "separate"), (1 - break_even / 2, "two_kernels")):
        assert choose.plans(problem, gpu._replace(gemm=share, fill=0.0, exposed=1.0))[0].strategy == strategy


def test_what_the_vendor_gemm_reads_of_y_is_exposed_in_part():
    """beta = 1 reads y in the epilogue: a chain is not free of it, however long its products take."""
    gpu, problem = GPUS["H100"], Problem(8192, 4096, 4096, 16, 8, 1024, BF16, s_given=True)
    y = 2 * 8192 * 4096
    for exposed in (0.3, 1.0):
        found = cost.separate(problem, gpu._replace(exposed=exposed))
        assert found.launches[-1].seconds - cost.floor(problem, gpu).seconds == pytest.approx(
            exposed * y / gpu.bandwidth
        )


def test_our_gemm_is_slower_on_shallow_products():
    gpu = GPUS["H100"]._replace(gemm=0.9, fill=128.0)
    for K in (256, 4096):
        (ours,) = cost.two_kernels(
            Problem(2**15, K, 8192, 16, 8, 2**12, BF16, s_given=True), gpu, gemm_configs("sm_90", BF16, False)[:1]
        ).launches
        (least,) = cost.two_kernels(
            Problem(2**15, K, 8192, 16, 8, 2**12, BF16, s_given=True),
            gpu._replace(gemm=1.0, fill=0.0),
            gemm_configs("sm_90", BF16, False)[:1],
        ).launches
        share = (least.seconds - cost.LAUNCH_SECONDS) / (ours.seconds - cost.LAUNCH_SECONDS)
        assert share == pytest.approx(0.9 / (1 + 128 / K))


@pytest.mark.parametrize("rows", [8, 300, 4096])
def test_planes_are_those_that_the_launcher_makes(rows):
    """Of S, by the split that the launcher takes for so many rows."""
    gpu, problem = GPUS["A100"], Problem(rows, 4096, 1024, 16, 1, rows, BF16, sample_a=False)
    launches = cost.shrink(problem, gpu)
    BM = tile_sizes.shrink_config("sm_80", BF16, rows, 16).BM
    planes = tile_sizes.split_of(-(-rows // BM), 4096 // 128, 108)
    s = 4 * rows * 16
    assert planes > 1 and [launch.kernel for launch in launches] == ["shrink", "sum of planes"]
    assert launches[0].bytes == 2 * rows * 4096 + 2 * 4096 * 16 + planes * s and launches[1].bytes == (planes + 1) * s


def test_few_launches_win_a_small_problem():
    """Below the CPU's time for a launch or two the GPU waits: one pass, though it computes S in every tile again."""
    gpu, small = GPUS["H100"], Problem(8 * 128, 576, 576, 16, 8, 128, BF16)
    found = {plan.strategy: plan for plan in choose.plans(small, gpu)}
    assert choose.plans(small, gpu)[0].strategy == "one_pass" and found["one_pass"].seconds == gpu.host
    assert found["separate"].seconds == sum(launch.host for launch in found["separate"].launches)


def test_a_kernel_is_compiled_once_for_every_batch():
    """What `launch.BATCH_SIZES` names is not specialised: a packed batch is another every time."""
    triton = pytest.importorskip("triton")
    from cora_kernels.backends.triton import (
        decode,
        descriptor_gemm,
        expand,
        launch,
        lowrank_gemm,
        outer,
        shrink,
        shrink_outer,
    )

    for module in (decode, descriptor_gemm, expand, lowrank_gemm, outer, shrink, shrink_outer):
        (kernel,) = [f for name, f in vars(module).items() if name == f"{module.__name__.split('.')[-1]}_kernel"]
        if isinstance(kernel, triton.JITFunction):
            free = {p.name for p in kernel.params if p.do_not_specialize}
            assert set(launch.BATCH_SIZES) & {p.name for p in kernel.params} == free


def test_tiles_of_one_sample_cost_what_they_leave_empty():
    """At 65 rows a sample, one pass fills half of its 64-row tiles or less: it no longer wins."""
    gpu = GPUS["A100"]._replace(gemm=1.0)
    full = Problem(64 * 512, 1024, 512, 16, 512, 64, BF16)
    assert choose.plans(full, gpu)[0].strategy == "one_pass"
    assert choose.plans(full._replace(rows=65 * 512, length=65), gpu)[0].strategy == "two_kernels"


@pytest.mark.parametrize(
    ("properties", "arch"),
    [
        (Properties("NVIDIA A100-SXM4-80GB", 8), "sm_80"),
        (Properties("NVIDIA GeForce RTX 3060", 8, 6), "sm_80"),
        (Properties("NVIDIA H200", 9), "sm_90"),
        (Properties("NVIDIA B300", 10, 3), "sm_100"),
        (Properties("NVIDIA GeForce RTX 5090", 12), "sm_80"),
        (Properties("Tesla T4", 7, 5), "sm_80"),
        (Properties("Of Tomorrow", 17), "sm_80"),
        (Properties("NVIDIA L4", 8, 9), "sm_80"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_an_unknown_gpu_uses_the_nearest_table(properties, arch, device):
    gpu = gpus.gpu_of(device(properties))
    assert gpu.arch == arch and gpu.multiprocessors == 100 and gpu.name == properties.name
    assert choose.plans(Problem(100, 64, 64, 4, 2, 50, BF16), gpu)


@pytest.mark.parametrize(
    ("name", "capability", "part"),
    [
        ("NVIDIA RTX A1000", (8, 6), "RTX 4090"),
        ("NVIDIA GH200 480GB", (9, 0), "GH200"),
        ("NVIDIA L4", (8, 9), "L4"),
        ("NVIDIA L40", (8, 9), "L40"),
        ("NVIDIA L40S", (8, 9), "L40S"),
        ("NVIDIA A10G", (8, 6), "A10"),
        ("NVIDIA H20", (9, 0), "H20"),
        ("NVIDIA A800-SXM4-80GB", (8, 0), "A100"),
        ("NVIDIA GB200", (10, 0), "B200"),
    ],
)
def test_a_gpu_is_known_by_its_whole_name(name, capability, part, device):
    gpu = gpus.gpu_of(device(Properties(name, *capability)))
    assert (gpu.bandwidth, gpu.gemm, gpu.name) == (GPUS[part].bandwidth, GPUS[part].gemm, name)


def test_a_part_with_fewer_multiprocessors_multiplies_less(device):
    gpu = gpus.gpu_of(device(Properties("NVIDIA H100 PCIe", 9, multi_processor_count=114)))
    assert gpu.matrix == pytest.approx(GPUS["H100"].matrix * 114 / 132) and gpu.multiprocessors == 114


def test_what_was_tuned_is_chosen(device):
    gpu_device = device(Properties("NVIDIA H100 80GB HBM3", 9))
    problem = Problem(8192, 4096, 4096, 16, 8, 1024, BF16)
    assert choose.choose(problem, gpus.gpu_of(gpu_device), "triton").strategy == "separate"
    tile = gemm_configs("sm_90", BF16, False)[1]._replace(persistent=True)
    saved = {"strategy": "two_kernels", "config": tile, "seconds": 1e-4}
    tuning_file.save("NVIDIA H100 80GB HBM3", {"gemm": 0.9}, {choose.key_of(problem): saved})
    for remembered in (choose.choose, gpus.gpu_of):
        remembered.cache_clear()
    gpu = gpus.gpu_of(gpu_device)
    assert gpu.gemm == 0.9
    near = problem._replace(rows=8 * 1000, length=1000)
    for one in (problem, near):
        assert (
            choose.choose(one, gpu, "triton").strategy == "two_kernels"
            and choose.choose(one, gpu, "triton").config == tile
        )
    assert choose.choose(problem, gpu, "triton", "separate").strategy == "separate"
    assert (
        choose.choose(problem._replace(inputs=4095), gpu, "triton")
        == choose.plans(problem._replace(inputs=4095), gpu)[0]
    )


def test_saving_adds_to_what_is_there(cache):
    one = {"strategy": "separate", "config": None, "seconds": 1e-5}
    tuning_file.save("X", {"gemm": 0.5, "matrix": 1.0}, {"a": one})
    tuning_file.save("X", {"gemm": 0.6}, {"b": one | {"strategy": "decode"}})
    found = tuning_file.load("X")
    assert found["gpu"] == {"gemm": 0.6, "matrix": 1.0} and set(found["strategies"]) == {"a", "b"}
    assert [path.name for path in (cache / "cora_kernels").iterdir()] == ["X.json"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        json.dumps({"format": 0}),
        json.dumps({"gpu": {}}),
        json.dumps({"format": 1}),
        json.dumps({"format": 2}),
        json.dumps({"format": tuning_file.FORMAT}),
        *(
            json.dumps({"format": tuning_file.FORMAT, "versions": versions, "gpu": rates, "strategies": strategies})
            for versions, rates, strategies in (
                ({"triton": "3.1.0", "torch": torch.__version__}, {}, {}),
                (tuning_file.versions(), {"gemm": -1.0}, {}),
                (tuning_file.versions(), {"gemm": float("nan")}, {}),
                (tuning_file.versions(), {"speed": 1.0}, {}),
                (tuning_file.versions(), [], {}),
                (tuning_file.versions(), {}, {"k": {"strategy": "fast", "config": None, "seconds": 1.0}}),
                (tuning_file.versions(), {}, {"k": {"strategy": "separate", "config": None, "seconds": "1"}}),
                (tuning_file.versions(), {}, {"k": {"strategy": "two_kernels", "config": None, "seconds": 1.0}}),
                (tuning_file.versions(), {}, {"k": {"strategy": "two_kernels", "config": [128], "seconds": 1.0}}),
                (tuning_file.versions(), {}, {"k": "separate"}),
            )
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_reported_and_the_rule_holds(content, device):
    gpu_device = device(Properties("NVIDIA H100", 9))
    path = tuning_file.path_of("NVIDIA H100")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.warns(UserWarning, match="run python -m cora_kernels.tune"):
        gpu = gpus.gpu_of(gpu_device)
    assert gpu.gemm == GPUS["H100"].gemm


def test_a_tuning_file_says_what_it_was_measured_with(cache):
    """Another Triton compiles other kernels: what one was timed with is not taken for the other."""
    path = tuning_file.save("X", {"gemm": 0.5}, {})
    assert tuning_file.load("X")["gpu"] == {"gemm": 0.5}
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"versions": found["versions"] | {"triton": "3.1.0"}}))
    tuning_file.load.cache_clear()
    with pytest.warns(UserWarning, match=r"was measured with triton 3.1.0, torch .*, here is triton .*run python -m"):
        assert tuning_file.load("X") == {"gpu": {}, "strategies": {}}


def test_tuning_needs_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    with pytest.raises(SystemExit, match="needs a GPU: none is there"):
        tune.main([])


def test_concat_where_the_group_is_wider_than_its_input():
    """For q, k and v, gate and up; not for down, nor where each sample has a B of its own."""

    def strategies(K, N, **more):
        return explain((8, 1024, K, N, 16), "H100", backend="triton", **more).steps[0].strategy

    assert strategies(4096, (4096, 1024, 1024)) == strategies(4096, (14336, 14336)) == "concat"
    assert strategies(14336, 4096) == strategies(4096, (14336, 14336), sample_b=True) == "separate"
    found = explain((8, 1024, 4096, (14336, 14336), 16), "H100", backend="triton", sample_b=True).steps[0]
    assert dict(found.others)["concat"] == "B is each sample's own"


def test_one_read_of_g_serves_both_where_that_is_faster():
    """Not where one pass computes dS on its way."""
    wide = Problem(8192, 14336, 4096, 16, 8, 1024, BF16, sample_a=False, sample_b=True)
    assert choose.fuses(wide, GPUS["A100"]) and choose.fuses(wide._replace(outputs=0), GPUS["A100"])
    assert not choose.fuses(Problem(8192, 1024, 128, 16, 8, 1024, BF16), GPUS["A100"])


def test_the_limits_are_those_of_the_cuda_kernels():
    """They stand in two languages: Python decides by them, and C++ refuses what is beyond them."""
    folder = Path(__file__).parents[2] / "csrc" / "cuda"
    text = "".join((folder / name).read_text() for name in ("decode.h", "lowrank_gemm.h", "lowrank_gemm.cu"))
    limits = {name: int(value) for name, value in re.findall(r"constexpr int (k\w+) = (\d+);", text)}
    assert limits["kDecodeRows"] == tile_sizes.DECODE_LENGTH
    assert limits["kDecodeRank"] == tile_sizes.DECODE_RANK
    assert limits["kOnePassRank"] == tile_sizes.ONE_PASS_RANK
    for name, rank in (("kSizes", 16), ("kSizesBesideWideS", 17)):
        sizes = re.search(rf"Size {name}\[\] = {{(.*)}};", text)[1]
        expected = [[tile.BM, tile.BN] for tile in tile_sizes.cuda_gemm_configs(rank)]
        assert [[int(n) for n in pair] for pair in re.findall(r"{(\d+), (\d+)}", sizes)] == expected
