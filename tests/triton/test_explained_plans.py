"""What explain says of a problem, and what it refuses."""

import pytest
import torch

from cora_kernels import explain, use_backend
from cora_kernels.planning import choose
from cora_kernels.planning.cost import Problem
from cora_kernels.planning.gpus import GPUS

BF16 = torch.bfloat16


def test_explain_adds_up():
    found = explain([(8, 1024, 2048, 2048, 16), (16, 150, 576, 1536, 16)], "A100")
    assert [step.product for step in found.steps] == ["y", "dx", "dA", "dB"] * 2
    y, dx, dA, dB = found.steps[:4]
    base = 2 * (8192 * 2048 + 2048 * 2048 + 8192 * 2048)
    s, a, b = 4 * 8192 * 16, 2 * 8 * 2048 * 16, 2 * 2048 * 16
    assert y.strategy == "separate" and y.kernels == ("shrink", "sum of planes", "expand", "vendor GEMM")
    in_planes = 2 * 8192 * 2048 + a + 2 * s, 3 * s
    assert y.bytes == sum(in_planes) + (b + s + 2 * 8192 * 2048) + (base + 2 * 8192 * 2048)
    assert y.floor < y.seconds < 1.5 * y.floor
    assert dA.bytes == 2 * 8192 * 2048 + s + 2 * 2 * a + (2 * 2 * a + a)  # two fp32 planes written, then summed
    assert dB.strategy == "shrink and outer" and dx.strategy == "separate"
    assert "8 x 1024, 2048 -> 2048, r 16" in str(found) and len(str(found).splitlines()) == 2 + 8 + 1


def test_explain_of_a_group_shares_s_and_says_what_a_layer_keeps():
    """A Llama-3-8B layer on an H100: S of q, k and v once, of gate and up once."""
    apart = [(8, 1024, 4096, n, 16) for n in (4096, 1024, 1024)]
    group = (8, 1024, 4096, (4096, 1024, 1024), 16)
    found, alone = explain(group, "H100"), explain(apart, "H100")
    assert [step.product for step in found.steps] == ["y", "dx", "dA", "dB"]
    assert found.steps[0].kernels.count("shrink and copy") == 1 and found.steps[0].kernels.count("vendor GEMM") == 3
    assert found.steps[0].floor == pytest.approx(sum(step.floor for step in alone.steps if step.product == "y"))
    assert alone.kept("y") < found.kept("y") < 1
    assert explain(group[:3] + ((4096,), 16), "H100").kept("y") == explain(apart[0], "H100").kept("y")
    layer = [group, apart[0], (8, 1024, 4096, (14336, 14336), 16), (8, 1024, 14336, 4096, 16)]
    text = str(explain(layer, "H100")).splitlines()[-1]
    assert text.startswith("predicted speed kept of the frozen linears: 0.939 forward, 0.893 with")


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_explain_says_why_the_others_lost(backend):
    (y, _, _, dB), text = (found := explain((8, 1024, 1024, 1024, 16), "A100", backend=backend)).steps, str(found)
    assert {y.strategy, *(name for name, _ in y.others)} == {
        "one_pass",
        "two_kernels",
        "descriptors",
        "separate",
        "decode",
        "concat",
    }
    times = [why for _, why in y.others if isinstance(why, float)]
    assert len(times) == 3 and y.seconds <= min(times)
    assert "decode: samples of up to 8 rows, not packed" in text and "times predicted by the cost rule" in text
    assert len(dB.others) == 1 and dB.others[0][0] in text
    wide = explain((8, 1024, 1024, 1024, 64), "A100", backend=backend)
    assert dict(wide.steps[0].others)["one_pass"] == "up to rank 32"
    assert dict(wide.steps[3].others)["shrink and outer"] == (
        "of Triton alone" if backend == "cuda" else "up to rank 32"
    )


def test_explain_knows_that_the_cuda_gemm_is_another():
    """By its own share of the vendor's rate: on Hopper it has no wgmma."""
    triton, cuda = (
        {name: why for name, why in explain((8, 1024, 4096, 4096, 16), "H100", backend=name).steps[0].others}
        for name in ("triton", "cuda")
    )
    assert cuda["two_kernels"] > 1.4 * triton["two_kernels"]


@pytest.mark.parametrize("device", ["cpu", "H1", "nonsense", None, ["A100"], 99])
def test_explain_names_the_gpus_it_knows(device):
    with pytest.raises(ValueError, match="device must be a GPU that is there or one of A100, A40, .*, got "):
        explain((1, 2, 3, 4, 5), device)


@pytest.mark.parametrize(
    "shape",
    [(1, 2, 3, 4), (1, 2, 3, 4, 0), (1, 2, 3, (), 5), (1, 2, 3, (4, 0), 5), (1, 2, 3, 4, 5.0), (), 5, "shape", None],
)
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
    """With their tiles; dS and dB are apart, and the vendor's GEMM serves where ours is slower: as in "chain"."""
    shapes = [(8, 128, 576, 576, 16), (8, 1024, 14336, 4096, 16), (32, 4, 576, 576, 16)]
    found = explain(shapes, "A100", backend="cuda")
    assert found.backend == "cuda" and "A100, backend cuda" in str(found)
    assert [step.strategy for step in found.steps if step.product == "dB"] == ["outer"] * 3
    assert found.steps[0].kernels == ("one pass 16x128x64",)
    assert found.steps[4].kernels == ("shrink", "expand", "vendor GEMM")
    faster = GPUS["A100"]._replace(gemm_cuda=1.0, fill=0.0)
    problem = Problem(8192, 14336, 4096, 16, 8, 1024, BF16)
    assert choose.choose(problem, faster, "cuda").strategy == "two_kernels"


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
