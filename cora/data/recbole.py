"""RecBole atomic files: a `.inter` file of events and beside it a `.item` file with the titles."""

import csv
from pathlib import Path
from typing import Any

import pandas as pd

from cora.data.columns import columns, ids, text_table


def reads(path: Path) -> bool:
    """A `.inter` file, or a folder with one."""
    return len(list(path.glob("*.inter"))) == 1 if path.is_dir() else path.suffix == ".inter"


def read(path: Path) -> tuple[pd.DataFrame, dict[Any, str]]:
    """The rows, and item_id → title of the `.item` file."""
    inter = next(path.glob("*.inter")) if path.is_dir() else path
    item = inter.with_suffix(".item")
    if not item.exists():
        raise FileNotFoundError(f"{inter}: the titles are missing, expected them in {item}")
    rows = columns(_atomic(inter), inter)
    items = _atomic(item)
    title = next((c for c in items if c in ("title", "name") or c.endswith(("_title", "_name"))), None)
    if "item_id" not in items or title is None:
        raise ValueError(
            f"{item}: expected the columns item_id and title (or movie_title, name ...), found {list(items)}"
        )
    names = items[title].str.strip()
    if "release_year" in items:
        year = items["release_year"].str.strip()
        names = names.where(~year.str.fullmatch(r"\d{4}"), names + " (" + year + ")")
    # Text ids turn into numbers in both files or in neither.
    known = ids(pd.concat([items["item_id"], rows["item_id"]], ignore_index=True), item, parse=True)
    item_ids, rows["item_id"] = known[: len(items)], known[len(items) :].to_numpy()
    repeated = item_ids[item_ids.duplicated()].tolist()
    if repeated:
        raise ValueError(f"{item}: item_id must be unique, {len(repeated)} repeated, for example {repeated[:3]}")
    rows["user_id"] = ids(rows["user_id"], inter, parse=True)
    return rows, dict(zip(item_ids.tolist(), names.tolist(), strict=True))


def _atomic(path: Path) -> pd.DataFrame:
    """A RecBole atomic file as text columns, the `:type` of each header name checked and removed."""
    rows = text_table(path, sep="\t", quoting=csv.QUOTE_NONE)
    untyped = [c for c in rows if c.rpartition(":")[2] not in ("token", "token_seq", "float", "float_seq")]
    if untyped:
        raise ValueError(
            f"{path}: a header of `name:type` expected (token, token_seq, float, float_seq), found {untyped}"
        )
    return rows.rename(columns=lambda c: c.rpartition(":")[0])
