"""RecLoRA's costs: a training step beside plain LoRA's, and a row by how long the user's history is.

    python -m bench.gates [rounds]

SmolLM2-135M, q and v of all layers, rank 8, 8 meta-LoRAs. The steps take turns on one batch. A user's past is 1, 10,
100 or 1,000 ratings of films with random titles: DIN reads all of it, the prompt as much as fits into a limit of
tokens, the newest titles or the most similar. CPU time, so that others on the machine count less.
"""

import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench.beams import processor_seconds
from bench.endtoend import NAME, Setting, stepping
from bench.harness import interleaved
from cora.collaborative import CollaborativeEmbeddings, Directions, most_similar
from cora.collaborative.pair_encoder import InterestEncoder, PairEncoder
from cora.llm.loading import load_base, load_tokenizer
from cora.methods import load_method
from cora.prompts import PromptDataset

ITEMS, LENGTHS, ROWS, MAX_LENGTH, DIM = 1682, (1, 10, 100, 1000), 16, 200, 64
_WORDS = "Silver River Night Return Last Golden House Summer Stranger Winter Road City Heart Iron Letters".split()


def steps(setting: Setting) -> dict[str, Callable[[], object]]:
    """A training step of each method, every parameter random, so that all gradients are there."""

    def step(method: str, **fields: Any) -> Callable[[], object]:
        torch.manual_seed(0)
        made = load_method(method)
        config = made.Config(**fields).with_answer_ids(load_tokenizer(NAME))
        model = made.Model(load_base(NAME, dtype=setting.dtype), config, setting.embeddings).train()
        for one in model.parameters():
            if one.requires_grad and not one.any():
                torch.nn.init.normal_(one, std=0.02)
        batch = (setting.input_ids, setting.attention_mask, setting.user_ids, setting.item_ids, setting.labels)
        return stepping(model, [lambda: model(*batch).loss])

    return {"plain LoRA": step("tallrec", r=8, dropout=0.0), "RecLoRA": step("reclora", r=8)}


def titles() -> dict[int, str]:
    random = np.random.default_rng(0)
    return {item: f"{' '.join(random.choice(_WORDS, 3))} ({1930 + item % 70})" for item in range(ITEMS)}


def embeddings() -> CollaborativeEmbeddings:
    """Vectors as DIN makes them, random, whose encoder reads a past of any length."""
    torch.manual_seed(0)
    width = (DIM - 1) // 2
    encoder = PairEncoder(width, DIM - 1 - width, 64, max(LENGTHS), 0.0)
    users, items = torch.randn(1, DIM), torch.randn(ITEMS, DIM)
    return CollaborativeEmbeddings([0], list(range(ITEMS)), users, items, "din", encoder.state_dict())


def rows(length: int) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Pasts of so many ratings, their labels, and the items asked about."""
    random = np.random.default_rng(length)
    past = [random.choice(ITEMS - 1, length, replace=False).tolist() for _ in range(ROWS)]
    return past, [random.integers(0, 2, length).tolist() for _ in range(ROWS)], [ITEMS - 1] * ROWS


def prompts(past: list[list[int]], asked: list[int], directions: Directions | None, tokenizer: Any) -> PromptDataset:
    frame = pd.DataFrame({"user_id": 0, "item_id": asked, "label": 0, "history": past})
    if directions is not None:
        frame["history_order"] = most_similar(past, asked, directions, max(LENGTHS))
    return PromptDataset(frame, titles(), tokenizer, max_length=MAX_LENGTH)


def by_length(rounds: int) -> None:
    tokenizer, vectors = load_tokenizer(NAME), embeddings()
    encoder, directions = InterestEncoder(vectors), Directions.of(vectors.item_ids, vectors.items)
    print(f"\n{'ratings':>8}{'DIN':>12}{'recent':>12}{'tokens':>8}{'similar':>12}{'tokens':>8}   ms of CPU time a row")
    for length in LENGTHS:
        past, labels, asked = rows(length)
        runs: dict[str, Callable[[], Any]] = {
            "DIN": lambda past=past, labels=labels, asked=asked: encoder.vectors(past, labels, asked),
            "recent": lambda past=past, asked=asked: prompts(past, asked, None, tokenizer),
            "similar": lambda past=past, asked=asked: prompts(past, asked, directions, tokenizer),
        }
        samples = interleaved(runs, processor_seconds, seconds=0.0, least=rounds)
        taken = {name: 1e3 * median(seconds) / ROWS for name, seconds in samples.items()}
        tokens = {name: runs[name]().lengths.mean() for name in ("recent", "similar")}
        parts = [f"{taken[name]:>12.2f}{tokens[name]:>8.0f}" for name in ("recent", "similar")]
        print(f"{length:>8}{taken['DIN']:>12.2f}{''.join(parts)}")


def main(rounds: int = 5) -> None:
    setting = Setting.make("cpu")
    samples = interleaved(steps(setting), processor_seconds, seconds=0.0, least=rounds)
    for name, seconds in samples.items():
        print(f"{name:<12}{median(seconds):8.2f} s of CPU time a step of {setting.tokens} tokens, median of {rounds}")
    ratios = [one / other for one, other in zip(samples["RecLoRA"], samples["plain LoRA"], strict=True)]
    print(f"RecLoRA over plain LoRA: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    by_length(rounds)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
