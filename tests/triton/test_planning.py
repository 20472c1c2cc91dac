"""The cost rule, what was tuned, and explain: no kernel runs here."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cora_kernels import explain, tune, use_backend
from cora_kernels.planning import choose, gpus, tile_sizes, tuning_file
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
        found = {plan.strategy: plan for plan in choose.plans(problem, gpu._replace(gemm=1.0))}
        ratio = (N * rank / found["one_pass"].config.BN) / (gpu.matrix / gpu.bandwidth)
        if ratio < 0.5:
            assert found["one_pass"].seconds < found["two_kernels"].seconds, (N, ratio)
        if ratio > 2:
            assert found["one_pass"].seconds > found["two_kernels"].seconds, (N, ratio)


def test_the_vendor_gemm_wins_where_our_gemm_is_slow():
    """Fusing the expand pays only while our GEMM is within 1.3·matrix / (K·bandwidth) of the vendor's."""
    gpu, problem = GPUS["H100"], Problem(2**16, 4096, 4096, 16, 8, 2**13, BF16)
    break_even = 1.3 * gpu.matrix / (4096 * gpu.bandwidth)
    for share, strategy in ((1 - 2 * break_even, "separate"), (1 - break_even / 2, "two_kernels")):
        assert choose.plans(problem, gpu._replace(gemm=share))[0].strategy == strategy


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
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_an_unknown_gpu_uses_the_nearest_table(properties, arch, device):
    gpu = gpus.gpu_of(device(properties))
    assert gpu.arch == arch and gpu.multiprocessors == 100 and gpu.name == properties.name
    assert choose.plans(Problem(100, 64, 64, 4, 2, 50, BF16), gpu)


def test_a_gpu_is_not_known_by_a_part_of_its_name(device):
    assert gpus.gpu_of(device(Properties("NVIDIA RTX A1000", 8, 6))).bandwidth == GPUS["RTX 4090"].bandwidth


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
    tuning_file.save("X", {"gemm": 0.5, "matrix": 1.0}, {"a": {"strategy": "separate"}})
    tuning_file.save("X", {"gemm": 0.6}, {"b": {"strategy": "decode"}})
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


def test_tuning_needs_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    with pytest.raises(SystemExit, match="needs a GPU: none is there"):
        tune.main([])


def test_explain_adds_up():
    found = explain([(8, 1024, 2048, 2048, 16), (16, 150, 576, 1536, 16)], "A100")
    assert [step.product for step in found.steps] == ["y", "dx", "dA", "dB"] * 2
    y = found.steps[0]
    assert y.strategy == "two_kernels" and y.kernels[0] == "shrink" and y.kernels[1].startswith("low-rank GEMM ")
    base = 2 * (8192 * 2048 + 2048 * 2048 + 8192 * 2048)
    s, a, b = 4 * 8192 * 16, 2 * 8 * 2048 * 16, 2 * 2048 * 16
    assert y.bytes == (2 * 8192 * 2048 + a + s) + (base + s + b)
    assert y.floor < y.seconds < 1.5 * y.floor
    dx, dA, dB = found.steps[1:4]
    assert dA.bytes == 2 * 8192 * 2048 + s + a
    assert dB.strategy == "shrink and outer" and dB.bytes == 2 * 8192 * 2048 + 2 * b + 2 * s + 2 * 2048 // 256 * s
    assert dx.strategy == "two_kernels" and dx.bytes == base + s + a
    assert "8 x 1024, 2048 -> 2048, r 16" in str(found) and len(str(found).splitlines()) == 2 + 8


def test_one_read_of_g_serves_both_where_that_is_faster():
    """Not where one pass computes dS on its way."""
    wide = Problem(8192, 14336, 4096, 16, 8, 1024, BF16, sample_a=False, sample_b=True)
    assert choose.fuses(wide, GPUS["A100"]) and choose.fuses(wide._replace(outputs=0), GPUS["A100"])
    assert not choose.fuses(Problem(8192, 1024, 128, 16, 8, 1024, BF16), GPUS["A100"])


@pytest.mark.parametrize("device", ["cpu", "H1", "nonsense", None, ["A100"], 99])
def test_explain_names_the_gpus_it_knows(device):
    with pytest.raises(ValueError, match="device must be a GPU that is there or one of A100, L40S, .*, got "):
        explain((1, 2, 3, 4, 5), device)


@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (1, 2, 3, 4, 0), (1, 2, 3, 4, 5.0), (), 5, "shape", None])
def test_explain_wants_five_positive_integers(shape):
    with pytest.raises(ValueError, match="shapes must be .B, T, K, N, r., five positive integers, got "):
        explain([shape], "A100")
    with pytest.raises(ValueError, match="five positive integers, got "):
        explain(shape, "A100")


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, "bfloat16"])
def test_explain_wants_a_dtype_that_kernels_have(dtype):
    with pytest.raises(ValueError, match="dtype must be one of torch.float32, torch.bfloat16, torch.float16, got "):
        explain((1, 2, 3, 4, 5), "A100", dtype=dtype)


def test_explain_of_the_cuda_kernels():
    """By the rule of those kernels, with their tiles; dS and dB are apart."""
    found = explain(
        [(8, 1024, 1024, 1024, 16), (8, 1024, 2048, 2048, 16), (32, 4, 576, 576, 16)], "A100", backend="cuda"
    )
    assert found.backend == "cuda" and "A100, backend cuda" in str(found)
    assert [step.strategy for step in found.steps if step.product == "y"] == ["one_pass", "two_kernels", "decode"]
    assert [step.strategy for step in found.steps if step.product == "dB"] == ["outer"] * 3
    assert found.steps[0].kernels == ("one pass 128x128x32",)
    assert found.steps[4].kernels == ("shrink", "low-rank GEMM 128x128x32")
    assert found.steps[8].kernels == ("decode", "vendor GEMM")


def test_explain_takes_the_backend_that_serves():
    shape = (8, 1024, 2048, 2048, 16)
    assert explain(shape, "A100", backend="triton") == explain(shape, "A100")
    with use_backend("cuda"):
        assert explain(shape, "A100") == explain(shape, "A100", backend="cuda")
    with use_backend("chain"):
        assert explain(shape, "A100").backend == "triton"


@pytest.mark.parametrize(
    ("device", "options", "message"),
    [
        ("A100", {"backend": "chain"}, "backend must be one of 'triton', 'cuda', got 'chain'"),
        (
            "MI300X",
            {"backend": "cuda"},
            "backend must be 'triton' on MI300X, got 'cuda', whose kernels are for NVIDIA GPUs",
        ),
        (
            "A100",
            {"backend": "cuda", "dtype": torch.float32},
            "dtype must be one of torch.bfloat16, torch.float16, got ",
        ),
    ],
)
def test_explain_refuses_what_a_backend_does_not_have(device, options, message):
    with pytest.raises(ValueError, match=message):
        explain((1, 2, 3, 4, 5), device, **options)


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
