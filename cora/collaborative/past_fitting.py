"""The fit that models of pasts share: what each row's user rated earlier, read by an encoder that is trained on it."""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from cora.collaborative.fitting import Recipe, TrainingRows, epochs, row_of
from cora.collaborative.pasts import Pasts
from cora.data.histories import pasts

_SORTED = 16  # batches of pasts of similar length, made of so many shuffled ones
_Model = TypeVar("_Model", bound=nn.Module)


class PastFit(NamedTuple, Generic[_Model]):
    """The model of the best epoch; the pasts of the users of train after their last row, in the order of rows.user_ids;
    the valid AUC of every epoch, and which was the best."""

    model: _Model
    whole: Pasts
    valid_aucs: list[float]
    best_epoch: int


def fit_by_pasts(
    name: str,
    make: Callable[[], _Model],
    scores: Callable[[_Model, Pasts, Tensor], Tensor],
    rows: TrainingRows,
    train: pd.DataFrame,
    valid: pd.DataFrame,
    recipe: Recipe,
    max_length: int,
    seed: int,
) -> PastFit[_Model]:
    """minimise BCE(model(items, labels, there, item), label) by Adam, the first three the newest `max_length` rows of
    the past of each row's user; the epoch of the best AUC on valid, whose pasts hold rows of both frames, is kept.

    scores: of pasts and the rows of the items asked about. The global random state is left as it was.
    """
    past = _pasts_of(rows, train, train)
    valid_past = _pasts_of(rows, valid, pd.concat([train, valid]))
    with torch.random.fork_rng(devices=[]):  # initial weights and dropout draw from the global state
        torch.manual_seed(seed)
        model = make()

        def loss(batch: Tensor) -> Tensor:
            logits = model.train()(*past.newest(batch, max_length), rows.item[batch])
            return functional.binary_cross_entropy_with_logits(logits, rows.label[batch])

        def valid_auc(_: dict[str, Tensor]) -> float:
            return float(roc_auc_score(rows.valid_label, scores(model, valid_past, rows.valid_item).numpy()))

        best, aucs, best_epoch = epochs(
            name,
            model.parameters(),
            lambda: _batches(past.lengths.clamp(max=max_length), recipe.batch_size),
            loss,
            lambda: {name: one.clone() for name, one in model.state_dict().items()},
            valid_auc,
            recipe,
        )
    model.load_state_dict(best)
    # After their last row, asked about no item: their whole past.
    ends = pd.DataFrame({"user_id": rows.user_ids, "item_id": None, "timestamp": np.iinfo(np.int64).max})
    return PastFit(model, _pasts_of(rows, ends, train), aucs, best_epoch)


def _pasts_of(rows: TrainingRows, of: pd.DataFrame, known: pd.DataFrame) -> Pasts:
    """What the users of the rows `of` rated earlier in `known`, in the rows of the items of train."""
    items, labels = pasts(of, known)
    return Pasts(row_of(rows.item_ids, items.values), torch.from_numpy(labels.values), torch.from_numpy(items.offsets))


def _batches(lengths: Tensor, size: int) -> Sequence[Tensor]:
    """Shuffled rows in batches of pasts of similar length, which are padded little, in shuffled order."""
    found = [
        batch
        for rows in torch.randperm(len(lengths)).split(_SORTED * size)
        for batch in rows[lengths[rows].argsort(stable=True)].split(size)
    ]
    return [found[place] for place in torch.randperm(len(found)).tolist()]
