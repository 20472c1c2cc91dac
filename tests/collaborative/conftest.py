"""Ratings of two tastes, with times: who likes what is decided by the taste, with some noise."""

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="session")
def tastes() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train and valid, later in time; users rate what their taste likes more often than the rest, as people do."""
    random = np.random.default_rng(0)
    users, items = random.integers(0, 30, 3000), random.integers(0, 24, 3000)
    own = users % 2 == items % 2
    kept = own | (random.random(3000) < 0.4)
    users, items, own = users[kept], items[kept], own[kept]
    label = (own ^ (random.random(len(own)) < 0.1)).astype(int)
    frame = pd.DataFrame({"user_id": users, "item_id": items + 100, "label": label, "timestamp": range(len(users))})
    cut = int(0.7 * len(frame))
    return frame[:cut].reset_index(drop=True), frame[cut:].reset_index(drop=True)
