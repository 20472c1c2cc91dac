"""LightGCN: vectors averaged over the neighbours in the graph of who rated what."""

import pandas as pd
import torch
from torch import Tensor, nn

from cora.collaborative.embeddings import CollaborativeEmbeddings
from cora.collaborative.fitting import FitResult, Recipe, TrainingRows, check_dim, fit, with_biases

_INITIAL_STD = 0.1


def train_lightgcn(
    train: pd.DataFrame,
    valid: pd.DataFrame,
    dim: int = 256,
    *,
    layers: int = 2,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-4,
    batch_size: int = 2048,
    max_epochs: int = 100,
    patience: int = 10,
    seed: int = 0,
) -> tuple[CollaborativeEmbeddings, FitResult]:
    """minimise BCE(score, label) by Adam, score = <p_u, q_i> + b_u + c_i = <e_u, e_i>, where [p; q] is the mean of

        E, ÂE, …, Â^layers·E,    Â = D^-1/2 · A · D^-1/2,    A[u, i] = A[i, u] = 1 for each pair that train holds

    E [U + I, dim - 2] is learned, D holds the row sums of A. The graph is of who rated what, liked or not: two films
    that the same people watched are near each other, and the labels, which the loss alone sees, are not smoothed into
    their neighbours. A repeated pair is one edge. e_u and e_i as of `train_mf`, biases included.

    train, valid, what is returned and raised: as of `train_mf`; layers < 1 too. Published: two layers, these rates
    (Liu et al., AAAI 2025). Source of the propagation: He et al., LightGCN, SIGIR 2020.
    """
    check_dim(dim)
    if layers < 1:
        raise ValueError(f"layers: expected at least 1, got {layers}")
    recipe = Recipe(learning_rate, weight_decay, batch_size, max_epochs, patience)
    result = fit(
        "LightGCN", lambda rows, generator: _LightGCN(rows, dim - 2, layers, generator), train, valid, recipe, seed
    )
    return result.embeddings, result


def normalised_adjacency(user: Tensor, item: Tensor, users: int, items: int) -> Tensor:
    """Â = D^-1/2 · A · D^-1/2, sparse float32 [users + items, users + items], users first; a repeated pair is one
    edge."""
    pairs = torch.unique(torch.stack([user, users + item]), dim=1)
    places = torch.cat([pairs, pairs.flip(0)], 1)
    degree = torch.bincount(places[0], minlength=users + items).clamp(min=1).float()
    values = (degree[places[0]] * degree[places[1]]).rsqrt()
    size = (users + items,) * 2
    return torch.sparse_coo_tensor(places, values, size, check_invariants=False).coalesce()


def propagated(adjacency: Tensor, start: Tensor, layers: int) -> Tensor:
    """(E + ÂE + … + Â^layers·E) / (layers + 1)."""
    total = layer = start
    for _ in range(layers):
        layer = _Product.apply(adjacency, layer)
        total = total + layer
    return total / (layers + 1)


class _Product(torch.autograd.Function):
    """Â·E; the backward needs the transpose of Â, which is symmetric, so it is the same product again."""

    @staticmethod
    def forward(ctx, adjacency: Tensor, vectors: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.adjacency = adjacency
        return adjacency @ vectors

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[no-untyped-def]
        return None, ctx.adjacency @ grad


class _LightGCN(nn.Module):
    def __init__(self, rows: TrainingRows, factors: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.users, self.layers = len(rows.user_ids), layers
        nodes = self.users + len(rows.item_ids)
        self.adjacency = normalised_adjacency(rows.user, rows.item, self.users, len(rows.item_ids))
        self.start = nn.Parameter(_INITIAL_STD * torch.randn(nodes, factors, generator=generator))
        self.bias = nn.Parameter(torch.zeros(nodes))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        vectors, item = propagated(self.adjacency, self.start, self.layers), self.users + item
        return (vectors[user] * vectors[item]).sum(1) + self.bias[user] + self.bias[item]

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, Tensor]:
        p, q = propagated(self.adjacency, self.start, self.layers).tensor_split([self.users])
        b, c = self.bias.tensor_split([self.users])
        return with_biases(p, b, q, c)
