"""Matrix factorisation as published with CoRA: tables alone, from N(0, 1)."""

import pandas as pd
import torch
from torch import Tensor, nn

from cora.collaborative.embeddings import CollaborativeEmbeddings
from cora.collaborative.fitting import FitResult, Recipe, TrainingRows, fit


def train_mf_published(
    train: pd.DataFrame,
    valid: pd.DataFrame,
    dim: int = 256,
    *,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    batch_size: int = 2048,
    max_epochs: int = 1000,
    patience: int = 20,
    seed: int = 0,
) -> tuple[CollaborativeEmbeddings, FitResult]:
    """minimise BCE(<e_u, e_i>, label) by Adam, lr 1e-3, weight decay 1e-4: the baseline of the paper (dim 256 there).

    No biases, and tables that start as torch's nn.Embedding does, at N(0, 1): logits of deviation sqrt(dim), 16 at
    256, which the training has to shrink before it can learn. On ML-1M that takes hundreds of epochs (valid AUC .545
    after 200, .714 at the best, after 387), where `train_mf`, which starts at logits of zero and knows how much an item
    is liked in general, has .734 after 8. Size of a batch, most epochs and patience are ours.

    train, valid, what is returned and raised: as of `train_mf`, but dim may be 1. Source: Liu et al., AAAI 2025,
    and the code of CoLLM (Zhang et al., 2023), from which it has its vectors.
    """
    if dim < 1:
        raise ValueError(f"dim: expected at least 1, got {dim}")
    recipe = Recipe(learning_rate, weight_decay, batch_size, max_epochs, patience)
    result = fit("MF as published", lambda rows, generator: _Tables(rows, dim, generator), train, valid, recipe, seed)
    return result.embeddings, result


class _Tables(nn.Module):
    """score(u, i) = <p_u, q_i>."""

    def __init__(self, rows: TrainingRows, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.randn(len(rows.user_ids), dim, generator=generator))
        self.q = nn.Parameter(torch.randn(len(rows.item_ids), dim, generator=generator))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.p[user] * self.q[item]).sum(1)

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.p.detach().clone(), self.q.detach().clone()
