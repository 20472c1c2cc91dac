"""python -m cora_kernels.tune: times every strategy and tile on the GPU that is there, and keeps the fastest.

Also measures the rates of the cost rule, for problems that were not timed: the GPU's bandwidth, the vendor's GEMM, and
the speed of ours over it.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from cora_kernels.operands import Operands
from cora_kernels.planning import choose, gpus, tuning_file
from cora_kernels.planning.cost import Problem
from cora_kernels.planning.tile_sizes import GemmConfig, descriptor_configs, gemm_configs
from cora_kernels.planning.versions import has_descriptors
from cora_kernels.segments import Segments

# (B, T) of training, of prompts, of decoding, and (K, N) of the linears of models of 0.1 to 8 billion parameters.
ROWS = ((8, 1024), (16, 160), (32, 1))
WIDTHS = ((576, 576), (576, 1536), (2048, 2048), (2048, 512), (4096, 4096), (4096, 1024), (4096, 14336), (14336, 4096))
RANKS = (16, 64)

Timer = Callable[[Callable[[], object]], float]


def seconds(run: Callable[[], object]) -> float:
    """The median time of `run` on the GPU, caches cold."""
    from triton.testing import do_bench

    return do_bench(run, rep=50, return_mode="median") / 1e3


def measure_rates(device: torch.device, timer: Timer = seconds) -> dict[str, float]:
    """The rates of `gpus.Gpu` on this device."""
    from cora_kernels.backends.triton.descriptor_gemm import descriptor_gemm
    from cora_kernels.backends.triton.expand import expand
    from cora_kernels.backends.triton.lowrank_gemm import lowrank_gemm

    n = 1024 if device.type == "cuda" else 32  # in units that keep an interpreted run short
    gpu = gpus.gpu_of(device)
    x, w, y = (torch.randn(8 * n, 4 * n, dtype=torch.bfloat16, device=device) for _ in range(3))
    segments = Segments(1, 8 * n, 8 * n, None)
    s, b = torch.randn(8 * n, 16, device=device), torch.randn(16, 4 * n, dtype=torch.bfloat16, device=device)
    w = w[: 4 * n]
    shallow = x[:, :n].contiguous(), w[:, :n].contiguous()
    vendor = timer(lambda: torch.mm(x, w.t(), out=y))
    vendor_shallow = timer(lambda: torch.mm(shallow[0], shallow[1].t(), out=y))

    def share_of(gemm: Callable[..., object], tiles: Sequence[GemmConfig]) -> tuple[float, float]:
        """gemm and fill of a GEMM of ours in the fastest of these tiles."""

        def fastest(x: torch.Tensor, w: torch.Tensor) -> float:
            return min(timer(partial(gemm, x, w.t(), s, b, segments, tile)) for tile in tiles)

        return _share(vendor / fastest(x, w), 4 * n, vendor_shallow / fastest(*shallow), n)

    added = timer(lambda: y.addmm_(x, w.t()))
    streamed = timer(lambda: expand(s, b, segments, y, add=True))
    x32, w32 = x.float(), w.float()
    single = timer(lambda: torch.mm(x32, w32.t()))
    operations = 2 * 8 * n * 4 * n * 4 * n
    bandwidth = 2 * y.numel() * y.itemsize / streamed
    rates = dict(zip(("gemm", "fill"), share_of(lowrank_gemm, gemm_configs(gpu.arch, x.dtype, False)), strict=True))
    tiles = descriptor_configs(gpu.arch) if has_descriptors() else ()
    if tiles:
        rates |= zip(("gemm_descriptors", "fill_descriptors"), share_of(descriptor_gemm, tiles), strict=True)
    return {
        "matrix": operations / vendor,
        "simple": operations / single,
        "bandwidth": bandwidth,
        **rates,
        "exposed": min(1.0, max(0.01, (added - vendor) * bandwidth / (y.numel() * y.itemsize))),
    }


def _share(deep: float, depth: int, shallow: float, less: int) -> tuple[float, float]:
    """gemm and fill of share = gemm / (1 + fill / K), from the shares of the vendor's rate at two depths."""
    fill = (deep / shallow - 1) / (1 / less - deep / shallow / depth) if deep > shallow else 1.0
    if not 0 < fill < depth:  # the shallow product is another one to the vendor's library: no fit
        fill = 1.0
    return min(1.0, deep * (1 + fill / depth)), fill


