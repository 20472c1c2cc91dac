"""The GEMM of tensor descriptors: its sm_90 PTX, executed, TMA and all. No race, nothing read before it is there."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cora_kernels.planning import choose, gpus, tile_sizes
from cora_kernels.planning.gpus import GPUS
from cora_kernels.planning.tile_sizes import GemmConfig
from cora_kernels.planning.versions import has_descriptors
from cora_kernels.segments import Segments
from cora_kernels.testing import SHORT_NAMES, Case, assert_by_rule, assert_correct, make_inputs

pytest.importorskip("triton", reason="Triton is not installed")
if not has_descriptors():
    pytest.skip("this Triton is older than 3.4, which has no descriptors that the host makes", allow_module_level=True)

from cora_kernels.backends.triton import descriptor_gemm as module  # noqa: E402

BF16, FP16 = torch.bfloat16, torch.float16
# The same kernel in tiles that are executed in a second.
SMALL = GemmConfig(64, 64, 64, 4, 2, persistent=True)
# Both directions of each: y reads W as [N, K], dx reads its transpose. Tiles end off K and N, samples inside of tiles.
SHAPES = [
    Case(batch=1, length=1, k=8, n=(8,), r=8, dtype=FP16),
    Case(batch=2, length=65, k=136, n=(200,), r=16),
    Case(batch=1, length=129, k=72, n=(136,), r=8, bias=True),
    Case(batch=3, length=67, k=40, n=(104,), r=24, sample_b=True, bias=True),
    Case(batch=2, length=64, k=72, n=(136,), r=40, sample_b=True, dtype=FP16),
    Case(batch=5, length=3, k=264, n=(16,), r=16, tensor_scaling=True),
    Case(batch=2, length=1, k=8, n=(264,), r=16, sample_b=True),
    Case(batch=1, length=255, k=16, n=(24,), r=64, sample_b=True, dtype=FP16),
    Case(batch=7, length=19, k=48, n=(8,), r=24),
    Case(batch=2, length=127, k=328, n=(72,), r=40, dtype=FP16),
    Case(batch=2, length=128, k=64, n=(256,), r=16, sample_b=True),
    Case(batch=1, length=130, k=520, n=(264,), r=8, sample_b=True, bias=True),
    Case(batch=4, length=33, k=200, n=(328,), r=64, sample_a=False, sample_b=True),
    Case(batch=3, length=31, k=72, n=(120,), r=128, dtype=FP16),
    Case(batch=2, length=63, k=104, n=(88,), r=72, sample_b=True),
    Case(batch=3, length=45, k=136, n=(136,), r=48, sample_a=False, bias=True),
    Case(batch=2, length=33, k=72, n=(40, 136), r=64, one_a=False, sample_b=True),
    Case(batch=2, length=65, k=136, n=(72, 8, 24), r=16, bias=True),
    Case(batch=2, length=65, k=72, n=(72, 40), r=8, one_a=False, dtype=FP16),
    Case(lengths=(70,), k=88, n=(56,), r=16, sample_a=False, dtype=FP16),
    Case(lengths=(33, 2, 0, 65), k=72, n=(136,), r=8, sample_b=True),
    Case(lengths=(1, 1, 1), k=24, n=(72,), r=64, sample_b=True, dtype=FP16),
    Case(lengths=(129, 0, 70, 1), k=136, n=(264,), r=40, sample_b=True),
    Case(lengths=(0, 5, 0, 0, 3, 0), k=16, n=(40,), r=8, sample_b=True, tensor_scaling=True),
    Case(lengths=(128, 64, 192), k=72, n=(136,), r=16, sample_b=True, bias=True, dtype=FP16),
    Case(lengths=(127, 1, 128, 129), k=64, n=(72,), r=24, sample_b=True),
    Case(lengths=(33, 2, 0, 65), k=48, n=(40,), r=8, bias=True),
    Case(lengths=(17, 70, 41), k=72, n=(72, 24), r=40, one_a=False, sample_b=True, dtype=FP16),
    Case(lengths=(2, 3, 4, 5, 6, 7), k=40, n=(48,), r=16, sample_a=False, sample_b=True),
    Case(lengths=(300,), k=128, n=(128,), r=64),
    Case(lengths=(0, 0, 77), k=200, n=(72,), r=24, dtype=FP16, tensor_scaling=True),
    Case(lengths=(1, 140), k=24, n=(520,), r=56, sample_b=True),
]


@pytest.fixture(autouse=True)
def few_multiprocessors(monkeypatch):
    """Every program walks several tiles."""
    monkeypatch.setattr(module, "multiprocessors", lambda device: 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "tile"),
    [
        (case if case.dtype == FP16 else replace(case, dtype=BF16), tile_sizes.descriptor_configs("sm_90")[i % 2])
        for i, case in enumerate(SHAPES)
    ],
    ids=str,
)
def test_shapes(case, tile, prefer, ptxsim, monkeypatch):
    """Outputs and every gradient of whole calls on an H100; the shrink and dA are not the subject here."""
    monkeypatch.setattr(gpus, "gpu_of", lambda device: GPUS["H100"])
    monkeypatch.setattr(choose, "descriptor_configs", lambda arch: (tile,))
    choose.plans.cache_clear()
    prefer("descriptors")
    with ptxsim.triton_launches(target=90, racecheck="raise", initcheck="raise") as launches:
        assert_correct(make_inputs(case), "triton")
    choose.plans.cache_clear()
    stats = [stats for name, stats in launches if name == "descriptor_gemm_kernel"]
    # Of dx of linears that share A one product adds dS·Aᵀ, and the vendor's GEMM the others.
    assert len(stats) == len(case.n) + (1 if case.one_a else len(case.n))
    assert all(one.bulk["loads"] for one in stats)


@dataclass(frozen=True)
class Call:
    """One launch: W and B `by_column` as nn.Linear's [N, K] and dx's Aᵀ lie, a B of each of several samples.

    `padded`: the lengths are all the same, and no cu_seqlens says so. `added`: y is there already.
    """

    lengths: tuple[int, ...]
    k: int
    n: int
    r: int
    dtype: torch.dtype = BF16
    w_by_column: bool = True
    b_by_column: bool = False
    padded: bool = False
    bias: bool = False
    added: bool = False

    def __str__(self) -> str:
        named = [
            f"{'padded' if self.padded else 'packed'}{'_'.join(map(str, self.lengths))}",
            f"K{self.k}",
            f"N{self.n}",
        ]
        flags = [name for name in ("w_by_column", "b_by_column", "bias", "added") if getattr(self, name)]
        return "-".join([*named, f"R{self.r}", SHORT_NAMES[self.dtype], *flags])

    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Segments, Tensor | None, Tensor | None]:
        """x, W, S, B, segments, bias and y."""
        generator = torch.Generator().manual_seed(0)

        def tensor(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return (torch.randn(*shape, generator=generator) * shape[-1] ** -0.25).to(dtype)

        batch, rows = len(self.lengths), sum(self.lengths)
        w = tensor(self.n, self.k).t() if self.w_by_column else tensor(self.k, self.n)
        b = tensor(batch, self.n, self.r).mT if self.b_by_column else tensor(batch, self.r, self.n)
        boundaries = torch.tensor([0, *self.lengths]).cumsum(0).int()
        segments = Segments(batch, rows, self.lengths[0] if self.padded else None, None if self.padded else boundaries)
        return (
            *(tensor(rows, self.k), w, tensor(rows, self.r, dtype=torch.float32), b[0] if batch == 1 else b, segments),
            tensor(self.n) if self.bias else None,
            tensor(rows, self.n) if self.added else None,
        )


def _defined(x, w, s, b, segments, bias, y) -> Tensor:
    """x·w + s·b + bias + y in the dtype of x."""
    boundaries = [i * (segments.length or 0) for i in range(segments.batch + 1)]
    if segments.cu_seqlens is not None:
        boundaries = segments.cu_seqlens.tolist()
    delta = torch.cat([s[i:j] @ (b if b.dim() == 2 else b[n]) for n, (i, j) in enumerate(pairwise(boundaries))])
    return x @ w + delta + sum(t for t in (bias, y) if t is not None)


def _run(ptxsim, operands, tile: GemmConfig = SMALL) -> Tensor:
    *first, bias, y = operands
    with ptxsim.triton_launches(target=90, racecheck="raise", initcheck="raise"):
        return module.descriptor_gemm(*first, tile, bias, None if y is None else y.clone())


@pytest.mark.parametrize(
    "one",
    [
        Call((129,), 136, 200, 16, bias=True),
        Call((65,), 72, 136, 24, FP16, w_by_column=False, b_by_column=True, added=True),
        Call((65, 65), 72, 72, 40, padded=True),
        Call((64, 64), 136, 72, 8, FP16, w_by_column=False, padded=True, bias=True),
        Call((70, 0, 1, 64), 72, 136, 64, w_by_column=False, b_by_column=True),
        Call((1, 66, 3), 8, 72, 24, FP16, bias=True, added=True),
        Call((3, 5), 200, 8, 72, b_by_column=True),
        Call((1,), 8, 8, 8),
    ],
    ids=str,
)
def test_one_launch(one, ptxsim, poison):
    x, w, s, b, segments, bias, y = operands = one.operands()
    exact = _defined(*(t.double() if isinstance(t, Tensor) else t for t in operands))
    usual = _defined(x, w, s.to(one.dtype), b, segments, bias, y)
    assert_by_rule("y", _run(ptxsim, operands), exact, usual, one.dtype)


def test_a_sample_does_not_see_its_neighbours(ptxsim):
    """Tiles of one sample read rows of the next, and a step of 16 goes beyond a rank of 8: not into another's B."""
    x, w, s, b, *rest = Call((5, 70, 3), 24, 40, 8).operands()
    clean = _run(ptxsim, (x, w, s, b, *rest))
    spans = slice(0, 5), slice(5, 75), slice(75, 78)
    for own in (1, 2):
        x_, s_, b_ = x.clone(), s.clone(), b.clone()
        for i in {0, 1, 2} - {own}:
            x_[spans[i]], s_[spans[i]], b_[i] = float("nan"), float("inf"), float("inf")
        assert torch.equal(_run(ptxsim, (x_, w, s_, b_, *rest))[spans[own]], clean[spans[own]])


