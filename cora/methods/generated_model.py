"""GeneratedModel: what the methods share whose deltas a generator makes of the vectors of user and item."""

from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cora.collaborative import CollaborativeEmbeddings
from cora.llm.deltas import Delta
from cora.methods.config import GeneratedConfig
from cora.methods.pair_model import PairModel
from cora.methods.samples import Samples


class GeneratedModel(PairModel):
    """y = x·Wᵀ + (alpha / r) · (x·A(u, i)) · B(u, i) in every adapted linear of a frozen language model.

    The generator that the configuration names makes the deltas of the frozen embeddings as `Pairs` gives them; at the
    start they are zero, and the model is the base model. The generator alone is trained.

    base_model, config: as for MethodModel. embeddings: the vectors of users and items.
    """

    Config: ClassVar[type[GeneratedConfig]]
    config: GeneratedConfig

    def __init__(
        self, base_model: PreTrainedModel, config: GeneratedConfig, embeddings: CollaborativeEmbeddings
    ) -> None:
        super().__init__(base_model, config, embeddings)
        dim, linears = embeddings.users.shape[1], self.patch.layers
        with self.or_unpatched():
            generator = config.generator_class(config.options, dim, linears, config.r, config.scaling)
        self.generator = generator.to(base_model.device)

    def deltas(self, samples: Samples) -> dict[str, Delta]:
        """What the generator makes of each sample's user and item."""
        pair = self.pair(samples)
        with torch.autocast(self.base.device.type, enabled=False):
            deltas: dict[str, Delta] = self.generator(*pair)
            return deltas

    @torch.no_grad()
    def gate_weights(self, samples: Samples) -> dict[str, Tensor]:
        with self._eval_mode.of(self):
            return self.generator.weights(*self.pair(samples))

    @torch.no_grad()
    def watched(self, samples: Samples) -> dict[str, float]:
        with self._eval_mode.of(self):
            return self.generator.spread(*self.pair(samples))
