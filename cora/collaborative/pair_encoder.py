"""DIN's reading of a past in the light of the item asked about, in training and for the vectors of a saved file."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cora.collaborative.embeddings import CollaborativeEmbeddings
from cora.collaborative.past_encoder import filled
from cora.collaborative.pasts import Asked, PastItems, PastLabels, Pasts, pasts_of

_CHUNK = 512  # pairs encoded at once
_ATTENTION = 32  # width of the hidden layer that weighs a past


class PairEncoder(nn.Module):
    """c = MLP([q ; s ; q·s]),  s = Σ_t w_t·h_t,  h_t = PReLU(Linear([q_t ; label_t])),
    w_t = MLP([q ; h_t ; q - h_t ; q·h_t]).

    q [width] is the vector of the item asked about and q_t that of the t-th item of the past, label_t stands for liked
    or disliked. The weights are no softmax, as published: how much of a past speaks to the item counts too. The newest
    `max_length` rows are read, in no order. MLP has two hidden layers of `hidden` with dropout; c [features] is its
    last layer. PReLU, as DIN has it: of a few units with ReLU, as small data ask for, all may die.
    """

    max_length: Tensor

    def __init__(self, width: int, features: int, hidden: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("max_length", torch.tensor(max_length))
        self.features = features
        self.label = nn.Parameter(torch.randn(2, width))
        self.rated = nn.Sequential(nn.Linear(2 * width, width), nn.PReLU())
        self.attention = nn.Sequential(nn.Linear(4 * width, _ATTENTION), nn.PReLU(), nn.Linear(_ATTENTION, 1))
        self.layers = nn.Sequential(
            nn.Linear(3 * width, hidden), nn.PReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.PReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, features), nn.PReLU(),
        )  # fmt: skip

    def forward(self, asked: Tensor, items: Tensor, labels: Tensor, there: Tensor) -> Tensor:
        """c [b, features] of asked [b, width], items [b, t, width], labels [b, t] and there [b, t]."""
        h = self.rated(torch.cat([items, self.label[labels]], -1))
        q = asked[:, None].expand_as(h)
        weights = self.attention(torch.cat([q, h, q - h, q * h], -1)) * there[..., None]
        read = (weights * h).sum(1)
        found: Tensor = self.layers(torch.cat([asked, read, asked * read], -1))
        return found

    @torch.no_grad()
    def pairs(self, item_table: Tensor, pasts: Pasts, asked: Tensor) -> Tensor:
        """c [n, features] of n pasts and the items asked about [n], both as rows of item_table [I, width]."""
        self.eval()
        most = int(self.max_length)
        found = item_table.new_empty(len(asked), self.features)
        order = pasts.lengths.clamp(max=most).argsort(stable=True)
        with tqdm(total=len(order), desc="encoding", unit="pair", delay=2) as bar:
            for rows in order.split(_CHUNK) if len(order) else ():
                items, labels, there = pasts.newest(rows, most)
                found[rows] = self(item_table[asked[rows]], item_table[items], labels, there)
                bar.update(len(rows))
        return found


class InterestEncoder:
    """e_u = [c, 1, 0] by the `PairEncoder` that the embeddings carry, of items whose vectors are [w, b_i, q_i]: the
    vector of a user is another one for every item that they are asked about.

    Raises ValueError for tensors that are not those of such an encoder.
    """

    reads_item: ClassVar[bool] = True

    def __init__(self, embeddings: CollaborativeEmbeddings) -> None:
        tensors, dim = embeddings.encoder_tensors, embeddings.items.shape[1]
        label, hidden = tensors.get("label"), tensors.get("layers.0.bias")
        if label is None or hidden is None or label.dim() != 2 or not 0 < label.shape[1] < dim - 1:
            raise ValueError("user_encoder: the embeddings do not hold the weights of din's encoder")
        self._width = label.shape[1]
        made = PairEncoder(self._width, dim - 1 - self._width, hidden.numel(), max_length=1, dropout=0.0)
        self._encoder = filled("din", made, tensors)
        self._embeddings = embeddings

    def vectors(self, items: PastItems, labels: PastLabels, asked: Asked = None) -> Tensor:
        """[n, d] in the tables' dtype: the vectors of n users who rated `items`[n][…] with `labels`[n][…], 1 or 0,
        oldest first, and are asked about `asked`[n]; None for the mean item.

        Items that the embeddings do not have count as their mean. Raises ValueError for lists of different lengths.
        """
        pasts = pasts_of(self._embeddings, items, labels)
        table = self._embeddings.item_table[:, -self._width :].float()
        if asked is None:
            rows = torch.full((len(pasts.lengths),), len(table) - 1)
        else:
            rows = self._embeddings.lookup_items(asked)
        if len(rows) != len(pasts.lengths):
            raise ValueError(f"asked: expected {len(pasts.lengths)} items, one for each past, got {len(rows)}")
        c = self._encoder.pairs(table, pasts, rows)
        return vectors_of_pairs(c, self._width).to(self._embeddings.users.dtype)


def vectors_of_pairs(c: Tensor, width: int) -> Tensor:
    """e_u = [c, 1, 0] [n, features + 1 + width] of c [n, features]."""
    return torch.cat([c, torch.ones_like(c[:, :1]), c.new_zeros(len(c), width)], 1)
