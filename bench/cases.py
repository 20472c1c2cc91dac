"""What is timed: linears of real models, sizes of batches, and the work in each."""

import math
import statistics
from dataclasses import dataclass
from itertools import product

import torch

from cora_kernels.testing import Case

# K and the Ns of linears that share one input.
LAYERS: dict[str, dict[str, tuple[int, tuple[int, ...]]]] = {
    model: {
        "q": (hidden, (hidden,)),
        "k": (hidden, (kv,)),
        "qkv": (hidden, (hidden, kv, kv)),
        "o": (hidden, (hidden,)),
        "up": (hidden, (ffn,)),
        "gate,up": (hidden, (ffn, ffn)),
        "down": (ffn, (hidden,)),
    }
    for model, hidden, kv, ffn in (
        ("SmolLM2-135M", 576, 192, 1536),
        ("Qwen2.5-0.5B", 896, 128, 4864),
        ("Llama-3.2-1B", 2048, 512, 8192),
        ("Llama-3-8B", 4096, 1024, 14336),
        ("Vicuna-7B", 4096, 4096, 11008),
    )
}
_SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
FP32, BF16 = torch.float32, torch.bfloat16


@dataclass(frozen=True)
class BenchCase:
    """One layer at one size. `sets` names what else it belongs to: an acceptance, a growth curve."""

    layer: str
    shape: Case
    backward: bool
    sets: tuple[str, ...] = ()
    autotune: bool = False

    @property
    def samples(self) -> list[int]:
        """The rows of each sample."""
        return list(self.shape.lengths or (self.shape.length,) * self.shape.batch)

    @property
    def rows(self) -> int:
        return sum(self.samples)

    @property
    def dtype(self) -> str:
        return _SHORT[self.shape.dtype]

    def __str__(self) -> str:
        s = self.shape
        lengths = self.samples
        size = f"B{s.batch} T{s.length}"
        if s.lengths is not None:
            size = f"B{len(lengths)} packed T{min(lengths)}-{max(lengths)}"
        extra = (" own B" if s.sample_b else "") + (" fp32 factors" if s.factor_dtype else "")
        return f"{self.layer} {s.k}-{'+'.join(map(str, s.n))} {size} r{s.r} {self.dtype}{extra}"

    @property
    def flops(self) -> int:
        """Products of the definition, 2 M (N·K + r·K + r·N) a direction; backward adds dx, and dA and dB."""
        s = self.shape
        gemm = sum(2 * self.rows * n * s.k for n in s.n)
        low_rank = 2 * self.rows * s.r * (s.k + sum(s.n))
        return gemm + low_rank if not self.backward else 2 * gemm + 3 * low_rank

    @property
    def bytes(self) -> int:
        """Each operand once: x, W, A, B, y; backward reads x, g, W, A, B and writes dx, dA, dB."""
        s, item = self.shape, self.shape.dtype.itemsize
        factor = (s.factor_dtype or s.dtype).itemsize
        samples = len(self.samples)
        factors = factor * s.r * ((samples if s.sample_a else 1) * s.k + (samples if s.sample_b else 1) * sum(s.n))
        x, y, w = self.rows * s.k * item, self.rows * sum(s.n) * item, s.k * sum(s.n) * item
        forward = x + w + y + factors
        return forward if not self.backward else forward + 2 * x + y + w + 2 * factors


def case(
    layer: str,
    batch: int,
    length: int,
    r: int,
    dtype: torch.dtype,
    backward: bool,
    *sets: str,
    lengths: tuple[int, ...] | None = None,
    sample_b: bool = False,
    factor_dtype: torch.dtype | None = None,
    autotune: bool = False,
) -> BenchCase:
    """`layer` is "model linear", as in LAYERS."""
    model, linear = layer.rsplit(" ", 1)
    k, n = LAYERS[model][linear]
    shape = Case(batch, length, k, n, r, dtype, factor_dtype, lengths, sample_b=sample_b)
    return BenchCase(layer, shape, backward, sets, autotune)


