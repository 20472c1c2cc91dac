"""explain: which kernels would run a shape on a GPU, and what they cost by the cost rule against the frozen linear."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch

from cora_kernels import dispatch
from cora_kernels.planning import cost
from cora_kernels.planning.choose import DTYPES, choose, fuses, measured_for, plans, reasons, why_not_fused
from cora_kernels.planning.cost import Launch, Problem, floor
from cora_kernels.planning.gpus import GPUS, Gpu, gpu_of

Shape = tuple[int, int, int, int, int]


class Step(NamedTuple):
    """One product of a training step. `floor` is the time of the frozen linear's own GEMM, 0 where it has none.

    `others`: of each strategy that was not chosen, its predicted time in seconds, or why it cannot run the product.
    """

    shape: Shape
    product: str
    strategy: str
    kernels: tuple[str, ...]
    bytes: int
    operations: int
    seconds: float
    floor: float
    others: tuple[tuple[str, float | str], ...]


class Explanation(NamedTuple):
    """Prints as a table. Its times are those of the cost rule: predicted, not measured."""

    gpu: str
    backend: str
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.gpu}, backend {self.backend}, times predicted by the cost rule",
            f"{'B x T, K -> N, r':<32}{'':4}{'MB':>9}{'GFLOP':>10}{'us':>9}{'floor':>9}  kernels",
        ]
        for step in self.steps:
            B, T, K, N, r = step.shape
            figures = f"{step.bytes / 1e6:9.2f}{step.operations / 1e9:10.2f}"
            figures += f"{step.seconds * 1e6:9.1f}{step.floor * 1e6:9.1f}"
            named = f"{f'{B} x {T}, {K} -> {N}, r {r}':<32}{step.product:<4}"
            lines.append(f"{named}{figures}  {' + '.join(step.kernels)}{_against(step)}")
        return "\n".join(lines)


def explain(
    shapes: Shape | Sequence[Shape],
    device: torch.device | str = "cuda",
    *,
    dtype: torch.dtype = torch.bfloat16,
    sample_a: bool = True,
    sample_b: bool = False,
    backend: str | None = None,
) -> Explanation:
    """Which kernels run each product of y = x·Wᵀ + s·(x·A)·B and its backward on a GPU, and their predicted cost.

    shapes: (B, T, K, N, r), or several; x [B, T, K], y [B, T, N], A of each sample or shared, B likewise.
    device: a CUDA or ROCm device, with what `python -m cora_kernels.tune` measured on it, or the name of a GPU that
    need not be there: A100, A40, A10, L4, L40, L40S, RTX 3090, RTX 4090, RTX 5090, H100, GH200, H200, H20, B200 or
    MI300X.
    backend: "triton" or "cuda"; None takes that of `use_backend`, else the one that serves calls on a GPU here, else,
    where there is none, the preferred one, "triton".
    Bytes are those of DRAM, each operand of a kernel once; times are the model's, of eager calls one after another. The
    result prints as a table, in which every product names the strategies that it is not run by, and why not.

    Raises ValueError for a device that is neither, for shapes that are not five positive integers, for a dtype that the
    backend does not serve, and for another backend or one that has no kernels for the GPU.
    """
    gpu = _gpu(device)
    name = dispatch.gpu_backend(backend)
    if name == "cuda" and gpu.arch.startswith("gfx"):
        raise ValueError(f"backend must be 'triton' on {gpu.name}, got 'cuda', whose kernels are for NVIDIA GPUs")
    if dtype not in DTYPES[name]:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES[name]))}, got {dtype!r}")
    nested = isinstance(shapes, Sequence) and len(shapes) > 0 and isinstance(shapes[0], Sequence)
    several = cast(Sequence[Shape], shapes if nested else [shapes])
    steps = (step for shape in several for step in _steps(shape, gpu, name, dtype, sample_a, sample_b))
    return Explanation(gpu.name, name, tuple(steps))


def _steps(shape: Shape, gpu: Gpu, backend: str, dtype: torch.dtype, sample_a: bool, sample_b: bool) -> Iterator[Step]:
    if not isinstance(shape, Sequence) or len(shape) != 5 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"shapes must be (B, T, K, N, r), five positive integers, got {shape!r}")
    B, T, K, N, r = shape
    forward = Problem(B * T, K, N, r, B, T, dtype, sample_a, sample_b)
    backward = Problem(B * T, N, K, r, B, T, dtype, sample_b, sample_a)
    fused = fuses(backward, gpu, backend)
    for product, problem in (("y", forward), ("dx", backward._replace(s_given=fused))):
        plan, others = choose(problem, gpu, backend), dict[str, float | str](reasons(problem))
        others |= {other.strategy: other.seconds for other in plans(problem, gpu, backend)}
        least = cost.seconds((floor(problem, gpu),))
        yield _step(shape, product, plan.strategy, plan.launches, least, others, measured_for(problem, gpu, backend))
    ways = {"outer": cost.outer(backward, gpu), "shrink and outer": cost.shrink_outer(backward, gpu)}
    yield _step(shape, "dA", "outer", cost.outer(forward, gpu), 0.0, {}, None)
    chosen = "shrink and outer" if fused else "outer"
    lost = "would read g once more" if fused else why_not_fused(backward, backend)
    yield _step(shape, "dB", chosen, ways[chosen], 0.0, {way: lost for way in ways}, None)


def _step(
    shape: Shape,
    product: str,
    strategy: str,
    launches: tuple[Launch, ...],
    least: float,
    others: dict[str, float | str],
    measured: object,
) -> Step:
    moved, operations = (sum(getattr(launch, of) for launch in launches) for of in ("bytes", "operations"))
    kernels = (*map(_label, launches), *(("as tuned",) if measured else ()))
    lost = tuple((name, why) for name, why in others.items() if name != strategy)
    return Step(shape, product, strategy, kernels, moved, operations, cost.seconds(launches), least, lost)


def _against(step: Step) -> str:
    reasons = [f"{name}: {why if isinstance(why, str) else f'{why * 1e6:.1f} us'}" for name, why in step.others]
    return f"  (not {'; '.join(reasons)})" if reasons else ""


def _label(launch: Launch) -> str:
    tile = launch.config
    return launch.kernel if tile is None else f"{launch.kernel} {tile.BM}x{tile.BN}x{tile.BK}"


def _gpu(device: torch.device | str) -> Gpu:
    if isinstance(device, str) and device in GPUS:
        return GPUS[device]
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type != "cuda" or (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device must be a GPU that is there or one of {', '.join(GPUS)}, got {str(device)!r}")
    return gpu_of(torch.device("cuda", torch.cuda.current_device()) if found.index is None else found)
