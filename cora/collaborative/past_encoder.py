"""The self-attentive encoder of a user's past, in training and for the vectors of a saved file."""

from collections.abc import Mapping
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from cora.collaborative.embeddings import CollaborativeEmbeddings
from cora.collaborative.pasts import Asked, PastItems, PastLabels, Pasts, pasts_of
from cora.tensors import Described, misfit

_Encoder = TypeVar("_Encoder", bound=nn.Module)

_INITIAL_STD = 0.02
_CHUNK = 512  # users encoded at once


class PastEncoder(nn.Module):
    """[p, b] = Linear(norm(last position of the blocks over [v_1 … v_t, query])),  v_k = q_k + label_k + position_k.

    q_k [width] is the vector of the k-th item of the past, the same that the score reads; label_k stands for liked or
    disliked, position_k for its place counted from the newest. query is learned: a user without a past has a vector
    too. Attention looks everywhere: all that it sees is past. The blocks are pre-norm, with one head.
    """

    def __init__(self, width: int, max_length: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.label = nn.Parameter(_INITIAL_STD * torch.randn(2, width))
        self.position = nn.Parameter(_INITIAL_STD * torch.randn(max_length, width))
        self.query = nn.Parameter(_INITIAL_STD * torch.randn(width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 1, 2 * width, dropout, functional.gelu, batch_first=True, norm_first=True)
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, width + 1)
        nn.init.normal_(self.head.weight, std=_INITIAL_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, items: Tensor, labels: Tensor, there: Tensor) -> Tensor:
        """[p, b] [b, width + 1] of items [b, t, width], labels [b, t], there [b, t]."""
        read = items + self.label[labels] + self.position[: items.shape[1]].flip(0)
        read = torch.cat([self.dropout(read), self.query.expand(len(read), 1, -1)], 1)
        absent = functional.pad(~there, (0, 1))
        for block in self.blocks:
            read = block(read, src_key_padding_mask=absent)
        found: Tensor = self.head(self.norm(read[:, -1]))
        return found

    @torch.no_grad()
    def users(self, item_table: Tensor, pasts: Pasts) -> Tensor:
        """e_u = [p, b, 1] [n, width + 2] of n pasts whose items are rows of item_table [I, width]."""
        self.eval()
        found = item_table.new_ones(len(pasts.lengths), item_table.shape[1] + 2)
        order = pasts.lengths.argsort(stable=True)
        with tqdm(total=len(order), desc="encoding", unit="user", delay=2) as bar:
            for users in order.split(_CHUNK) if len(order) else ():
                items, labels, there = pasts.newest(users, len(self.position))
                found[users, :-1] = self(item_table[items], labels, there)
                bar.update(len(users))
        return found


class SequenceEncoder:
    """e_u by the `PastEncoder` that the embeddings carry, of items whose vectors are [q_i, 1, c_i].

    Raises ValueError for tensors that are not those of such an encoder.
    """

    reads_item: ClassVar[bool] = False

    def __init__(self, embeddings: CollaborativeEmbeddings) -> None:
        tensors, width = embeddings.encoder_tensors, embeddings.items.shape[1] - 2
        position = tensors.get("position")
        if width < 1 or position is None or position.dim() != 2:
            raise ValueError("user_encoder: the embeddings do not hold the weights of sasrec's encoder")
        blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
        made = PastEncoder(width, len(position), len(blocks), dropout=0.0)
        self._encoder = filled("sasrec", made, tensors)
        self._embeddings = embeddings

    def vectors(self, items: PastItems, labels: PastLabels, asked: Asked = None) -> Tensor:
        """[n, d] in the tables' dtype: the vectors of n users who rated `items`[n][…] with `labels`[n][…], 1 or 0,
        oldest first; the newest as many as the encoder reads count. asked: not read.

        Items that the embeddings do not have count as their mean. Raises ValueError for lists of different lengths.
        """
        pasts = pasts_of(self._embeddings, items, labels)
        table = self._embeddings.item_table[:, :-2].float()
        return self._encoder.users(table, pasts).to(self._embeddings.users.dtype)


def filled(name: str, encoder: _Encoder, tensors: Mapping[str, Tensor]) -> _Encoder:
    """The encoder with these weights, frozen. Raises ValueError, naming the encoder, for those that do not fit it."""
    # As a file would describe them; of dtypes all that counts is whether they are float.
    shapes = {
        weight: Described("F32" if one.is_floating_point() else "I64", tuple(one.shape))
        for weight, one in tensors.items()
    }
    if problem := misfit(shapes, encoder.state_dict()):
        raise ValueError(f"user_encoder: the weights do not fit {name}'s encoder: {problem}")
    encoder.load_state_dict(tensors)
    return encoder.requires_grad_(False)
