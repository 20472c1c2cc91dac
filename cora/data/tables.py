"""Tables with the titles in them: a parquet or CSV file, or a folder with one for each part of a split."""

from pathlib import Path
from typing import Any

import pandas as pd

from cora.data.columns import columns, ids, text_table

_PARTS = ("train", "valid", "test")
_SUFFIXES = (".parquet", ".csv")


def reads(path: Path) -> bool:
    """A file of a known suffix, or a folder with a part of a split."""
    return bool(_part_files(path)) if path.is_dir() else path.suffix in _SUFFIXES


def read(path: Path) -> tuple[pd.DataFrame, dict[Any, str]]:
    """The rows, and item_id → title of them; more than one file gives a `split` column."""
    parts = _part_files(path) if path.is_dir() else {"": path}
    tables = []
    for part, file in parts.items():
        table = columns(text_table(file) if file.suffix == ".csv" else pd.read_parquet(file), file, "title")
        tables.append(table.assign(split=part) if part else table)
    rows = pd.concat(tables, ignore_index=True)
    for column in ("user_id", "item_id"):
        rows[column] = ids(rows[column], path, parse=all(file.suffix == ".csv" for file in parts.values()))
    named = rows[["item_id", "title"]].drop_duplicates()
    conflicting = named.loc[named["item_id"].duplicated(), "item_id"].tolist()
    if conflicting:
        raise ValueError(
            f"{path}: an item_id must have one title, {len(conflicting)} have several, for example {conflicting[:3]}"
        )
    named = named[named["title"].notna()]
    return rows.drop(columns="title"), dict(
        zip(named["item_id"].tolist(), named["title"].astype(str).tolist(), strict=True)
    )


def _part_files(folder: Path) -> dict[str, Path]:
    """The files of an already split folder by part; empty if the folder holds none."""
    found: dict[str, Path] = {}
    for part in _PARTS:
        files = [folder / (part + suffix) for suffix in _SUFFIXES if (folder / (part + suffix)).exists()]
        if len(files) > 1:
            raise ValueError(f"{folder}: {part} is there twice: {[file.name for file in files]}")
        if files:
            found[part] = files[0]
    if found and not {"train", "valid"} <= found.keys():
        raise ValueError(f"{folder}: a split folder needs train and valid, found {[f.name for f in found.values()]}")
    return found
