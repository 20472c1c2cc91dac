"""Chains of thought: why users liked or disliked items, for some training rows, with the vectors of the texts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from cora.files import write_files
from cora.tensors import described, read_json, read_tensors

KINDS = ("llm", "template")
_EVENT = ("user_id", "item_id", "label", "timestamp")
_ROWS, _ITEMS, _VECTORS, _SETTINGS = "thoughts.parquet", "items.parquet", "vectors.safetensors", "thoughts.json"


@dataclass(frozen=True)
class Thoughts:
    """rows: user_id, item_id, label, timestamp of training rows in time order, and for each kind of text ("llm",
    "template") a column of it. vectors: kind → fp32 [rows, h], centred and of unit length. item_ids, items: the vectors
    of the items' own texts, fp32 [I, h]. settings: what they were written with.
    """

    rows: pd.DataFrame
    vectors: dict[str, Tensor]
    item_ids: list[Any]
    items: Tensor
    settings: dict[str, Any]

    def save(self, folder: str | Path) -> None:
        """Writes all files under other names and renames them when whole."""
        tensors = {**{name: one.contiguous() for name, one in self.vectors.items()}, "items": self.items.contiguous()}
        write_files(
            Path(folder),
            {
                _ROWS: lambda path: self.rows.to_parquet(path, index=False),
                _ITEMS: lambda path: pd.DataFrame({"item_id": self.item_ids}).to_parquet(path, index=False),
                _VECTORS: lambda path: save_file(tensors, path),
                _SETTINGS: lambda path: path.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8"),
            },
        )

    @classmethod
    def load(cls, folder: str | Path) -> "Thoughts":
        """Raises FileNotFoundError where a file is missing, ValueError naming the file where they do not fit."""
        folder = Path(folder)
        if missing := [name for name in (_ROWS, _ITEMS, _VECTORS, _SETTINGS) if not (folder / name).is_file()]:
            raise FileNotFoundError(f"thoughts: {folder} is no folder of `cora thoughts`, {', '.join(missing)} missing")
        settings = read_json(folder / _SETTINGS)
        rows, items = (_table(folder / name) for name in (_ROWS, _ITEMS))
        kinds = [kind for kind in KINDS if kind in rows]
        if lacking := [name for name in _EVENT if name not in rows]:
            raise ValueError(f"{folder / _ROWS}: missing column {', '.join(lacking)}; found {list(rows)}")
        if not (np.diff(rows["timestamp"].to_numpy()) >= 0).all() or not rows["label"].isin([0, 1]).all():
            raise ValueError(f"{folder / _ROWS}: expected rows in time order with labels 0 and 1")
        if "item_id" not in items or items["item_id"].duplicated().any():
            raise ValueError(f"{folder / _ITEMS}: expected the column item_id, each id once")
        found, sizes = described(folder / _VECTORS), {"items": len(items)} | {kind: len(rows) for kind in kinds}
        shapes = {name: one.shape for name, one in found.items()}
        width = shapes.get("items", (0, 0))[-1]
        if shapes != {name: (size, width) for name, size in sizes.items()} or not kinds or not width:
            raise ValueError(f"{folder / _VECTORS}: expected a vector for each row of {sizes}, got {shapes}")
        tensors = read_tensors(folder / _VECTORS)
        if odd := [name for name, one in tensors.items() if one.dtype != torch.float32 or not one.isfinite().all()]:
            raise ValueError(f"{folder / _VECTORS}: {odd[0]}: expected finite float32")
        return cls(rows, {kind: tensors[kind] for kind in kinds}, items["item_id"].tolist(), tensors["items"], settings)


def spread(train: pd.DataFrame, rows: int) -> pd.DataFrame:
    """So many rows of train, in time order, evenly spread over it: those that later rows look back to are to be of
    every time. Raises ValueError unless 1 <= rows <= the rows there are."""
    if not 1 <= rows <= len(train):
        raise ValueError(f"rows: expected 1 to {len(train)}, the training rows there are, got {rows}")
    places = np.linspace(0, len(train) - 1, rows).round().astype(np.int64)
    return train.iloc[places].reset_index(drop=True)


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a parquet file ({str(error)[:80]})") from None
