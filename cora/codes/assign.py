"""Codes that no two items share."""

import random

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@torch.no_grad()
def unique_codes(z: Tensor, codebooks: Tensor) -> Tensor:
    """int64 [n, L]: the nearest code of every residual, level after level, changed where two items would be alike.

    z [n, d]: what is quantised; codebooks [L, K, d]. Items that share their codes so far have room for K^(levels left)
    of each code: where more are nearest to one, those farthest from it go to their next-nearest code with room. On the
    last level items that share all others get different codes of least total squared distance. Where no two items have
    the same nearest codes those are what they get. Identical vectors are told apart, too. Deterministic.

    Raises ValueError for more items than K^L.
    Source: Crouse, On implementing 2D rectangular assignment algorithms, 2016 (scipy's linear_sum_assignment).
    """
    levels, size, _ = codebooks.shape
    if len(z) > size**levels:
        raise ValueError(f"items: {levels} levels of {size} codes tell {size**levels:,} apart, got {len(z):,}")
    found = np.zeros((len(z), levels), dtype=np.int64)
    residuals, books = z.double().cpu(), codebooks.double().cpu()
    groups = [np.arange(len(z))]
    for level in range(levels):
        room = size ** (levels - 1 - level)
        for rows in groups:
            distances = torch.cdist(residuals[rows], books[level]).square().numpy()
            found[rows, level] = _assigned(distances, room)
        residuals = residuals - books[level][found[:, level]]
        groups = [part for rows in groups for part in _by_code(rows, found[rows, level])]
    return torch.from_numpy(found)


def random_codes(items: int, levels: int, size: int, seed: int) -> Tensor:
    """int64 [items, levels]: different codes drawn at random, which tell nothing of the items."""
    drawn = random.Random(seed).sample(range(size**levels), items)
    places = size ** np.arange(levels - 1, -1, -1)
    return torch.from_numpy(np.array(drawn, dtype=np.int64)[:, None] // places % size)


def _assigned(distances: np.ndarray, room: int) -> np.ndarray:
    """The code of each row of distances [n, K], at most `room` rows to a code."""
    if room == 1:
        return np.asarray(linear_sum_assignment(distances)[1])
    nearest = distances.argmin(1)
    chosen = nearest.copy()
    left = np.full(distances.shape[1], room)
    moved = []
    for code in np.unique(nearest):
        rows = np.flatnonzero(nearest == code)
        rows = rows[np.argsort(distances[rows, code], kind="stable")]
        left[code] -= min(len(rows), room)
        moved += rows[room:].tolist()
    for row in moved:
        order = np.argsort(distances[row], kind="stable")
        code = order[left[order] > 0][0]
        chosen[row], left[code] = code, left[code] - 1
    return chosen


def _by_code(rows: np.ndarray, codes: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(codes, kind="stable")
    return np.split(rows[order], np.flatnonzero(np.diff(codes[order])) + 1)
