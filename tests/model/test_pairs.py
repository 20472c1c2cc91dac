"""What the generator reads of a pair, against the vectors it was made of."""

import torch

from cora.collaborative import CollaborativeEmbeddings
from cora.generators.pairs import Pairs


def test_vectors_are_standardised_and_the_affinity_is_the_inner_product() -> None:
    torch.manual_seed(0)
    users, items = 3 + torch.randn(6, 5), torch.randn(9, 5) * torch.tensor([1.0, 5.0, 0.1, 1.0, 2.0]) - 1
    pairs = Pairs(CollaborativeEmbeddings(list(range(6)), list(range(9)), users, items))
    rows = torch.cartesian_prod(torch.arange(6), torch.arange(9)).T
    e_u, e_i, affinity = pairs(*rows)
    for vectors in (e_u, e_i):
        torch.testing.assert_close(vectors.mean(0), torch.zeros(5), atol=1e-6, rtol=0)
        torch.testing.assert_close(vectors.square().mean(), torch.tensor(1.0))
    inner = (users[rows[0]] * items[rows[1]]).sum(1)
    torch.testing.assert_close(affinity, (inner - inner.mean()) / inner.std(correction=0), atol=1e-5, rtol=1e-5)


def test_unknown_ids_are_the_mean() -> None:
    torch.manual_seed(0)
    users, items = 1 + torch.randn(6, 5), torch.randn(9, 5) - 1
    pairs = Pairs(CollaborativeEmbeddings(list(range(6)), list(range(9)), users, items))
    unknown = torch.full((9,), 6)
    e_u, _, affinity = pairs(unknown, torch.arange(9))
    assert not e_u.any()
    everyone = torch.stack([pairs(torch.full((9,), user), torch.arange(9))[2] for user in range(6)])
    torch.testing.assert_close(affinity, everyone.mean(0), atol=1e-5, rtol=1e-5)
    assert not any(part.any() for part in pairs(torch.tensor([6]), torch.tensor([9])))


def test_equal_rows_are_finite() -> None:
    pairs = Pairs(CollaborativeEmbeddings([1, 2], [3], torch.ones(2, 4), torch.ones(1, 4)))
    assert all(part.isfinite().all() for part in pairs(torch.tensor([0, 2]), torch.tensor([0, 1])))
