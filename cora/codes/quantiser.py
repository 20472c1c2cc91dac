"""ResidualQuantiser: a vector as the sum of one vector of each of a few codebooks."""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.nn import functional

from cora.codes.sinkhorn import balanced

_COMMITMENT = 0.25
_KMEANS_ROUNDS = 100


class Quantised(NamedTuple):
    """z_q [B, d], straight-through: its gradient is that of z. codes int64 [B, L]. loss [], of codebooks and z."""

    z_q: Tensor
    codes: Tensor
    loss: Tensor


class ResidualQuantiser(nn.Module):
    """r_1 = z; c_l = argmin_c |r_l - v_lc|², r_(l+1) = r_l - v_(l,c_l); z_q = sum of v_(l,c_l).

    codebooks: [L, K, d], learned. started: whether k-means has placed them, a buffer, so that a model that was saved
    and loaded is not started again. In training mode the codes of the last level are balanced over the batch
    (`sinkhorn`, by `epsilon`, 0 for not), elsewhere every code is the nearest.

    loss = mean over levels of mse(v, sg(r)) + 0.25 · mse(sg(v), r), every mse a mean over elements.
    Sources: Lee et al., RQ-VAE, CVPR 2022; Zheng et al., LC-Rec, ICDE 2024.
    """

    started: Tensor

    def __init__(self, levels: int, codes: int, dim: int, epsilon: float = 0.003) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.codebooks = nn.Parameter(torch.zeros(levels, codes, dim))
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def start(self, z: Tensor, seed: int) -> None:
        """Places every codebook by k-means of the residuals that the levels before leave of z [B, d]; once: a second
        call does nothing. Raises ValueError for fewer vectors than codes."""
        if bool(self.started):
            return
        levels, codes, _ = self.codebooks.shape
        if len(z) < codes:
            raise ValueError(f"codes: expected at most as many as there are vectors, {len(z)}, got {codes}")
        residual = z.detach().double()
        for level in range(levels):
            with warnings.catch_warnings():  # of fewer distinct vectors than codes: some codes are then alike
                warnings.simplefilter("ignore", ConvergenceWarning)
                means = KMeans(codes, n_init=1, max_iter=_KMEANS_ROUNDS, random_state=seed).fit(residual.numpy())
            centres = torch.from_numpy(np.asarray(means.cluster_centers_))
            self.codebooks[level] = centres.to(self.codebooks)
            residual = residual - centres[torch.from_numpy(means.labels_).long()]
        self.started.fill_(True)

    def distances(self, residual: Tensor, level: int) -> Tensor:
        """|r - v_c|², [B, K], of residuals [B, d] and every code of a level."""
        return torch.cdist(residual, self.codebooks[level].detach().to(residual)).square()

    def forward(self, z: Tensor) -> Quantised:
        residual, total, losses, codes = z, torch.zeros_like(z), [], []
        last = len(self.codebooks) - 1
        for level, codebook in enumerate(self.codebooks):
            epsilon = self.epsilon if self.training and level == last else 0.0
            chosen = balanced(self.distances(residual.detach(), level), epsilon)
            v = codebook[chosen]
            losses.append(
                functional.mse_loss(v, residual.detach()) + _COMMITMENT * functional.mse_loss(residual, v.detach())
            )
            residual, total = residual - v.detach(), total + v.detach()
            codes.append(chosen)
        return Quantised(z + (total - z).detach(), torch.stack(codes, 1), torch.stack(losses).mean())
