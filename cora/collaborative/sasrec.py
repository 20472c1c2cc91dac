"""SASRec: the user is what a self-attentive encoder reads from their past, liked and disliked."""

import pandas as pd
import torch
from torch import Tensor, nn

from cora.collaborative.embeddings import CollaborativeEmbeddings, with_mean
from cora.collaborative.fitting import FitResult, Recipe, TrainingRows, check_dim
from cora.collaborative.item_factors import item_factors
from cora.collaborative.past_encoder import PastEncoder
from cora.collaborative.past_fitting import PastModel, fit_by_pasts
from cora.collaborative.pasts import Pasts

_FACTOR_SIZE = 0.3  # root mean square of the items' vectors at the start


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
    vector like any other. `PastEncoder` says how it is read. q_i starts at `item_factors`, which know who rated what
    (ML-1M at dim 18: valid AUC .770; from small random ones, as published, .736). e_u = [p, b, 1] and
    e_i = [q_i, 1, c_i], dim wide, fp32; the users' table holds e_u after all of their rows in train; the embeddings
    name their encoder and carry it.

    train, valid: frames with user_id, item_id, label (0 or 1) and timestamp; the past of a row of valid holds earlier
    rows of both. Stops after `patience` epochs without a better valid AUC. Deterministic given the seed; the global
    random state is left as it was.

    Raises ValueError, naming the frame, for a missing column, no rows or labels of one class only; for dim < 3.
    Published: two blocks, dropout 0.2, 25 rows (Liu et al., AAAI 2025). Source: Kang and McAuley, Self-attentive
    sequential recommendation, ICDM 2018; that labels are read, and predicted one by one, is ours.
    """
    check_dim(dim)

    def make(rows: TrainingRows) -> _SASRec:
        factors = _FACTOR_SIZE * item_factors(rows, dim - 2, seed).float()
        return _SASRec(factors, PastEncoder(dim - 2, max_length, blocks, dropout))

    recipe = Recipe(learning_rate, weight_decay, batch_size, max_epochs, patience)
    return fit_by_pasts("sasrec", make, train, valid, recipe, max_length, seed)


class _SASRec(PastModel):
    """score = <p, q_i> + b + c_i, [p, b] of the past of each row; the same q_i are what the encoder reads."""

    encoder: PastEncoder

    def __init__(self, factors: Tensor, encoder: PastEncoder) -> None:
        super().__init__()
        self.q = nn.Parameter(factors)
        self.c = nn.Parameter(torch.zeros(len(factors)))
        self.encoder = encoder

    def forward(self, past: Tensor, labels: Tensor, there: Tensor, item: Tensor) -> Tensor:
        found = self.encoder(self.q[past], labels, there)
        return (found[:, :-1] * self.q[item]).sum(1) + found[:, -1] + self.c[item]

    def vectors(self, past: Pasts, asked: Tensor) -> Tensor:
        """e_u = [p, b, 1] of pasts, whatever is asked about."""
        return self.encoder.users(with_mean(self.q.detach()), past)

    @torch.no_grad()
    def items(self) -> Tensor:
        """e_i = [q_i, 1, c_i]."""
        c = self.c[:, None]
        return torch.cat([self.q, torch.ones_like(c), c], 1)
