"""Where a training step and a scoring batch of ours spend their time, over that of their linears' products alone.

    python -m bench.shares [isa] [rounds]

The floor are torch's F.linear of every linear of SmolLM2-135M, and g·W where there is a backward, in the dtype that the
instruction set is for: bf16 where it multiplies that, else fp32. CPU time, so that others on the machine count less.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

from bench.beams import processor_seconds
from bench.endtoend import NAME, WHAT, Setting, ours
from bench.harness import interleaved
from cora.llm.loading import load_base
from cora.runs.allocator import keep_freed_memory
from cora_kernels.backends import extension

# Beginnings of operators' names, and what they are; the first that fits.
_KINDS = {
    "cora_kernels::cpu_attention": "attention",
    "cora_kernels::cpu_rms_norm": "norms, gates, positions",
    "cora_kernels::cpu_silu_gate": "norms, gates, positions",
    "cora_kernels::cpu_rotary": "norms, gates, positions",
    "cora_kernels::": "products, deltas included",
    "aten::mm": "products, deltas included",
    "aten::addmm": "products, deltas included",
    "aten::": "other operators of torch",
    "": "Python, autograd",
}
KINDS = tuple(dict.fromkeys(_KINDS.values()))


def chosen(setting: Setting) -> Setting:
    """In the dtype that the instruction set in use is for."""
    emulates = extension.loaded and extension._C.cpu_isa() in ("avx2", "avx512")
    return replace(setting, dtype=torch.float32) if emulates else setting


def parts(run: Callable[[], object]) -> dict[str, float]:
    """The share of each of KINDS in the time of a call, by torch's profiler; they add up to 1."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    found = dict.fromkeys(KINDS, 0.0)
    for event in profile.key_averages():
        kind = next(kind for beginning, kind in _KINDS.items() if event.key.startswith(beginning))
        found[kind] += event.self_cpu_time_total
    whole = sum(found.values())
    return {kind: taken / whole for kind, taken in found.items()}


def products(setting: Setting, what: str) -> Callable[[], object]:
    """The products of all linears but the head, for the tokens of the batch."""
    base = load_base(NAME, dtype=setting.dtype).requires_grad_(False)
    head = base.get_output_embeddings()
    weights = [one.weight for one in base.modules() if isinstance(one, nn.Linear) and one is not head]
    rows = {n: torch.randn(setting.tokens, n, dtype=setting.dtype) for weight in weights for n in weight.shape}

    def run() -> None:
        for weight in weights:
            F.linear(rows[weight.shape[1]], weight)
            if what != "scoring batch":
                rows[weight.shape[0]] @ weight

    return run


def over_products(
    setting: Setting, what: str, clock: Callable[[Callable[[], object], int], float], rounds: int
) -> dict[str, float]:
    """The time of ours over that of the products, in rounds by turns, and its parts."""
    run = ours(setting, what)
    samples = interleaved({"ours": run, "products": products(setting, what)}, clock, seconds=0.0, least=rounds)
    whole = median(one / floor for one, floor in zip(samples["ours"], samples["products"], strict=True))
    return {"all": whole} | {kind: whole * share for kind, share in parts(run).items()}


def main(isa: str | None = None, rounds: int = 5) -> None:
    keep_freed_memory()
    extension._C.set_cpu_isa(isa)
    setting = chosen(Setting.make("cpu"))
    found = {what: over_products(setting, what, processor_seconds, rounds) for what in WHAT}
    print(f"{f'over the products, {setting.dtype}':<40}" + "".join(f"{what:>16}" for what in WHAT))
    for kind in ("all", *KINDS):
        print(f"{kind:<40}" + "".join(f"{found[what][kind]:>16.3f}" for what in WHAT))


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:]))
