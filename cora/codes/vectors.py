"""The vectors of items that codes are made of: of their titles, of who did something with them, or of both."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cora.collaborative.fitting import TrainingRows
from cora.collaborative.item_factors import item_factors

VECTORS = ("text", "collaborative", "both", "random")
_MOST_TOKENS = 2048
_TINY = 1e-12


@torch.no_grad()
def text_vectors(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    titles: Sequence[str],
    batch_size: int = 32,
    layer: int | None = None,
) -> Tensor:
    """[n, h] fp32: of each title the mean over its tokens of the language model's last hidden states, or of those
    behind so many of its layers.

    At most 2,048 tokens of a title are read. Raises ValueError, naming its row, for a title without a token.
    Source: Zheng et al., LC-Rec, ICDE 2024.
    """
    ids = tokenizer(list(titles), add_special_tokens=False, truncation=True, max_length=_MOST_TOKENS)["input_ids"]
    lengths = torch.tensor([len(one) for one in ids])
    if not bool(lengths.all()):
        row = int((lengths == 0).nonzero()[0])
        raise ValueError(f"titles: the title in row {row} has no token: {titles[row]!r:.80}")
    order = lengths.argsort(stable=True)
    found = torch.empty(len(ids), base.config.hidden_size)
    for rows in tqdm(order.split(batch_size), desc="titles", delay=2, leave=False):
        tokens = torch.zeros(len(rows), int(lengths[rows].max()), dtype=torch.int64)
        for place, row in enumerate(rows.tolist()):
            tokens[place, : len(ids[row])] = torch.tensor(ids[row])
        # Padded on the right: a causal model does not see it.
        made = base.base_model(
            input_ids=tokens.to(base.device), use_cache=False, output_hidden_states=layer is not None
        )
        hidden = (made.last_hidden_state if layer is None else made.hidden_states[layer]).float().cpu()
        there = (torch.arange(tokens.shape[1]) < lengths[rows, None]).float()[..., None]
        found[rows] = (hidden * there).sum(1) / there.sum(1)
    return found


def collaborative_vectors(train: pd.DataFrame, item_ids: Sequence[Any], width: int = 32, seed: int = 0) -> Tensor:
    """[n, width] fp32: `item_factors` of who did something with which item in `train`, liked or not, at unit length.

    train: user_id, item_id. Of length one, for how often an item occurs tells nothing of what it is like. An item
    without a row in train has zeros.
    """
    user, user_ids = pd.factorize(train["user_id"], sort=True)
    item, known = pd.factorize(train["item_id"], sort=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    rows = TrainingRows(
        torch.from_numpy(user),
        torch.from_numpy(item),
        torch.zeros(len(train)),
        user_ids.tolist(),
        known.tolist(),
        nothing,
        nothing,
        np.zeros(0),
    )
    factors = torch.nn.functional.normalize(item_factors(rows, width, seed), dim=1)
    row = torch.from_numpy(known.get_indexer(pd.Index(list(item_ids))))
    return torch.where((row >= 0)[:, None], factors[row.clamp(min=0)], 0.0).float()


def standardised(vectors: Tensor) -> Tensor:
    """Vectors [n, d] with every column centred and of variance one; a column that does not vary is zero. For hidden
    states, of which a few columns are a hundred times as large as the others."""
    centred = vectors.double() - vectors.double().mean(0)
    deviation = centred.square().mean(0).sqrt()
    return torch.where(deviation > _TINY, centred / deviation.clamp(min=_TINY), 0.0).float()


def side_by_side(*vectors: Tensor) -> Tensor:
    """Vectors [n, d] of one or more sources, centred, each scaled to the same sum of variances and all together to unit
    mean square: none outweighs another by its width or its unit, and within one its columns keep their proportions."""
    parts = []
    for one in vectors:
        centred = one.double() - one.double().mean(0)
        parts.append(centred / centred.square().sum(1).mean().sqrt().clamp(min=_TINY))
    width = sum(part.shape[1] for part in parts)
    return (torch.cat(parts, 1) * (width / len(parts)) ** 0.5).float()
