"""Which rows of x belong to which sample, and the two products that walk the segments of a packed batch."""

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
    borders = cu_seqlens.tolist()
    if borders[0] != 0:
        raise ValueError(f"cu_seqlens must start at 0, got cu_seqlens[0] = {borders[0]}")
    if borders[-1] != rows:
        raise ValueError(f"cu_seqlens must end at the number of rows of x, {rows}, got cu_seqlens[-1] = {borders[-1]}")
    for i, (start, stop) in enumerate(pairwise(borders)):
        if stop < start:
            raise ValueError(f"cu_seqlens must not decrease, got {start} and then {stop} at index {i + 1}")
    return [slice(start, stop) for start, stop in pairwise(borders)]


def segment_mm(rows: Tensor, factors: Tensor, cu_seqlens: Tensor) -> Tensor:
    """rows_i [M_i, p] · factors[i], of [B, p, q], for every segment i -> [M, q]."""
    return torch.ops.cora_kernels.segment_mm(rows, factors, cu_seqlens)


def segment_outer(u: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """u_iᵀ·v_i for the rows of every segment i, u [M, p] and v [M, q] -> [B, p, q]."""
    return torch.ops.cora_kernels.segment_outer(u, v, cu_seqlens)


def _segment_mm(rows: Tensor, factors: Tensor, cu_seqlens: Tensor) -> Tensor:
    out = rows.new_empty(rows.shape[0], factors.shape[2])
    for i, span in enumerate(spans(cu_seqlens, rows.shape[0])):
        torch.mm(rows[span], factors[i], out=out[span])
    return out


def _segment_outer(u: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    out = u.new_empty(cu_seqlens.shape[0] - 1, u.shape[1], v.shape[1])
    for i, span in enumerate(spans(cu_seqlens, u.shape[0])):
        torch.mm(u[span].t(), v[span], out=out[i])
    return out


# Operators, because torch.compile cannot trace a walk over borders that are data: it calls these as they are.
_LIBRARY = torch.library.Library("cora_kernels", "FRAGMENT")
_LIBRARY.define("segment_mm(Tensor rows, Tensor factors, Tensor cu_seqlens) -> Tensor")
_LIBRARY.define("segment_outer(Tensor u, Tensor v, Tensor cu_seqlens) -> Tensor")
_LIBRARY.impl("segment_mm", _segment_mm, "CompositeExplicitAutograd")
_LIBRARY.impl("segment_outer", _segment_outer, "CompositeExplicitAutograd")


@torch.library.register_fake("cora_kernels::segment_mm")
def _(rows: Tensor, factors: Tensor, cu_seqlens: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], factors.shape[2])


@torch.library.register_fake("cora_kernels::segment_outer")
def _(u: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    return u.new_empty(cu_seqlens.shape[0] - 1, u.shape[1], v.shape[1])