def measure_strategies(problem: Problem, device: torch.device, timer: Timer = seconds) -> dict[str, Any]:
    """The fastest strategy and tile of one problem: {"strategy", "config", "seconds"}."""
    return min(measure_all(problem, device, timer), key=lambda one: one["seconds"])


def measure_all(problem: Problem, device: torch.device, timer: Timer = seconds) -> list[dict[str, Any]]:
    """Every strategy and tile of one problem, likewise."""
    run = _runner(problem, device)
    return [
        {"strategy": strategy, "config": config, "seconds": timer(partial(run, strategy, config))}
        for strategy, config in _candidates(problem, device)
    ]


def _candidates(problem: Problem, device: torch.device) -> Iterator[tuple[str, GemmConfig | None]]:
    arch = gpus.gpu_of(device).arch
    for plan in choose.plans(problem, gpus.gpu_of(device)):
        if plan.config is None:
            yield plan.strategy, None
            continue
        if plan.strategy == "descriptors":
            yield from ((plan.strategy, tile) for tile in descriptor_configs(arch))
            continue
        tiles = gemm_configs(arch, problem.dtype, plan.strategy == "one_pass")
        yield from ((plan.strategy, tile) for tile in tiles)
        yield from ((plan.strategy, tile._replace(persistent=True)) for tile in tiles[:2])


def _runner(problem: Problem, device: torch.device) -> Callable[[str, GemmConfig | None], object]:
    """The problem with random operands: a function that runs it by a strategy with a tile."""
    from cora_kernels.backends.triton import strategies

    p = problem

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float32, device=device).to(p.dtype)

    x, w = tensor(p.rows, p.inputs), tensor(p.outputs, p.inputs)
    a = tensor(*((p.samples,) if p.sample_a else ()), p.inputs, p.rank)
    b = tensor(*((p.samples,) if p.sample_b else ()), p.rank, p.outputs)
    segments = Segments(p.samples, p.rows, p.length, None)
    operands = Operands([w], [a], [b], [None], 1.0, segments)
    s = [strategies.shrink([x], [a], 1.0, segments)] if p.s_given else None

    def run(strategy: str, config: GemmConfig | None) -> object:
        return strategies.forward(x, operands, s, strategy, config)

    return run


def problems() -> Iterator[Problem]:
    """Forward of CoRA's layer (A of each sample, B shared) and the roles swapped (dx); S from a sibling."""
    for (B, T), (K, N), r in ((rows, widths, r) for rows in ROWS for widths in WIDTHS for r in RANKS):
        forward = Problem(B * T, K, N, r, B, T, torch.bfloat16, sample_a=True, sample_b=False)
        yield forward
        yield forward._replace(s_given=True)
        yield Problem(B * T, N, K, r, B, T, torch.bfloat16, sample_a=False, sample_b=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cora_kernels.tune",
        description="Times every strategy and tile on the GPU that is there, and keeps the fastest.",
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs=5,
        action="append",
        metavar=("B", "T", "K", "N", "r"),
        help="tune this shape, forward and dx, instead of the list of common linears; may be given several times",
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("cora_kernels.tune needs a GPU: none is there")
    device = torch.device("cuda", torch.cuda.current_device())
    name = torch.cuda.get_device_properties(device).name
    rates = measure_rates(device)
    tuning_file.save(name, rates, {})
    gpus.gpu_of.cache_clear()
    print(f"{name}: " + ", ".join(f"{rate} {value:.3g}" for rate, value in rates.items()))
    for problem in _asked_for(options.shape) if options.shape else problems():
        best = measure_strategies(problem, device)
        path = tuning_file.save(name, {}, {choose.key_of(problem): best})
        print(
            f"{choose.key_of(problem)}: {best['strategy']} {best['config'] or ''} {best['seconds'] * 1e6:.1f} us",
            flush=True,
        )
    print(f"kept in {path}")


def _asked_for(shapes: list[list[int]]) -> Iterator[Problem]:
    for B, T, K, N, r in shapes:
        yield Problem(B * T, K, N, r, B, T, torch.bfloat16, sample_a=True, sample_b=False)
        yield Problem(B * T, N, K, r, B, T, torch.bfloat16, sample_a=False, sample_b=True)


if __name__ == "__main__":
    main()
