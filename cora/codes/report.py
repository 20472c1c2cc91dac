"""What there is to know of codes: how many items they would confuse, how evenly they are used, who is beside whom."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cora.codes.item_codes import ItemCodes
from cora.files import write_files

_BAR = "#0b6fb8"


def report(nearest: Tensor, codes: ItemCodes) -> dict[str, Any]:
    """collisions: share of items whose nearest codes another item has too, and after they were made unique. used: of
    each level, how many codes have an item; perplexity: exp of the entropy of their use, the number of evenly used
    codes that would be as uneven. moved: share of items whose codes are not the nearest.

    nearest: int64 [n, L], the codes before they were made unique.
    """
    return {
        "items": len(codes.item_ids),
        "levels": codes.levels,
        "codes": codes.size,
        "collisions_before": _collisions(nearest),
        "collisions_after": _collisions(codes.codes),
        "moved": float((nearest != codes.codes).any(1).float().mean()),
        "used": [int((use > 0).sum()) for use in _use(codes)],
        "perplexity": [round(_perplexity(use), 1) for use in _use(codes)],
    }


def neighbours(codes: ItemCodes, row: int, most: int = 5) -> list[tuple[int, int]]:
    """(row, codes in common from the first on) of the items that share the longest beginnings with an item, at most
    `most`, none of those that share nothing."""
    shared = (codes.codes == codes.codes[row]).int().cumprod(1).sum(1)
    shared[row] = 0
    best = shared.sort(descending=True, stable=True).indices[:most].tolist()
    return [(one, int(shared[one])) for one in best if shared[one] > 0]


def as_text(found: dict[str, Any], codes: ItemCodes, titles: Sequence[str], shown: Sequence[int]) -> str:
    """The report, and the neighbours of the items of the rows `shown`; titles: of all rows."""
    lines = [
        f"{found['items']} items, {found['levels']} levels of {found['codes']} codes",
        f"items that share all their nearest codes with another: {found['collisions_before']:.1%}, "
        f"after each got its own: {found['collisions_after']:.1%}; moved for it: {found['moved']:.1%}",
        f"codes used, by level: {', '.join(map(str, found['used']))}; as many evenly used: "
        f"{', '.join(map(str, found['perplexity']))}",
    ]
    for row in shown:
        near = [f"{titles[one]} ({count})" for one, count in neighbours(codes, row, 3)]
        lines.append(f"  {'-'.join(map(str, codes.codes[row].tolist()))}  {titles[row]}: {', '.join(near) or 'alone'}")
    return "\n".join(lines)


def picture(codes: ItemCodes, path: Path) -> None:
    """How many items have each code, most first, a panel for each level; a PNG."""
    figure = Figure(figsize=(3 * codes.levels, 3), layout="constrained")
    panels = figure.subplots(1, codes.levels, squeeze=False)[0]
    for level, (axes, use) in enumerate(zip(panels, _use(codes), strict=True)):
        axes.bar(range(codes.size), use.sort(descending=True).values.tolist(), width=1.0, color=_BAR)
        axes.set(xlabel="code, by use", ylabel="items" if level == 0 else "", title=f"Level {level + 1}")
        axes.spines[["top", "right"]].set_visible(False)
    write_files(path.parent, {path.name: lambda file: figure.savefig(file, dpi=150, format="png")})


def _use(codes: ItemCodes) -> list[Tensor]:
    return [torch.bincount(column, minlength=codes.size) for column in codes.codes.T]


def _collisions(codes: Tensor) -> float:
    _, which, counts = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)
    return float((counts[which] > 1).float().mean())


def _perplexity(use: Tensor) -> float:
    share = use[use > 0] / use.sum()
    return float((-(share * share.log()).sum()).exp())
