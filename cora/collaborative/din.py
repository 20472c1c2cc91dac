"""DIN: a past is weighed by what it says of the item asked about, so that the user's vector is that of the pair."""

import pandas as pd
import torch
from torch import Tensor, nn

from cora.collaborative.embeddings import CollaborativeEmbeddings, with_mean
from cora.collaborative.fitting import FitResult, Recipe, TrainingRows, check_dim
from cora.collaborative.item_factors import item_factors
from cora.collaborative.pair_encoder import PairEncoder, vectors_of_pairs
from cora.collaborative.past_fitting import PastModel, fit_by_pasts
from cora.collaborative.pasts import Pasts

_FACTOR_SIZE = 1.0  # root mean square of the items' vectors at the start: products of small ones learn late


def train_din(
    train: pd.DataFrame,
    valid: pd.DataFrame,
    dim: int = 64,
    *,
    hidden: int = 64,
    max_length: int = 60,
    dropout: float = 0.1,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-5,
    batch_size: int = 256,
    max_epochs: int = 30,
    patience: int = 3,
    seed: int = 0,
) -> tuple[CollaborativeEmbeddings, FitResult]:
    """minimise BCE(score, label) by Adam, score = <w, c> + b_i = <e_u, e_i>, c = encoder(the user's past, the item).

    The past of a row is what its user rated at an earlier time, the newest `max_length` rows; rows of the same moment
    and of the row's own item are no part of it. `PairEncoder` says how it is read. No id of a user is: one unseen in
    training has a vector like any other. q_i starts at `item_factors`. e_u = [c, 1, 0] is of a user and an item, and
    e_i = [w, b_i, q_i], dim wide, fp32: q has (dim - 1) // 2 columns, c and w the rest. The users' table holds e_u
    after all of their rows in train, asked about the mean item; the embeddings name their encoder and carry it.

    train, valid: frames with user_id, item_id, label (0 or 1) and timestamp; the past of a row of valid holds earlier
    rows of both. Stops after `patience` epochs without a better valid AUC. Deterministic given the seed; the global
    random state is left as it was.

    Raises ValueError, naming the frame, for a missing column, no rows or labels of one class only; for dim < 3.
    Source: Zhou et al., Deep interest network for click-through rate prediction, KDD 2018; as RecLoRA reads it (Zhu et
    al., arXiv 2408.03533), which has 60 ratings of a past, and fields and layers of 256 that small data do not bear.
    """
    check_dim(dim)
    width = (dim - 1) // 2

    def make(rows: TrainingRows) -> _DIN:
        factors = _FACTOR_SIZE * item_factors(rows, width, seed).float()
        return _DIN(factors, PairEncoder(width, dim - 1 - width, hidden, max_length, dropout))

    recipe = Recipe(learning_rate, weight_decay, batch_size, max_epochs, patience)
    return fit_by_pasts("din", make, train, valid, recipe, max_length, seed)


class _DIN(PastModel):
    """score = <w, c> + b_i, c of the past of each row and its item."""

    encoder: PairEncoder

    def __init__(self, factors: Tensor, encoder: PairEncoder) -> None:
        super().__init__()
        self.q = nn.Parameter(factors)
        self.b = nn.Parameter(torch.zeros(len(factors)))
        self.w = nn.Linear(encoder.features, 1, bias=False)
        self.encoder = encoder

    def forward(self, past: Tensor, labels: Tensor, there: Tensor, item: Tensor) -> Tensor:
        logits: Tensor = self.w(self.encoder(self.q[item], self.q[past], labels, there)).squeeze(1) + self.b[item]
        return logits

    @torch.no_grad()
    def vectors(self, past: Pasts, asked: Tensor) -> Tensor:
        """e_u = [c, 1, 0] of pasts and the rows of the items asked about, the one after the last the mean item."""
        return vectors_of_pairs(self.encoder.pairs(with_mean(self.q), past, asked), self.q.shape[1])

    @torch.no_grad()
    def items(self) -> Tensor:
        """e_i = [w, b_i, q_i]."""
        return torch.cat([self.w.weight.expand(len(self.q), -1), self.b[:, None], self.q], 1)
