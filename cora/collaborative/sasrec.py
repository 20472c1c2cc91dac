"""SASRec: the user is what a self-attentive encoder reads from their past, liked and disliked."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from cora.collaborative.embeddings import CollaborativeEmbeddings, with_mean
from cora.collaborative.fitting import FitResult, Recipe, TrainingRows, check_dim, check_times, epochs, row_of
from cora.collaborative.item_factors import item_factors
from cora.collaborative.past_encoder import PastEncoder, Pasts
from cora.data.histories import pasts

_FACTOR_SIZE = 0.3  # root mean square of the items' vectors at the start
_SORTED = 16  # batches of pasts of similar length, made of so many shuffled ones


def train_sasrec(
    train: pd.DataFrame,
    valid: pd.DataFrame,
    dim: int = 64,
    *,
    blocks: int = 2,
    max_length: int = 25,
    dropout: float = 0.2,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    batch_size: int = 256,
    max_epochs: int = 30,
    patience: int = 3,
    seed: int = 0,
) -> tuple[CollaborativeEmbeddings, FitResult]:
    """minimise BCE(score, label) by Adam, score = <p, q_i> + b + c_i = <e_u, e_i>, [p, b] = encoder(the user's past).

    The past of a row is what its user rated at an earlier time, the newest `max_length` rows; rows of the same moment
    and of the row's own item are no part of it, so no vector has seen its own row, and a user unseen in training has a
    vector like any other. `PastEncoder` says how it is read. q_i
    starts at `item_factors`, which know who rated what (ML-1M at dim 18: valid AUC .770; from small
    random ones, as published, .736). e_u = [p, b, 1] and e_i = [q_i, 1, c_i], dim wide, fp32; the users' table holds
    e_u after all of their rows in train; the embeddings name their encoder and carry it.

    train, valid: frames with user_id, item_id, label (0 or 1) and timestamp; the past of a row of valid holds earlier
    rows of both. Stops after `patience` epochs without a better valid AUC. Deterministic given the seed; the global
    random state is left as it was.

    Raises ValueError, naming the frame, for a missing column, no rows or labels of one class only; for dim < 3.
    Published: two blocks, dropout 0.2, 25 rows (Liu et al., AAAI 2025). Source: Kang and McAuley, Self-attentive
    sequential recommendation, ICDM 2018; that labels are read, and predicted one by one, is ours.
    """
    check_dim(dim)
    check_times(train, valid)
    rows = TrainingRows.of(train, valid)
    past = pasts_of_rows(rows, train, train)
    valid_past = pasts_of_rows(rows, valid, pd.concat([train, valid]))
    recipe = Recipe(learning_rate, weight_decay, batch_size, max_epochs, patience)
    with torch.random.fork_rng(devices=[]):  # initial weights and dropout draw from the global state
        torch.manual_seed(seed)
        factors = _FACTOR_SIZE * item_factors(rows, dim - 2, seed).float()
        model = _SASRec(factors, PastEncoder(dim - 2, max_length, blocks, dropout))

        def loss(batch: Tensor) -> Tensor:
            logits = model.train()(*past.newest(batch, max_length), rows.item[batch])
            return functional.binary_cross_entropy_with_logits(logits, rows.label[batch])

        def valid_auc(_: dict[str, Tensor]) -> float:
            items = with_mean(model.items())
            scores = (model.encoder.users(items[:, :-2], valid_past) * items[rows.valid_item]).sum(1)
            return float(roc_auc_score(rows.valid_label, scores.numpy()))

        best, aucs, best_epoch = epochs(
            "SASRec",
            model.parameters(),
            lambda: batches_of_pasts(past.lengths.clamp(max=max_length), batch_size),
            loss,
            lambda: {name: one.clone() for name, one in model.state_dict().items()},
            valid_auc,
            recipe,
        )
    model.load_state_dict(best)
    items = model.items()
    # After their last row, asked about no item: their whole past.
    ends = pd.DataFrame({"user_id": rows.user_ids, "item_id": None, "timestamp": np.iinfo(np.int64).max})
    users = model.encoder.users(items[:, :-2], pasts_of_rows(rows, ends, train))
    embeddings = CollaborativeEmbeddings(
        rows.user_ids, rows.item_ids, users, items, "sasrec", model.encoder.state_dict()
    )
    return embeddings, FitResult(embeddings, aucs, best_epoch)


def pasts_of_rows(rows: TrainingRows, of: pd.DataFrame, known: pd.DataFrame) -> Pasts:
    """What the users of the rows `of` rated earlier in `known`, in the rows of the items of train."""
    items, labels = pasts(of, known)
    return Pasts(row_of(rows.item_ids, items.values), torch.from_numpy(labels.values), torch.from_numpy(items.offsets))


def batches_of_pasts(lengths: Tensor, size: int) -> Sequence[Tensor]:
    """Shuffled rows in batches of pasts of similar length, which are padded little, in shuffled order."""
    found = [
        batch
        for rows in torch.randperm(len(lengths)).split(_SORTED * size)
        for batch in rows[lengths[rows].argsort(stable=True)].split(size)
    ]
    return [found[place] for place in torch.randperm(len(found)).tolist()]


class _SASRec(nn.Module):
    """score = <p, q_i> + b + c_i, [p, b] of the past of each row; the same q_i are what the encoder reads."""

    def __init__(self, factors: Tensor, encoder: PastEncoder) -> None:
        super().__init__()
        self.q = nn.Parameter(factors)
        self.c = nn.Parameter(torch.zeros(len(factors)))
        self.encoder = encoder

    def forward(self, past: Tensor, labels: Tensor, there: Tensor, item: Tensor) -> Tensor:
        found = self.encoder(self.q[past], labels, there)
        return (found[:, :-1] * self.q[item]).sum(1) + found[:, -1] + self.c[item]

    @torch.no_grad()
    def items(self) -> Tensor:
        """e_i = [q_i, 1, c_i]."""
        c = self.c[:, None]
        return torch.cat([self.q, torch.ones_like(c), c], 1)
