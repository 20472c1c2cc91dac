"""The kernels as machine code for two parts that need not be there, and what they move, counted launch by launch."""

import re

import pytest
import table
import torch

ops = torch.ops.cora_kernels
slow = pytest.mark.slow


@pytest.fixture(params=[80, 90], ids=lambda arch: f"sm_{arch}")
def arch(request) -> int:
    return request.param


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_no_spills_and_two_blocks_a_multiprocessor(arch, dtype, simulator):
    used = {}
    for ptx in simulator.ptx.values():
        used |= simulator.ptxsim.resource_usage(ptx, arch)
    kernels = list(table.launched(simulator, dtype))
    for label, kernel, threads, shared in kernels:
        found = used[kernel]
        assert found.spill_stores == found.spill_loads == found.stack == 0, label
        assert found.occupancy(threads, shared).blocks_per_sm >= 2, label
    named = {kernel for _, kernel, _, _ in kernels}
    letters = {torch.bfloat16: "13__nv_bfloat16", torch.float16: "6__half"}[dtype]
    assert {kernel for kernel in used if letters in kernel} <= named, "a kernel that the launchers never choose"


def tile(BM, BN, R, backward):
    return f"Li{BM}ELi{BN}ELi.*ELi{R}ELb{int(backward)}E"


@pytest.mark.parametrize(
    ("stem", "kernel"),
    [
        ("lowrank_gemm", tile(128, 128, 16, False)),
        pytest.param("lowrank_gemm", tile(128, 128, 16, True), marks=slow),
        ("lowrank_gemm", tile(128, 128, 0, True)),
        pytest.param("lowrank_gemm", tile(64, 128, 32, False), marks=slow),
        ("shrink", "Li64ELi16ELb0E"),
        ("outer", "12outer_kernel.*Li16E"),
        ("decode", "Li1E"),
    ],
)
def test_machine_code(stem, kernel, simulator):
    """Tensor cores, 16 bytes a thread from global to shared memory and back, nothing in local memory."""
    (name,) = [
        n for n in re.findall(r"\.entry\s+(\w+)", simulator.ptx[stem]) if "bfloat16" in n and re.search(kernel, n)
    ]
    lines = [
        line
        for line in table.sass(simulator.ptx[stem], name, 80).split("\n")
        if re.match(r"\s+/\*[0-9a-f]{4,}\*/", line)
    ]

    def count(pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in lines)

    assert not count(r"\b(LDL|STL)\b")
    if stem == "decode":
        assert count(r"\bLDG\.E\.128") >= 8 and count(r"\bSTG\.E\.128")
        return
    assert count(r"\bHMMA\.16816\.F32\.BF16") and not count(r"\bHMMA\.(?!16816\.F32)")
    assert count(r"\bLDGSTS\.E\.BYPASS.*128") and not count(r"\bLDGSTS\.(?!E\.BYPASS.*128)")
    assert count(r"\bLDSM\.16\.M.*\b4\b")
    if stem == "lowrank_gemm":
        assert count(r"\bSTG\.E\.128")


def moved(stats) -> int:
    """Bytes that warps asked of L2, in whole sectors."""
    return 32 * (stats.global_load["sectors"] + stats.global_store["sectors"])


def touched(stats) -> int:
    """Bytes of DRAM where every sector travels once."""
    return sum(stats.unique_read.values()) + sum(stats.unique_written.values())


M, K, N, T, r = 256, 768, 256, 128, 16