@pytest.mark.parametrize(
    "boundaries", [[0, 5, 5, 90], [-7, 30, 2, 20], [20, 10, 0, -1], [-300, -200, -100, 20]], ids=str
)
def test_wrong_boundaries_stay_in_bounds(boundaries, ptxsim):
    """The simulator refuses every access outside of the tensors."""
    x, w, s, b, segments, *rest = Call((9, 8, 3), 16, 24, 8, bias=True).operands()
    wrong = segments._replace(cu_seqlens=torch.tensor(boundaries, dtype=torch.int32))
    _run(ptxsim, (x, w, s, b, wrong, *rest))


def test_one_program_a_tile_writes_the_same_bits(ptxsim, monkeypatch):
    operands = Call((70, 60), 72, 136, 16).operands()
    walked = _run(ptxsim, operands)
    monkeypatch.setattr(module, "multiprocessors", lambda device: 108)
    assert torch.equal(_run(ptxsim, operands), walked)


def test_slots_without_rows_walk_no_depth(ptxsim):
    """Two of them, for two empty samples: what they read beyond the others is less than the depth of one tile."""
    moved = []
    for lengths in ((64, 64), (64, 0, 0, 64)):
        x, w, s, b, segments, *_ = Call(lengths, 520, 64, 16).operands()
        with ptxsim.triton_launches(target=90) as launches:
            module.descriptor_gemm(x, w, s, b, segments, SMALL)
        moved.append(launches[0][1].bulk["load_bytes"])
    assert moved[1] - moved[0] < 2 * 520 * (64 + 64)
