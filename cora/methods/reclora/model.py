"""RecLoRAModel: a frozen causal LM with a LoRA of every pair's own, mixed from a few meta-LoRAs by a gate."""

from typing import ClassVar

import torch
from transformers import PreTrainedModel

from cora.collaborative import CollaborativeEmbeddings
from cora.generators.gated import GatedGenerator
from cora.llm.deltas import Delta
from cora.methods.config import PairConfig
from cora.methods.pair_model import PairModel
from cora.methods.reclora.config import RecLoRAConfig
from cora.methods.samples import Samples


class RecLoRAModel(PairModel):
    """y = x·Wᵀ + (alpha / r) · (x·A(u, i)) · B(u, i) in every adapted linear, A and B mixed as `GatedGenerator` says.

    The gate reads what `Pairs` gives of a conventional recommender, which is frozen: the vectors of user and item, and
    their inner product; of the collaborative model "din" that is its last hidden layer c, which is of the pair. At the
    start every B_k is zero, and the model is the base model; meta-LoRAs and gates alone are trained.

    base_model, config: as for MethodModel. embeddings: the vectors of users and items.
    Source: Zhu et al., RecLoRA, arXiv 2408.03533.
    """

    Config: ClassVar[type[PairConfig]] = RecLoRAConfig
    config: RecLoRAConfig

    def __init__(self, base_model: PreTrainedModel, config: RecLoRAConfig, embeddings: CollaborativeEmbeddings) -> None:
        super().__init__(base_model, config, embeddings)
        dim = embeddings.users.shape[1]
        with self.or_unpatched():
            generator = GatedGenerator(config.options, dim, self.patch.layers, config.r, config.scaling)
        self.generator = generator.to(base_model.device)

    def deltas(self, samples: Samples) -> dict[str, Delta]:
        """What the gate mixes for each sample's user and item."""
        pair = self.pair(samples)
        with torch.autocast(self.base.device.type, enabled=False):
            deltas: dict[str, Delta] = self.generator(*pair)
            return deltas

    @torch.no_grad()
    def spread(self, samples: Samples) -> dict[str, float]:
        """How far the gate and the meta-LoRAs have collapsed, as `GatedGenerator.spread` tells it."""
        return self.generator.spread(*self.pair(samples))
