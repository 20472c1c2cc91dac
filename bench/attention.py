"""Causal attention over prompts of different lengths: every way that torch has, and ours, behind one interface."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import CpuClock, Outcome, errors, interleaved
from cora_kernels import packed_attention
from cora_kernels.testing import SHORT_NAMES

Attend = Callable[[Tensor, Tensor, Tensor, list[int]], Callable[[], Tensor]]


@dataclass(frozen=True)
class AttentionCase:
    """`heads` of q and `kv_heads` of k and v, each `dim` wide, over packed prompts of these lengths."""

    model: str
    heads: int
    kv_heads: int
    dim: int
    lengths: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        sizes = f"{self.heads}/{self.kv_heads} heads of {self.dim}"
        spread = f"T{min(self.lengths)}-{max(self.lengths)}"
        return f"{self.model} {sizes} B{len(self.lengths)} {spread} {SHORT_NAMES[self.dtype]}"

    @property
    def flops(self) -> int:
        """Two products forward and five backward, of the keys that a query may see."""
        pairs = sum(length * (length + 1) // 2 for length in self.lengths)
        return 7 * 2 * pairs * self.heads * self.dim


_PROMPTS = tuple(120 + 80 * i // 15 for i in range(16))
CASES = [
    AttentionCase("SmolLM2-135M", 9, 3, 64, _PROMPTS, torch.bfloat16),
    AttentionCase("SmolLM2-135M", 9, 3, 64, _PROMPTS, torch.float32),
    AttentionCase("Qwen2.5-0.5B", 14, 2, 64, _PROMPTS, torch.bfloat16),
    AttentionCase("Llama-3.2-1B", 32, 8, 64, (512, 300, 220, 90, 60, 20, 5, 1), torch.bfloat16),
]


def _padded(masked: bool) -> Attend:
    """scaled_dot_product_attention over [B, heads, T, D], with the mask of the padding or, padded right, without."""

    def prepare(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Callable[[], Tensor]:
        batch, longest = len(lengths), max(lengths)
        used = torch.arange(longest) < torch.tensor(lengths)[:, None]
        rows = used.flatten().nonzero()[:, 0]
        causal = torch.ones(longest, longest, dtype=torch.bool).tril()
        mask = (causal & used[:, None, None, :]) | torch.eye(longest, dtype=torch.bool) if masked else None

        def wide(t: Tensor) -> Tensor:
            return t.new_zeros(batch * longest, *t.shape[1:]).index_copy(0, rows, t).unflatten(0, (batch, longest))

        def run() -> Tensor:
            heads = (wide(t).transpose(1, 2) for t in (q, k, v))
            out = F.scaled_dot_product_attention(*heads, attn_mask=mask, is_causal=not masked, enable_gqa=True)
            return out.transpose(1, 2).flatten(0, 1)[rows]

        return run

    return prepare


def _by_sample(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        outs = []
        for parts in zip(*(t.split(lengths) for t in (q, k, v)), strict=True):
            heads = (t.transpose(0, 1)[None] for t in parts)
            outs.append(F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)[0].transpose(0, 1))
        return torch.cat(outs)

    return run


def _ours(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Callable[[], Tensor]:
    cu_seqlens = torch.tensor([0, *lengths], device=q.device).cumsum(0).int()
    return lambda: packed_attention(q, k, v, cu_seqlens)


CONTESTANTS: dict[str, Attend] = {
    "padded, masked": _padded(True),
    "padded, causal": _padded(False),
    "sample by sample": _by_sample,
    "ours": _ours,
}


def measure(case: AttentionCase, seconds: float) -> dict[str, Outcome]:
    """Outcomes of forward and backward by contestant, as `harness.measure` makes them for linears."""
    generator = torch.Generator().manual_seed(0)
    rows, heads = sum(case.lengths), (case.heads, case.kv_heads, case.kv_heads)
    q, k, v, g = (
        torch.randn(rows, count, case.dim, generator=generator).to(case.dtype) for count in (*heads, case.heads)
    )

    def step(attend: Attend, dtype: torch.dtype) -> Callable[[], dict[str, Tensor]]:
        leaves = [t.to(dtype).requires_grad_() for t in (q, k, v)]
        run = attend(*leaves, list(case.lengths))

        def forward_backward() -> dict[str, Tensor]:
            out = run()
            return dict(
                zip(("o", "dq", "dk", "dv"), (out, *torch.autograd.grad(out, leaves, g.to(dtype))), strict=True)
            )

        return forward_backward

    exact, usual = (step(CONTESTANTS["padded, causal"], dtype)() for dtype in (torch.float64, case.dtype))
    outcomes, runs = {}, {}
    for name, attend in CONTESTANTS.items():
        run = step(attend, case.dtype)
        if problem := errors(run(), exact, usual, case.dtype):
            outcomes[name] = Outcome(problem=problem, wrong=True)
        else:
            runs[name] = run
    timed = interleaved(runs, CpuClock(), seconds=seconds)
    return outcomes | {name: Outcome(tuple(samples)) for name, samples in timed.items()}
