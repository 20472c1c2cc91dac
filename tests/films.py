"""A file of ratings for tests."""

from pathlib import Path

import numpy as np
import pandas as pd


def write_ratings(path: Path, timestamps: np.ndarray) -> Path:
    """As many ratings as timestamps, of 20 users and 30 films, the odd ones liked more."""
    random, rows = np.random.default_rng(0), len(timestamps)
    items = random.integers(0, 30, rows)
    liked = random.random(rows) < np.where(items % 2, 0.8, 0.2)
    frame = pd.DataFrame(
        {
            "user_id": random.integers(0, 20, rows),
            "item_id": items,
            "rating": np.where(liked, 5, 2),
            "timestamp": timestamps,
            "title": [f"film {item}" for item in items],
        }
    )
    frame.to_csv(path, index=False)
    return path
