"""The fit that models of pasts share: what each row's user rated earlier, read by an encoder that is trained on it."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from cora.collaborative.embeddings import CollaborativeEmbeddings, with_mean
from cora.collaborative.fitting import FitResult, Recipe, TrainingRows, check_times, epochs, row_of
from cora.collaborative.pasts import Pasts
from cora.data.histories import pasts

_SORTED = 16  # batches of pasts of similar length, made of so many shuffled ones


class PastModel(nn.Module):
    """Logits of likes [b] of pasts, whose items, labels and `there` are [b, t], and the rows [b] of the items asked
    about. `encoder` makes the vectors of users; the logits are inner products of vectors."""

    encoder: nn.Module

    def vectors(self, past: Pasts, asked: Tensor) -> Tensor:
        """e_u [n, d] of n pasts and the rows of the items asked about, row I the mean item; detached."""
        raise NotImplementedError

    def items(self) -> Tensor:
        """e_i [I, d], detached."""
        raise NotImplementedError

    def scores(self, past: Pasts, asked: Tensor) -> Tensor:
        """<e_u, e_i> [n]."""
        return (self.vectors(past, asked) * with_mean(self.items())[asked]).sum(1)


def fit_by_pasts(
    name: str,
    make: Callable[[TrainingRows], PastModel],
    train: pd.DataFrame,
    valid: pd.DataFrame,
    recipe: Recipe,
    max_length: int,
    seed: int,
) -> tuple[CollaborativeEmbeddings, FitResult]:
    """minimise BCE(model(items, labels, there, item), label) by Adam, the first three the newest `max_length` rows of
    the past of each row's user; the epoch of the best AUC on valid, whose pasts hold rows of both frames, is kept.

    name: of the user encoder whose weights the embeddings carry; their users' table holds e_u after all of each user's
    rows in train. The global random state is left as it was.

    Raises ValueError, naming the frame, for a missing column, no rows or labels of one class only.
    """
    check_times(train, valid)
    rows = TrainingRows.of(train, valid)
    past = _pasts_of(rows, train, train)
    valid_past = _pasts_of(rows, valid, pd.concat([train, valid]))
    with torch.random.fork_rng(devices=[]):  # initial weights and dropout draw from the global state
        torch.manual_seed(seed)
        model = make(rows)

        def loss(batch: Tensor) -> Tensor:
            logits = model.train()(*past.newest(batch, max_length), rows.item[batch])
            return functional.binary_cross_entropy_with_logits(logits, rows.label[batch])

        def valid_auc(_: dict[str, Tensor]) -> float:
            return float(roc_auc_score(rows.valid_label, model.scores(valid_past, rows.valid_item).numpy()))

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
    items = model.items()
    users = model.vectors(_pasts_of(rows, ends, train), torch.full((len(ends),), len(items)))
    embeddings = CollaborativeEmbeddings(rows.user_ids, rows.item_ids, users, items, name, model.encoder.state_dict())
    return embeddings, FitResult(embeddings, aucs, best_epoch)


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
