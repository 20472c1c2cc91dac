"""Balanced assignment by entropic optimal transport: every code gets the same share of a batch."""

import math

import torch
from torch import Tensor

_TINY = 1e-12


def sinkhorn(distances: Tensor, epsilon: float, rounds: int = 50) -> Tensor:
    """Q = exp(-d / epsilon), then `rounds` times: rows to sum to 1/B, columns to 1/K. Gives B·Q, [B, K] float64.

    d are the distances [B, K] shifted and scaled to [-1, 1] by their own extremes. All in the log domain and in double,
    so that an epsilon of .001, whose exp(-d / epsilon) spans 868 decades, stays finite. Columns sum to B/K.

    Raises ValueError for an epsilon that is not positive and for rounds < 1.
    Source: Cuturi, Sinkhorn distances, NIPS 2013; its use on the last level: Zheng et al., LC-Rec, ICDE 2024.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon: expected a positive number, got {epsilon!r}")
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    d = distances.double()
    middle, half = (d.max() + d.min()) / 2, (d.max() - d.min()) / 2
    log_q = -(d - middle) / half.clamp(min=_TINY) / epsilon
    by_column = log_q.t().contiguous()  # sums along the last dimension are several times as fast
    rows, columns = (math.log(size) for size in d.shape)
    of_row, of_column = d.new_zeros(d.shape[0]), d.new_zeros(d.shape[1])
    for _ in range(rounds):
        of_row = -(log_q + of_column).logsumexp(1) - rows
        of_column = -(by_column + of_row).logsumexp(1) - columns
    return (log_q + of_row[:, None] + of_column + rows).exp()


def balanced(distances: Tensor, epsilon: float) -> Tensor:
    """int64 [B]: of each row its code by `sinkhorn`, the nearest one for epsilon 0."""
    if epsilon == 0:
        return distances.argmin(1)
    return torch.as_tensor(sinkhorn(distances, epsilon).argmax(1))
