"""Which rows of x belong to which sample: built once per call, read by every backend."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor


class Segments(NamedTuple):
    """The rows [M, ...] of a batch, cut into B samples.

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
            return cls(x.shape[0], x.shape[0] * x.shape[1], x.shape[1], None)
        return cls(cu_seqlens.shape[0] - 1, x.shape[0], None, cu_seqlens)

    def spans(self) -> list[slice]:
        """The rows of each sample. Reads the values of cu_seqlens, so it waits for an accelerator."""
        if self.cu_seqlens is None:
            return [slice(i * self.length, (i + 1) * self.length) for i in range(self.batch)]
        borders = borders_of(self.cu_seqlens, self.rows)
        return [slice(start, stop) for start, stop in itertools.pairwise(borders)]

    def per_row(self, values: Tensor) -> Tensor:
        """One value per sample [B] -> one per row [M, 1]."""
        if self.cu_seqlens is None:
            return values[:, None].expand(self.batch, self.length).reshape(self.rows, 1)
        return torch.repeat_interleave(values, self.cu_seqlens.diff(), output_size=self.rows)[:, None]


def borders_of(cu_seqlens: Tensor, rows: int) -> list[int]:
    """The values of cu_seqlens, after checking that they cut exactly `rows` rows."""
    borders = cu_seqlens.tolist()
    if borders[0] != 0:
        raise ValueError(f"cu_seqlens must start at 0, got cu_seqlens[0] = {borders[0]}")
    if borders[-1] != rows:
        raise ValueError(f"cu_seqlens must end at the number of rows of x, {rows}, got cu_seqlens[-1] = {borders[-1]}")
    for i, (start, stop) in enumerate(itertools.pairwise(borders)):
        if stop < start:
            raise ValueError(f"cu_seqlens must not decrease, got {start} then {stop} at index {i + 1}")
    return borders
