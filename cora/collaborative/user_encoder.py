"""What makes a user's vector from what they rated before a moment."""

from typing import ClassVar, Protocol

from torch import Tensor

from cora.collaborative.embeddings import CollaborativeEmbeddings
from cora.collaborative.fold_in import FoldIn
from cora.collaborative.pair_encoder import InterestEncoder
from cora.collaborative.past_encoder import SequenceEncoder
from cora.collaborative.pasts import Asked, PastItems, PastLabels


class UserEncoder(Protocol):
    """The past of a user -> e_u, such that <e_u, e_i> is the logit of a like, with the e_i of the same embeddings.

    reads_item: whether e_u is of the item asked about too, another vector for each.
    """

    reads_item: ClassVar[bool]

    def __init__(self, embeddings: CollaborativeEmbeddings) -> None: ...

    def vectors(self, items: PastItems, labels: PastLabels, asked: Asked = None) -> Tensor:
        """[n, d] in the tables' dtype: the vectors of n users who rated `items`[n][…] with `labels`[n][…], 1 or 0,
        oldest first, and are asked about the items `asked`[n], None for no item. Items that the embeddings do not have
        count as their mean."""


# The names that a file of embeddings may hold.
USER_ENCODERS: dict[str, type[UserEncoder]] = {"fold-in": FoldIn, "sasrec": SequenceEncoder, "din": InterestEncoder}


def user_encoder(embeddings: CollaborativeEmbeddings) -> UserEncoder:
    """The encoder that the embeddings name; folding in for those that name none.

    Raises ValueError for an encoder that is not known and for weights that do not fit it.
    """
    name = embeddings.user_encoder or "fold-in"
    if name not in USER_ENCODERS:
        raise ValueError(f"user_encoder: expected one of {', '.join(USER_ENCODERS)}, got {name!r} in the embeddings")
    return USER_ENCODERS[name](embeddings)
