"""ItemCodes: the code of every item, in a folder that any program can read."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from cora.codes.trie import Trie
from cora.files import write_files
from cora.tensors import described, packed_ids, read_json, read_tensors, unpacked_ids

FORMAT = 1
_TENSORS, _SETTINGS = "codes.safetensors", "index.json"


class ItemCodes:
    """item_ids: integers (int64 tensor or list) or str, unique. codes: int64 [n, L], unique, from 0 up to, not
    including, `size`. about: how they were made, as JSON has it.

    Raises ValueError for ids or codes that are repeated, out of range or not one for each other; TypeError for ids that
    are neither all integers nor all str, and codes that are not int64.
    """

    FILES: ClassVar[tuple[str, ...]] = (_TENSORS, _SETTINGS)

    def __init__(self, item_ids: Any, codes: Tensor, size: int, about: Mapping[str, Any] | None = None) -> None:
        ids = item_ids.tolist() if hasattr(item_ids, "tolist") else list(item_ids)
        kinds = {type(one) for one in ids}
        if kinds not in ({int}, {str}):
            raise TypeError(
                f"item_ids: expected all int or all str, got {', '.join(sorted(k.__name__ for k in kinds))}"
            )
        if len(set(ids)) != len(ids):
            raise ValueError(f"item_ids: must be unique, {len(ids) - len(set(ids))} of {len(ids)} are repeated")
        if codes.dtype != torch.int64 or codes.dim() != 2:
            raise TypeError(f"codes: expected int64 [items, levels], got {codes.dtype} {list(codes.shape)}")
        if len(codes) != len(ids):
            raise ValueError(f"codes: expected {len(ids)} rows, one for each of item_ids, got {len(codes)}")
        self.item_ids: list[Any] = ids
        self.codes, self.size, self.about = codes, size, dict(about or {})
        self.trie = Trie(codes, size)
        self._row = {one: row for row, one in enumerate(ids)}

    @property
    def levels(self) -> int:
        return self.codes.shape[1]

    def rows(self, item_ids: Any) -> np.ndarray:
        """int64 [n]: the row of each id. Raises ValueError, naming some, for items without a code."""
        listed = item_ids.tolist() if hasattr(item_ids, "tolist") else list(item_ids)
        if lacking := [one for one in dict.fromkeys(listed) if one not in self._row]:
            raise ValueError(
                f"index: {len(lacking)} items of the data have no code, for example {', '.join(map(repr, lacking[:3]))}"
                ": was it made of other data?"
            )
        return np.array([self._row[one] for one in listed], dtype=np.int64)

    def writers(self) -> dict[str, Callable[[Path], object]]:
        """What is saved, by file name: codes.safetensors (item_ids int64 [n] or uint8 [n, bytes] of UTF-8 text, codes
        int64 [n, L]) and index.json (format, items, levels, codes a level, and how they were made)."""
        tensors = {"item_ids": packed_ids(self.item_ids), "codes": self.codes.contiguous()}
        settings = {"format": FORMAT, "items": len(self.item_ids), "levels": self.levels, "codes": self.size}
        text = json.dumps({**settings, "about": self.about}, indent=2, ensure_ascii=False) + "\n"
        return {
            _TENSORS: lambda path: save_file(tensors, path, metadata={"format": "pt"}),
            _SETTINGS: lambda path: path.write_text(text, encoding="utf-8"),
        }

    def save(self, folder: str | Path) -> None:
        """Writes the files of `writers` into a folder, whole or not at all."""
        write_files(Path(folder), self.writers())

    @classmethod
    def load(cls, folder: str | Path) -> "ItemCodes":
        """Reads what `save` wrote, made by whatever program; its sizes are checked before anything is allocated.

        Raises FileNotFoundError for a folder without the two files; ValueError, naming the file, for another format,
        sizes that do not fit each other, and codes that are not unique or out of range.
        """
        path, settings = Path(folder) / _TENSORS, read_json(Path(folder) / _SETTINGS)
        where = Path(folder) / _SETTINGS
        if (found := settings.get("format")) != FORMAT:
            raise ValueError(f"{where}: codes of format {found!r}, expected {FORMAT}; make them with this version")
        sizes: dict[str, Any] = {name: settings.get(name) for name in ("items", "levels", "codes")}
        for name, value in sizes.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{where}: {name}: expected a whole number from 1, got {value!r}")
        tensors = described(path)
        wanted = {"item_ids": sizes["items"], "codes": sizes["items"]}
        for name, items in wanted.items():
            if name not in tensors or tensors[name].shape[:1] != (items,):
                got = "none" if name not in tensors else str(list(tensors[name].shape))
                raise ValueError(f"{path}: {name}: expected {items} rows, as {_SETTINGS} says, got {got}")
        if tensors["codes"] != ("I64", (sizes["items"], sizes["levels"])):
            raise ValueError(
                f"{path}: codes: expected I64 [{sizes['items']}, {sizes['levels']}], got {tensors['codes'].dtype} "
                f"{list(tensors['codes'].shape)}"
            )
        read = read_tensors(path, wanted)
        about = settings.get("about")
        try:
            ids = unpacked_ids("item_ids", read["item_ids"])
            return cls(ids, read["codes"], sizes["codes"], about if isinstance(about, dict) else None)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
