"""LightGCN's propagation against dense matrices, and its gradient."""

import torch

from cora.collaborative.lightgcn import normalised_adjacency, propagated

USER, ITEM = torch.tensor([0, 0, 1, 2, 2, 0]), torch.tensor([0, 1, 1, 0, 3, 1])  # (0, 1) twice, item 2 never


def dense() -> torch.Tensor:
    rated = torch.zeros(3, 4)
    rated[USER, ITEM] = 1
    whole = torch.zeros(7, 7)
    whole[:3, 3:], whole[3:, :3] = rated, rated.T
    scale = whole.sum(1).clamp(min=1).rsqrt()
    return scale[:, None] * whole * scale


def test_the_adjacency_is_the_dense_one() -> None:
    torch.testing.assert_close(normalised_adjacency(USER, ITEM, 3, 4).to_dense(), dense())


def test_propagation_and_its_gradient_are_the_dense_ones() -> None:
    torch.manual_seed(0)
    start, grad = torch.randn(7, 5, requires_grad=True), torch.randn(7, 5)
    one = dense()
    expected = (start + one @ start + one @ one @ start + one @ one @ one @ start) / 4
    found = propagated(normalised_adjacency(USER, ITEM, 3, 4), start, layers=3)
    torch.testing.assert_close(found, expected)
    (wanted,), (got,) = (torch.autograd.grad(value, start, grad) for value in (expected, found))
    torch.testing.assert_close(got, wanted)
