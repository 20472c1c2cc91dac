"""Item factors that have seen no label: the singular vectors of who rated what."""

import torch
from torch import Tensor
from torch.nn import functional

from cora.collaborative.fitting import TrainingRows

_SMOOTHING = 5  # ratings that an item is taken to have more, so that the rarest have small factors
_MORE = 12  # singular vectors searched for beside those kept, so that these are found well
_TINY = 1e-300


def item_factors(rows: TrainingRows, width: int, seed: int) -> Tensor:
    """z_i = (n_i + 5)^-1/2 · (s_1·v_1i, …, s_width·v_width,i), scaled to unit mean square: float64 [I, width].

    s and v are the largest singular values and their right singular vectors of the matrix that has
    n_u^-1/2 · (n_i + 5)^-1/2 where user u has rated item i, liked or not, n_u and n_i being how many items the user and
    how many users the item has there; the first tells items by how many know them, the others by who. Columns beyond
    the rank are zero. Labels are not read: what is trained on these factors finds no memory of its own rows in them.
    seed: of the randomised search, which finds the same factors from any start as far as their values are apart.
    Source: Cremonesi, Koren and Turrin, Performance of recommender algorithms on top-N recommendation tasks, RecSys
    2010; Halko, Martinsson and Tropp, 2011, for the search.
    """
    users, items = len(rows.user_ids), len(rows.item_ids)
    # As one number each: torch.unique of columns takes a hundred times as long.
    distinct = torch.unique(rows.user * items + rows.item)
    pairs = torch.stack([distinct // items, distinct % items])
    of_user = torch.bincount(pairs[0], minlength=users).double()
    of_item = torch.bincount(pairs[1], minlength=items).double() + _SMOOTHING
    values = (of_user[pairs[0]] * of_item[pairs[1]]).rsqrt()
    matrix = torch.sparse_coo_tensor(pairs, values, (users, items), check_invariants=False)
    with torch.random.fork_rng(devices=[]):  # the search draws from the global state
        torch.manual_seed(seed)
        _, sizes, right = torch.svd_lowrank(matrix, min(width + _MORE, users, items), niter=8)
    found = (right * sizes)[:, :width] / of_item.sqrt()[:, None]
    # The sign of a singular vector is arbitrary: one rule for it, and the same rows give the same factors.
    found = torch.where(found.sum(0) < 0, -found, found)
    found = found / found.square().mean().sqrt().clamp(min=_TINY)
    return functional.pad(found, (0, width - found.shape[1]))
