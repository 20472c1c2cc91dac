"""CoRAModel: a frozen causal LM whose weights, for each sample, a generator adapts to a user and an item."""

from typing import ClassVar

import torch
from transformers import PreTrainedModel

from cora.collaborative import CollaborativeEmbeddings
from cora.generators.shared_part import SharedPart
from cora.llm.deltas import Delta
from cora.methods.cora.config import CoRAConfig
from cora.methods.generated_model import GeneratedModel
from cora.methods.samples import Samples


class CoRAModel(GeneratedModel):
    """y = x·Wᵀ + (alpha / r) · (x·A(u, i)) · P in every adapted linear of a frozen language model.

    The generator makes the deltas of the frozen embeddings as `Pairs` gives them: A(u, i) [B, width, r] of each sample,
    and P [r, out], one zero parameter per linear, so the model starts as the base model. The generator alone is
    trained. With shared_prefix the beginning of a prompt, up to the title asked about, has the deltas of the user and
    the mean item.

    Dropout: the published layer drops features of x in the low-rank path. Here the rows of A are dropped, [B, width,
    1], once per forward and for each group of linears that share an input: the same as dropping features of x with
    one mask for all positions of a sample, at no pass over x, and the same when activation checkpointing recomputes
    the layer.

    base_model, config: as for MethodModel. embeddings: the vectors of users and items. state_dict holds the generator.

    Raises TypeError for a base_model that is no PreTrainedModel, ValueError for a configuration that does not fit it;
    the base model is then as it was.
    """

    Config: ClassVar[type[CoRAConfig]] = CoRAConfig
    config: CoRAConfig
    shared_part: SharedPart | None

    def __init__(self, base_model: PreTrainedModel, config: CoRAConfig, embeddings: CollaborativeEmbeddings) -> None:
        super().__init__(base_model, config, embeddings)
        part = SharedPart(self.patch.layers, config.shared_rank, config.scaling) if config.shared_rank else None
        self.register_module("shared_part", part)

    def deltas(self, samples: Samples) -> dict[str, Delta]:
        """What the generator makes of each sample's user and item, and what all samples share."""
        deltas = super().deltas(samples)
        with torch.autocast(self.base.device.type, enabled=False):
            return deltas if self.shared_part is None else self.shared_part(deltas)
