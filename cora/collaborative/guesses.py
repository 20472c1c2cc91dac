"""Vectors of items that nobody has rated yet, guessed from vectors of what is written of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cora.collaborative.embeddings import CollaborativeEmbeddings, ItemGuesses

_PRIOR = 5.0  # ratings at which an item's vector counts for half as much as one that is known for certain
_STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(2, 13))
_TINY = 1e-12


def guessed_items(
    embeddings: CollaborativeEmbeddings, item_ids: Sequence[Any], texts: Tensor, ratings: Sequence[int]
) -> ItemGuesses:
    """ê_i = ē + z_i W, z_i the text's vector with every column standardised, for each of n items.

        W = argmin Σ_i c_i |e_i - ē - z_i W|² + λ |W|²,    c_i = n_i / (n_i + 5)

    over the items that have a vector e_i, ē their mean and n_i their ratings. λ is of eleven strengths the one of the
    least error Σ_i c_i Σ_u <e_u, e_i - ê_i>² when each ê_i is of the regression without item i. So is the ê_i that is
    kept of an item with a vector: who is trained on it sees what it will see of a new item.

    item_ids, texts [n, h] and ratings [n]: of the items to be guessed; those with a vector in embeddings are learned
    from. Raises ValueError unless three of them are.
    Source: Gantner et al., Learning attribute-to-feature mappings for cold-start recommendations, ICDM 2010.
    """
    row = {one: place for place, one in enumerate(embeddings.item_ids)}
    learned = [place for place, one in enumerate(item_ids) if one in row]
    if len(learned) < 3:
        raise ValueError(f"item_ids: expected three or more that have a vector, got {len(learned)} of {len(item_ids)}")
    rated = np.asarray(ratings, dtype=np.float64)[learned]
    weights = torch.from_numpy(np.sqrt(rated / (rated + _PRIOR)))[:, None]
    mean, deviation = texts[learned].double().mean(0), texts[learned].double().std(0, correction=0)
    scale = torch.where(deviation > _TINY, 1 / deviation.clamp(min=_TINY), 0.0)
    z, centre = (texts.double() - mean) * scale, embeddings.items.double().mean(0)
    rest = embeddings.items.double()[[row[item_ids[place]] for place in learned]] - centre
    left, sizes, right = torch.linalg.svd(weights * z[learned], full_matrices=False)
    inside, users = left.T @ (weights * rest), embeddings.users.double()
    metric = users.T @ users / len(users)

    def without_itself(strength: float) -> Tensor:
        """What is left of each item's e_i - ē, times its weight, by the regression without it."""
        shrunk = sizes.square() / (sizes.square() + strength)
        leverage = (left.square() * shrunk).sum(1, keepdim=True)
        return (weights * rest - left @ (shrunk[:, None] * inside)) / (1 - leverage).clamp(min=_TINY)

    left_over = {strength: without_itself(strength) for strength in _STRENGTHS}
    strength = min(left_over, key=lambda one: float(((left_over[one] @ metric) * left_over[one]).sum()))
    coefficients = scale[:, None] * (right.T @ ((sizes / (sizes.square() + strength))[:, None] * inside))
    from_text = torch.cat([coefficients, (centre - mean @ coefficients)[None]]).to(embeddings.items.dtype)
    vectors = ItemGuesses.of_texts(from_text, texts)
    own = rest - left_over[strength] / weights.clamp(min=_TINY)
    # An item of no rating has taken no part in the regression, and is guessed as it is.
    vectors[learned] = torch.where(weights > 0, (centre + own).to(vectors), vectors[learned])
    return ItemGuesses(list(item_ids), vectors, from_text)
