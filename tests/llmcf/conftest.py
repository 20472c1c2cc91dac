"""Ratings of two tastes with their titles, and thoughts for some of them with vectors drawn at random."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from cora.data import Interactions, Splits, split
from cora.data.thoughts import Thoughts, spread

_TEXT = 12


def made(rows: int = 1500, moments: int = 400) -> Interactions:
    """Users of two tastes rate what their taste likes more often; several rows share a moment."""
    random = np.random.default_rng(0)
    users, items = random.integers(0, 24, rows), random.integers(0, 20, rows)
    own = users % 2 == items % 2
    label = (own ^ (random.random(rows) < 0.15)).astype(np.int64)
    times = np.sort(random.integers(0, moments, rows))
    frame = pd.DataFrame({"user_id": users, "item_id": items + 100, "label": label, "timestamp": times})
    titles = {item: f"film {item} ({1950 + item % 50})" for item in range(100, 121)}
    genres = {item: ("Odd",) if item % 2 else ("Even", "Other") for item in range(100, 118)}
    frame = frame.drop_duplicates(["user_id", "item_id", "timestamp"]).reset_index(drop=True)
    return Interactions(frame, titles, "tastes", genres)


@pytest.fixture(scope="session")
def data() -> Interactions:
    return made()


@pytest.fixture(scope="session")
def splits(data: Interactions) -> Splits:
    return split(data)


@pytest.fixture(scope="session")
def thoughts(data: Interactions, splits: Splits) -> Thoughts:
    rows = spread(splits.train, 80)[["user_id", "item_id", "label", "timestamp"]]
    generator = torch.Generator().manual_seed(0)
    vectors = {
        kind: functional.normalize(torch.randn(len(rows), _TEXT, generator=generator), dim=1)
        for kind in ("template", "llm")
    }
    items = functional.normalize(torch.randn(len(data.titles), _TEXT, generator=generator), dim=1)
    texts = {kind: [f"{kind} {row}" for row in range(len(rows))] for kind in vectors}
    return Thoughts(rows.assign(**texts), vectors, sorted(data.titles), items, {"rows": len(rows)})


@pytest.fixture(scope="session")
def folder(thoughts: Thoughts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("thoughts") / "made"
    thoughts.save(path)
    return path