def skewed(samples: int, longest: int) -> tuple[int, ...]:
    """Lengths as in real batches: one long sample, most of them short, one a single token."""
    lengths = [max(1, round(longest / (1 + i) ** 1.2)) for i in range(samples - 1)]
    return (*lengths, 1)


def quick() -> list[BenchCase]:
    """The shapes of the acceptance, growth in B, T and r, and one of each kind of the rest."""
    cases = []
    for backward, dtype in product((False, True), (FP32, BF16)):
        name = "train" if backward else "forward"
        for layer, batch, length, r in (
            ("SmolLM2-135M up", 8, 128, 8),
            ("SmolLM2-135M down", 8, 128, 16),
            ("SmolLM2-135M q", 8, 128, 16),
            ("Llama-3.2-1B q", 4, 256, 16),
        ):
            small = layer.startswith("SmolLM2")
            cases.append(case(layer, batch, length, r, dtype, backward, f"{name} {_SHORT[dtype]}", autotune=small))
    for backward in (False, True):
        name = "train" if backward else "forward"
        cases.append(case("SmolLM2-135M q", 16, 160, 16, FP32, backward, f"{name} fp32"))
    for dtype in (FP32, BF16):
        cases.append(case("Llama-3.2-1B q", 32, 1, 16, dtype, False, "decode", autotune=True))
        cases.append(case("SmolLM2-135M q", 16, 1, 16, dtype, False, "decode", autotune=True))
    cases += [
        case("SmolLM2-135M q", 1, 128, 16, BF16, True, "B"),
        case("SmolLM2-135M q", 4, 128, 16, BF16, True, "B", "T", "r"),
        case("SmolLM2-135M q", 16, 128, 16, BF16, True, "B"),
        case("SmolLM2-135M q", 64, 128, 16, BF16, True, "B"),
        case("SmolLM2-135M q", 4, 1, 16, BF16, True, "T"),
        case("SmolLM2-135M q", 4, 512, 16, BF16, True, "T"),
        case("SmolLM2-135M q", 4, 128, 8, BF16, True, "r"),
        case("SmolLM2-135M q", 4, 128, 64, BF16, True, "r"),
        case("SmolLM2-135M qkv", 16, 128, 16, BF16, True, factor_dtype=FP32),
        case("SmolLM2-135M q", 16, 1, 16, BF16, True, lengths=skewed(16, 512)),
        case("SmolLM2-135M q", 16, 1, 16, FP32, False, lengths=skewed(16, 512)),
        case("Qwen2.5-0.5B gate,up", 4, 128, 16, BF16, True),
        case("Qwen2.5-0.5B k", 4, 128, 16, BF16, False),
        case("Llama-3.2-1B qkv", 4, 128, 16, FP32, False),
        case("Llama-3.2-1B q", 16, 128, 8, BF16, False, sample_b=True),
        case("Llama-3-8B k", 4, 128, 16, BF16, False),
        case("Llama-3-8B q", 1, 128, 64, BF16, True),
        case("Vicuna-7B down", 1, 128, 16, BF16, False),
    ]
    return cases


def full() -> list[BenchCase]:
    """The quick set and the whole grid: every layer, B, T, r, both dtypes, forward and backward, padded and packed."""
    cases = quick()
    grid = product(LAYERS, ("q", "k", "qkv", "o", "gate,up", "down"), (1, 4, 16, 64), (1, 128, 512), (8, 16, 64))
    for model, linear, batch, length, r in grid:
        for dtype, backward in product((FP32, BF16), (False, True)):
            cases.append(case(f"{model} {linear}", batch, length, r, dtype, backward, autotune=True))
    for model, r, dtype, backward in product(LAYERS, (8, 16, 64), (FP32, BF16), (False, True)):
        cases.append(case(f"{model} q", 16, 1, r, dtype, backward, lengths=skewed(16, 512)))
    return list({(str(one), one.backward): one for one in reversed(cases)}.values())[::-1]


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))