@pytest.fixture
def operands():
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape):
        return torch.randn(shape, generator=generator).bfloat16()

    return tensor(M, K), tensor(N, K), tensor(M // T, K, r), tensor(r, N)


@pytest.mark.parametrize("backward", [False, True], ids=["y", "dx"])
@pytest.mark.parametrize("strategy", ["one_pass", "two_kernels"])
def test_traffic_of_the_gemm(strategy, backward, operands, simulator):
    """Each block its rows of x, its columns of W, A and B once, and y; no bank conflict."""
    x, w, a, b = operands
    with simulator.running(multiprocessors=1) as launches:
        if backward:
            ops.cuda_backward_input(
                [x],
                [w.t().contiguous().clone()],
                [b.t().contiguous()],
                [a.transpose(1, 2).contiguous()],
                None,
                1.0,
                None,
                M // T,
                1,
                [],
                [strategy],
            )
        else:
            ops.cuda_forward(x, [w], [a], [b], [None], None, 1.0, None, M // T, [], [strategy])
    kernel, stats = launches[-1]
    assert kernel == "lowrank_gemm" and "Li128ELi128E" in stats.kernel
    per_block = 2 * (128 + 128) * K + 2 * r * 128 + 2 * 128 * 128
    per_block += 2 * r * K if strategy == "one_pass" else 4 * 128 * r
    s = 4 * M * r if strategy == "one_pass" else 0
    assert moved(stats) <= 1.10 * (4 * per_block + s)
    least = 2 * (M * K + N * K + r * N + M * N) + 4 * M * r + (2 * M // T * r * K if strategy == "one_pass" else 0)
    assert touched(stats) <= 1.10 * least
    assert stats.shared_conflict_factor <= 1.02


@pytest.mark.parametrize("inner_is_depth", [False, True], ids=["S", "dS"])
def test_traffic_of_the_shrink(inner_is_depth, operands, simulator):
    x, _, a, _ = operands
    if inner_is_depth:
        a = a.transpose(1, 2).contiguous().transpose(1, 2)
    with simulator.running(multiprocessors=1) as launches:
        ops.cuda_shrink(x, a, None, 1.0, None, M // T)
    ((_, stats),) = launches
    assert moved(stats) <= 1.10 * (2 * M * K + M // 64 * 2 * K * r + 4 * M * r)
    assert touched(stats) <= 1.10 * (2 * M * K + M // T * 2 * K * r + 4 * M * r)
    assert stats.shared_conflict_factor <= 1.02


@pytest.mark.parametrize("rank_first", [False, True], ids=["dA", "dB"])
def test_traffic_of_the_outer_product(rank_first, simulator):
    cols, found = 256, []
    for rows in (512, 1024):
        wide, narrow = torch.randn(rows, cols).bfloat16(), torch.randn(rows, r)
        with simulator.running(multiprocessors=1) as launches:
            pair = (narrow, wide) if rank_first else (wide, narrow)
            ops.cuda_outer(*pair, None, 2, True, torch.bfloat16)
        ((_, stats),) = launches
        assert moved(stats) <= 1.10 * (2 * rows * cols + cols // 128 * 4 * rows * r + 2 * 2 * cols * r)
        assert touched(stats) <= 1.10 * (2 * rows * cols + 4 * rows * r + 2 * 2 * cols * r)
        found.append(stats.shared_load + stats.shared_store)
    # What more rows add is the main loop's.
    short, long = found
    assert long["wavefronts"] - short["wavefronts"] <= 1.02 * (long["ideal"] - short["ideal"])


def test_traffic_of_decode(simulator):
    batch, K, N = 2, 1024, 4096
    x, a, b = (torch.randn(shape).bfloat16() for shape in ((batch, K), (batch, K, r), (batch, r, N)))
    w = torch.zeros(N, K).bfloat16()
    with simulator.running() as launches:
        ops.cuda_forward(x, [w], [a], [b], [None], None, 1.0, None, batch, [], ["decode"])
    ((kernel, stats),) = launches
    pieces = 2
    assert kernel == "decode" and stats.ctas == batch * pieces
    assert moved(stats) <= 1.10 * batch * (pieces * (2 * K * r + 2 * K) + 2 * r * N + 2 * N + 4 * r)
    assert touched(stats) <= 1.10 * batch * (2 * K * r + 2 * K + 2 * r * N + 2 * N + 4 * r)
