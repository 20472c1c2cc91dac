"""explain: which kernels would run a shape on a GPU, and what they cost by the cost rule against the frozen linear."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch

from cora_kernels import dispatch
from cora_kernels.planning import cost
from cora_kernels.planning.choose import (
    DTYPES,
    choose,
    concat,
    concatenates,
    fuses,
    measured_for,
    plans,
    rates_of,
    reasons,
    why_not_fused,
)
from cora_kernels.planning.cost import Launch, Problem, floor
from cora_kernels.planning.gpus import GPUS, Gpu, gpu_of

Shape = tuple[int, int, int, int | tuple[int, ...], int]


class Step(NamedTuple):
    """One product of a training step: of a linear, or of all linears of a group.

    `seconds` is the longer of `device`, what the GPU takes, and `host`, what the CPU takes to launch it in eager mode;
    `floor` the time of the frozen linears' own GEMMs, 0 where they have none.
    `others`: of each strategy that was not chosen, its predicted time in seconds, or why it cannot run the product.
    """

    shape: Shape
    product: str
    strategy: str
    kernels: tuple[str, ...]
    bytes: int
    operations: int
    seconds: float
    device: float
    host: float
    floor: float
    others: tuple[tuple[str, float | str], ...]


class Explanation(NamedTuple):
    """Prints as a table. Its times are those of the cost rule: predicted, not measured."""

    gpu: str
    backend: str
    steps: tuple[Step, ...]

    def kept(self, *products: str) -> float:
        """Of the speed of the frozen linears alone, what these products of all shapes together keep: at most 1."""
        chosen = [step for step in self.steps if step.product in products]
        taken = max(sum(step.device for step in chosen), sum(step.host for step in chosen))
        return sum(step.floor for step in chosen) / taken

    def __str__(self) -> str:
        lines = [
            f"{self.gpu}, backend {self.backend}, times predicted by the cost rule",
            f"{'B x T, K -> N, r':<36} {'':4}{'MB':>9}{'GFLOP':>10}{'us':>9}{'floor':>9}  kernels",
        ]
        for step in self.steps:
            B, T, K, N, r = step.shape
            figures = f"{step.bytes / 1e6:9.2f}{step.operations / 1e9:10.2f}"
            figures += f"{step.seconds * 1e6:9.1f}{step.floor * 1e6:9.1f}"
            widths = N if isinstance(N, int) else "+".join(map(str, N))
            named = f"{f'{B} x {T}, {K} -> {widths}, r {r}':<36} {step.product:<4}"
            lines.append(f"{named}{figures}  {' + '.join(step.kernels)}{_against(step)}")
        forward, both = self.kept("y"), self.kept("y", "dx", "dA", "dB")
        lines.append(f"predicted speed kept of the frozen linears: {forward:.3f} forward, {both:.3f} with the backward")
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

    shapes: (B, T, K, N, r), or several; x [B, T, K], y [B, T, N], A of each sample or shared, B likewise. A tuple of
    several N is a group of linears that share x and A.
    device: a CUDA or ROCm device, with what `python -m cora_kernels.tune` measured on it, or the name of a GPU that
    need not be there: A100, A40, A10, L4, L40, L40S, RTX 3090, RTX 4090, RTX 5090, H100, GH200, H200, H20, B200 or
    MI300X.
    backend: "triton" or "cuda"; None takes that of `use_backend`, else the one that serves calls on a GPU here, else,
    where there is none, the preferred one, "triton".
    "concat" is how linears run that `cora.patch` has laid out for it, as it does where the rule finds that faster.
    Bytes are those of DRAM, each operand of a kernel once; times are the model's, of eager calls one after another. The
    result prints as a table, in which every product names the strategies that it is not run by, and why not.

    Raises ValueError for a device that is neither, for shapes that are not five positive integers (or tuples of them
    for N), for a dtype that the backend does not serve, and for another backend or one without kernels for the GPU.
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
    B, T, K, widths, r = _checked(shape)
    rates = rates_of(gpu, backend)
    forwards = [Problem(B * T, K, N, r, B, T, dtype, sample_a, sample_b, s_given=j > 0) for j, N in enumerate(widths)]
    backwards = [Problem(B * T, N, K, r, B, T, dtype, sample_b, sample_a) for N in widths]
    fused = len(widths) == 1 and fuses(backwards[0], gpu, backend)
    # Of a group dS is summed first, and one linear's product with W brings dS·Aᵀ along.
    summed = [launch for p in backwards if len(widths) > 1 for launch in cost.shrink(p, rates, backend == "triton")]
    first = backwards[0]._replace(s_given=fused or len(widths) > 1)
    added = [cost.vendor_gemm(p, gpu, p.rows * K * dtype.itemsize) for p in backwards[1:]]
    for product, problems, more in (("y", forwards, []), ("dx", [first], [*summed, *added])):
        chosen = [choose(p, gpu, backend) for p in problems]
        launches = [launch for plan in chosen for launch in plan.launches] + more
        floors = [floor(p, gpu) for p in (forwards if product == "y" else backwards)]
        others = dict[str, float | str](reasons(problems[0], gpu, backend))
        for other in plans(problems[0], gpu, backend):
            by_other = [launch for p in problems for launch in choose(p, gpu, backend, other.strategy).launches]
            others[other.strategy] = cost.seconds([*by_other, *more])
        measured, strategy = measured_for(problems[0], gpu, backend), chosen[0].strategy
        if product == "y":
            plan = concat(tuple(forwards), gpu, backend)
            others["concat"] = "B is each sample's own" if sample_b else plan.seconds
            if not sample_b and concatenates(tuple(forwards), gpu, backend):
                strategy, launches, measured = plan.strategy, list(plan.launches), None
        yield _step(shape, product, strategy, launches, cost.seconds(floors), others, measured)
    yield _step(shape, "dA", "outer", cost.outer(forwards[0], rates), 0.0, {}, None)
    ways = {
        "outer": [launch for p in backwards for launch in cost.outer(p, rates)],
        "shrink and outer": list(cost.shrink_outer(backwards[0], gpu)),
    }
    chosen_way = "shrink and outer" if fused else "outer"
    why = "would read g once more" if fused else why_not_fused(backwards[0], backend)
    lost: dict[str, float | str] = dict.fromkeys(ways, "of a single linear" if len(widths) > 1 else why)
    yield _step(shape, "dB", chosen_way, ways[chosen_way], 0.0, lost, None)


def _checked(shape: Shape) -> tuple[int, int, int, tuple[int, ...], int]:
    """With N as a tuple."""
    if isinstance(shape, Sequence) and not isinstance(shape, str) and len(shape) == 5:
        B, T, K, N, r = shape
        widths = tuple(N) if isinstance(N, Sequence) and not isinstance(N, str) else (N,)
        if widths and all(isinstance(n, int) and n > 0 for n in (B, T, K, *widths, r)):
            return B, T, K, cast(tuple[int, ...], widths), r
    raise ValueError(f"shapes must be (B, T, K, N, r), five positive integers, got {shape!r}")


def _step(
    shape: Shape,
    product: str,
    strategy: str,
    launches: Sequence[Launch],
    least: float,
    others: dict[str, float | str],
    measured: object,
) -> Step:
    moved, operations = (sum(getattr(launch, of) for launch in launches) for of in ("bytes", "operations"))
    kernels = (*map(_label, launches), *(("as tuned",) if measured else ()))
    device, host = (sum(getattr(launch, of) for launch in launches) for of in ("seconds", "host"))
    lost = tuple((name, why) for name, why in others.items() if name != strategy)
    return Step(shape, product, strategy, kernels, moved, operations, max(device, host), device, host, least, lost)


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
