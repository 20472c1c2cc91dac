"""PairModel: what the methods share that are told of the collaborative vectors of a user and an item."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cora.collaborative import CollaborativeEmbeddings
from cora.generators import Pairs
from cora.methods.config import PairConfig
from cora.methods.model import MethodModel
from cora.methods.samples import Samples

if TYPE_CHECKING:
    from typing import Self

_EMBEDDINGS = "embeddings.safetensors"


class PairModel(MethodModel):
    """The language model's answer, or with `offset` score = <e_u, e_i> + <w, h>, w [h] learned, zero at the start.

    With an offset the collaborative logit <e_u, e_i> is part of the score and h, the hidden state before the answer,
    is read by w in place of the rows of " Yes" and " No": training starts at what the vectors alone reach, and the
    language model learns what they leave over. Else score = logit(yes) - logit(no), as published.

    base_model, config: as for MethodModel. embeddings: the vectors of users and items; with `offset` those of a model
    whose inner product is the logit of a like. They are saved with the model and not trained.
    """

    Config: ClassVar[type[PairConfig]]
    config: PairConfig

    def __init__(self, base_model: PreTrainedModel, config: PairConfig, embeddings: CollaborativeEmbeddings) -> None:
        super().__init__(base_model, config)
        self.embeddings = embeddings
        self.pairs = Pairs(embeddings).to(base_model.device)
        if config.offset:
            self.readout = nn.Parameter(torch.zeros(self.scorer.hidden_size, device=base_model.device))

    @property
    def vector_width(self) -> int:
        return self.embeddings.users.shape[1]

    def offsets(self, samples: Samples) -> Tensor | None:
        if not self.config.offset:
            return None
        return self.embeddings.score(samples.user_ids, samples.item_ids, samples.user_vectors)

    def pair(self, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
        """e_u [B, d], e_i [B, d] and affinity [B] as `Pairs` gives them, of samples without an item those of the mean
        item; in training some users taken for unknown."""
        user_vectors = samples.user_vectors
        users = self.embeddings.lookup_users(samples.user_ids) if user_vectors is None else user_vectors.clone()
        if self.training and self.config.user_dropout > 0:
            unknown = len(self.embeddings.users) if user_vectors is None else self.pairs.user_mean.to(users)
            users[_drawn(samples) < self.config.user_dropout] = unknown
        items = self.embeddings.lookup_items(samples.item_ids)
        if samples.without_item is not None:
            items[samples.without_item] = len(self.embeddings.items)
        pair: tuple[Tensor, Tensor, Tensor] = self.pairs(users, items)
        return pair

    @classmethod
    def _file_names(cls) -> tuple[str, ...]:
        return *super()._file_names(), _EMBEDDINGS

    def _own_files(self) -> dict[str, Callable[[Path], object]]:
        return {_EMBEDDINGS: self.embeddings.save}

    @classmethod
    def _built(cls, base_model: PreTrainedModel, config: Any, folder: Path) -> "Self":
        return cls(base_model, config, CollaborativeEmbeddings.load(folder / _EMBEDDINGS))


def _drawn(samples: Samples) -> Tensor:
    """A number for each sample, uniform in [0, 1): one for all of a user where prompts are several samples."""
    if samples.without_item is None:
        return torch.rand(len(samples.user_ids))
    of: dict[Any, int] = {}
    rows = [of.setdefault(owner, len(of)) for owner in samples.owners()]
    return torch.rand(len(of))[rows]
