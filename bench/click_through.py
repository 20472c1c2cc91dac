"""Rows a second that a finished run of llmcf scores on one thread, CPU time, batches of 1,024.

    python -m bench.click_through RUN [rounds]

What is read of the rows, their past and their examples is found beforehand: both are what a service looks up once.
"""

import sys
from collections.abc import Callable

import torch

from bench.beams import processor_seconds
from cora.methods.llmcf.model import Scorer
from cora.runs.folder import RunFolder
from cora.runs.prepare import prepare_scored
from cora.runs.score import load_model

ROWS, BATCH = 10_000, 1024


def scoring(run: str) -> tuple[Callable[[], object], int]:
    """A call that scores test rows of the run, and how many they are."""
    folder = RunFolder.existing(run)
    config = folder.config()
    if config.method != "llmcf":
        raise ValueError(f"run: expected one of the method llmcf, {run} is of {config.method}")
    model, splits = load_model(folder, config).eval(), prepare_scored(config).splits
    chosen = splits.test.iloc[:ROWS]
    rows = model.catalogue.rows(chosen, splits, model.config.max_history)
    retrieved = model.retrieve(rows, chosen["timestamp"].to_numpy())
    scorer = Scorer(model)
    batches = torch.arange(len(chosen)).split(BATCH)

    @torch.inference_mode()
    def score() -> None:
        for batch in batches:
            scorer(*rows.of(batch), *retrieved.of(batch))

    return score, len(chosen)


def main(run: str, rounds: int = 9) -> None:
    torch.set_num_threads(1)
    score, rows = scoring(run)
    score()
    # The best: others on the machine take caches and clock away, nobody gives any.
    seconds = min(processor_seconds(score, 1) for _ in range(rounds))
    print(f"{rows / seconds:,.0f} rows a second")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
