"""Global memory traffic of a linear and its backward, counted: against the design's floor, and the eager way's."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from cora_kernels import explain, lora_linear  # noqa: E402
from cora_kernels.backends.triton import strategies  # noqa: E402
from cora_kernels.backends.triton.expand import expand  # noqa: E402
from cora_kernels.planning.tile_sizes import gemm_configs  # noqa: E402
from cora_kernels.segments import Segments  # noqa: E402

SAMPLES, T, K, N, r = 4, 128, 1024, 1024, 16
M = SAMPLES * T


@triton.jit
def add_kernel(a_ptr, b_ptr, out_ptr, scale, BLOCK: tl.constexpr):
    """out = scale·a, + b if there is one."""
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = scale * tl.load(a_ptr + o).to(tl.float32)
    if b_ptr is not None:
        total += tl.load(b_ptr + o).to(tl.float32)
    tl.store(out_ptr + o, total.to(out_ptr.dtype.element_ty))


def _add(a, b=None, scale=1.0):
    out = torch.empty_like(a)
    add_kernel[(a.numel() // 1024,)](a, b, out, scale, BLOCK=1024)
    return out


def _gemm(x, w, segments):
    """x·w by our GEMM in the same tiles, with an S and B of rank 1 that are next to nothing."""
    nothing = torch.zeros(x.shape[0], 1), torch.zeros(1, w.shape[1], dtype=x.dtype)
    return strategies.lowrank_gemm(x, w, *nothing, segments, gemm_configs("sm_80", x.dtype, one_pass=False)[2])


def _eager(x, weight, a, b, g, segments):
    """The kernels of F.linear(x, weight) + scaling * (x @ a) @ b and of its backward."""
    s = strategies.shrink([x], [a], 1.0, segments)
    _add(_gemm(x, weight.t(), segments), _add(expand(s, b, segments, torch.empty_like(g)), scale=0.5))
    scaled = _add(g, scale=0.5)
    ds = strategies.shrink([scaled], [b.t()], 1.0, segments)
    strategies.outer(s, scaled, segments, True, x.dtype)
    strategies.outer(x, ds, segments, True, x.dtype)
    _add(_gemm(g, weight, segments), expand(ds, a.transpose(1, 2), segments, torch.empty_like(x)))


def touched(launches) -> int:
    """Bytes of DRAM where every sector travels once a kernel."""
    return sum(sum(s.unique_read.values()) + sum(s.unique_written.values()) for _, s in launches)


def moved(launches) -> int:
    """Bytes that warps asked of L2, in whole sectors."""
    return sum(32 * (s.global_load["sectors"] + s.global_store["sectors"]) for _, s in launches)


def test_traffic_of_forward_and_backward(ptxsim):
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape):
        return torch.randn(shape, generator=generator).bfloat16()

    x, weight, a, b, g = tensor(SAMPLES, T, K), tensor(N, K), tensor(SAMPLES, K, r), tensor(r, N), tensor(SAMPLES, T, N)
    with ptxsim.triton_launches() as ours:
        leaves = [t.requires_grad_() for t in (x, a, b)]
        torch.autograd.grad(lora_linear(x, weight, a, b, scaling=0.5, backend="triton"), leaves, g)
    with ptxsim.triton_launches() as eager, torch.no_grad():
        _eager(x.view(M, K), weight, a, b, g.view(M, N), Segments(SAMPLES, M, T, None))
    steps = explain((SAMPLES, T, K, N, r), "A100").steps
    assert touched(ours) <= 1.10 * sum(step.bytes for step in steps)
    assert touched(ours) <= 0.65 * touched(eager)

    assert [step.kernels for step in steps[:2]] == [("one pass 64x128x64",)] * 2
    per_tile = 2 * ((64 + 128) * K + (K + 128) * r + 64 * 128)  # of x and W, A and B, y
    gemms = [launch for launch in ours if launch[0] == "lowrank_gemm_kernel"]
    assert moved(gemms) <= 1.10 * 2 * (M // 64 * N // 128 * per_tile + 4 * M * r)
    assert moved(ours) <= moved(eager)


@pytest.mark.parametrize(("samples", "K", "N", "r"), [(4, 2048, 768, 8), (2, 1024, 4096, 16), (28, 1024, 256, 8)])
def test_traffic_of_decode(samples, K, N, r, ptxsim):
    """A and B are all its bytes: each is read from memory once, by loads that are under way while others are used.

    For few samples from L2 too, where it is many programs a sample that ask for them: S is computed once.
    """
    from cora_kernels.backends.triton.decode import decode

    x, a, b = (torch.randn(*shape).bfloat16() for shape in ((samples, K), (samples, K, r), (samples, r, N)))
    with ptxsim.triton_launches(racecheck="raise", initcheck="raise") as launches:
        decode(x, a, b, 1.0, Segments(samples, samples, 1, None))
    floor = 2 * samples * (K + K * r + r * N + N) + 4 * samples * r
    assert touched(launches) <= 1.10 * floor
    assert all(stats.cp_async["requests"] for _, stats in launches)
    once = samples < 108 / 4
    assert [name for name, _ in launches] == ["shrink_kernel"] * once + ["decode_kernel"]
    assert not once or moved(launches) <= 1.10 * floor
