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
    language model learns what they leave over. That is much of an unknown item, and little of others: w is w1 of known
    items and w1 + w2 of those without a vector or taken for such. Else score = logit(yes) - logit(no), as published.

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
            self.readout_of_unknown = nn.Parameter(torch.zeros_like(self.readout))

    @property
    def vector_width(self) -> int:
        return self.embeddings.users.shape[1]

    @property
    def ranks_from_the_start(self) -> bool:
        return self.config.offset

    def told(self, samples: Samples) -> Samples:
        """In training some users and some items are taken for unknown, by the shares of the configuration."""
        shares = self.config.user_dropout, self.config.item_dropout
        if not self.training or not any(shares) or samples.unknown_users is not None:
            return samples
        users, items = (torch.rand(len(samples.user_ids)) < share for share in shares)
        if self.config.splits_prompts:  # All of a user alike: those that are told the same share their beginning.
            of: dict[Any, int] = {}
            users = users[[of.setdefault(owner, len(of)) for owner in samples.owners()]]
        return samples._replace(unknown_users=users, unknown_items=items)

    def _unknown_items(self, samples: Samples) -> Tensor:
        """bool [B]: which items have no vector, or are taken for such."""
        unknown = ~self.embeddings.has_items(samples.item_ids)
        return unknown if samples.unknown_items is None else unknown | samples.unknown_items

    def readouts(self, samples: Samples) -> Tensor | None:
        if self.readout is None:
            return None
        unknown = self._unknown_items(samples)
        return self.readout + unknown.to(self.readout)[:, None] * self.readout_of_unknown

    def offsets(self, samples: Samples) -> Tensor | None:
        if not self.config.offset:
            return None
        # The tables are on the CPU, vectors that were given are where the model is.
        device = self.pairs.user_mean.device
        e_u, e_i = self.embeddings.vectors(*samples[:3], samples.item_vectors)
        e_u, e_i = e_u.to(device), self._guessed(samples, e_i).to(device)
        if samples.unknown_users is not None:
            e_u = torch.where(samples.unknown_users.to(device)[:, None], self.pairs.user_mean, e_u)
        return (e_u * e_i).sum(1)

    def pair(self, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
        """e_u [B, d], e_i [B, d] and affinity [B] as `Pairs` gives them, those of the means where a user or an item is
        unknown, or what is guessed of the item; the mean item of samples without an item."""
        samples = self.told(samples)
        users, items = samples.user_vectors, samples.item_vectors
        users = self.embeddings.lookup_users(samples.user_ids) if users is None else users.clone()
        if items is None and self.embeddings.guesses is None:
            items = self.embeddings.lookup_items(samples.item_ids)
            if samples.unknown_items is not None:
                items[samples.unknown_items] = len(self.embeddings.items)
        else:
            table = self.embeddings.item_table
            items = table[self.embeddings.lookup_items(samples.item_ids)] if items is None else items.clone()
            items = self._guessed(samples, items)
        if samples.unknown_users is not None:
            users[samples.unknown_users] = self._unknown(users, self.pairs.user_mean, len(self.embeddings.users))
        if samples.without_item is not None:
            items[samples.without_item] = self._unknown(items, self.pairs.item_mean, len(self.embeddings.items))
        pair: tuple[Tensor, Tensor, Tensor] = self.pairs(users, items)
        return pair

    def _guessed(self, samples: Samples, e_i: Tensor) -> Tensor:
        """e_i [B, d], in place of those of unknown items what the embeddings guess; what was given of an item stands
        unless it is taken for unknown."""
        unknown = self._unknown_items(samples) if samples.item_vectors is None else samples.unknown_items
        if unknown is None or not bool(unknown.any()):
            return e_i
        guessed = self.embeddings.guessed(samples.item_ids)
        return torch.where(unknown.to(e_i.device)[:, None], guessed.to(e_i), e_i)

    @staticmethod
    def _unknown(told: Tensor, mean: Tensor, row: int) -> Tensor | int:
        """What stands for an unknown one: the mean among vectors, the row behind the last among rows."""
        return mean.to(told) if told.is_floating_point() else row

    @classmethod
    def _file_names(cls) -> tuple[str, ...]:
        return *super()._file_names(), _EMBEDDINGS

    def _own_files(self) -> dict[str, Callable[[Path], object]]:
        return {_EMBEDDINGS: self.embeddings.save}

    @classmethod
    def _built(cls, base_model: PreTrainedModel, config: Any, folder: Path) -> "Self":
        return cls(base_model, config, CollaborativeEmbeddings.load(folder / _EMBEDDINGS))
