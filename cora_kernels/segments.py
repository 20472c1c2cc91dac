"""Which rows of x belong to which sample."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Segments(NamedTuple):
    """The M rows of a batch, cut into B samples.

    Padded: every sample has `length` rows and cu_seqlens is None. Packed: sample i has the rows
    cu_seqlens[i]:cu_seqlens[i + 1] (int32 [B + 1]) and length is None.
    """

    batch: int
    rows: int
    length: int | None
    cu_seqlens: Tensor | None

    @classmethod
    def of(cls, x: Tensor, cu_seqlens: Tensor | None) -> "Segments":
        """The segments of x [B, T, K], or of packed x [M, K] with cu_seqlens."""
        if cu_seqlens is None:
            batch, length, _ = x.shape
            return cls(batch, batch * length, length, None)
        return cls(cu_seqlens.shape[0] - 1, x.shape[0], None, cu_seqlens)

    def by_sample(self, rows: Tensor) -> Tensor:
        """[M, p] -> [B, T, p], of a padded batch."""
        assert self.length is not None
        return rows.view(self.batch, self.length, rows.shape[1])

    def per_row(self, values: Tensor) -> Tensor:
        """One value per sample [B] -> one per row [M, 1]."""
        if self.cu_seqlens is None:
            assert self.length is not None
            return values[:, None].expand(self.batch, self.length).reshape(self.rows, 1)
        return torch.repeat_interleave(values, self.cu_seqlens.diff(), output_size=self.rows)[:, None]


def spans(cu_seqlens: Tensor, rows: int) -> list[slice]:
    """The rows of each sample of a packed batch of `rows` rows. Reads the values, so it waits for an accelerator."""
    boundaries = cu_seqlens.tolist()
    if boundaries[0] != 0:
        raise ValueError(f"cu_seqlens must start at 0, got cu_seqlens[0] = {boundaries[0]}")
    if boundaries[-1] != rows:
        last = boundaries[-1]
        raise ValueError(f"cu_seqlens must end at the number of rows of x, {rows}, got cu_seqlens[-1] = {last}")
    for i, (start, stop) in enumerate(pairwise(boundaries)):
        if stop < start:
            raise ValueError(f"cu_seqlens must not decrease, got {start} and then {stop} at index {i + 1}")
    return [slice(start, stop) for start, stop in pairwise(boundaries)]


def prefixes(parents: Tensor, samples: list[slice]) -> list[slice | None]:
    """The rows of each sample's parent, None for one that has none. Reads the values, as `spans` does."""
    values = parents.tolist()
    for i, parent in enumerate(values):
        if not -1 <= parent < len(samples):
            raise ValueError(f"parents must be -1 or one of the {len(samples)} samples, got parents[{i}] = {parent}")
        if parent == i:
            raise ValueError(f"parents must name other samples, got parents[{i}] = {parent}")
        if parent != -1 and values[parent] != -1:
            raise ValueError(
                f"parents must have no parents themselves, got parents[{i}] = {parent} and parents[{parent}] = "
                f"{values[parent]}"
            )
    return [None if parent == -1 else samples[parent] for parent in values]
