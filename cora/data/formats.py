"""The forms of interactions that can be read, one module each: `reads(path) -> bool` and `read(path)`, which gives the
rows with their columns typed, and item_id → title."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from cora.data import recbole, tables

FORMATS: dict[str, ModuleType] = {
    "tables": tables,
    "RecBole": recbole,
}


def read(path: Path) -> tuple[pd.DataFrame, dict[Any, str]]:
    """Rows and titles of the first form that reads `path`. Raises ValueError if none does."""
    for form in FORMATS.values():
        if form.reads(path):
            rows, titles = form.read(path)
            return rows, titles
    if path.is_dir():
        raise ValueError(
            f"{path}: expected one .inter file, or train and valid as .parquet or .csv; "
            f"found {sorted(file.name for file in path.iterdir())[:10]}"
        )
    raise ValueError(f"{path}: expected a .inter, .parquet or .csv file, got {path.suffix!r}")
