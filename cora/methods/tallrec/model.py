"""TALLRecModel: a frozen causal LM with one LoRA for all users, told of user and item in its prompt alone."""

import math
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cora.collaborative import CollaborativeEmbeddings
from cora.llm.deltas import Delta
from cora.methods.config import MethodConfig
from cora.methods.model import MethodModel
from cora.methods.samples import Samples
from cora.methods.tallrec.config import TALLRecConfig


class TALLRecModel(MethodModel):
    """y = x·Wᵀ + (alpha / r) · (x·A) · B in every adapted linear, A [K, r] and B [r, N] learned, shared by all samples.

    A starts uniform in ±1/√K, B at zero, so the model starts as the base model. Dropout: rows of A, [K, 1], once per
    forward and for each group of linears that share an input, as in CoRAModel.

    base_model, config: as for MethodModel. embeddings: not read, the text alone is; every method is built alike.
    Source: Bao et al., TALLRec, RecSys 2023, arXiv 2305.00447; the start is that of LoRA (Hu et al., ICLR 2022).
    """

    Config: ClassVar[type[MethodConfig]] = TALLRecConfig
    config: TALLRecConfig

    def __init__(
        self, base_model: PreTrainedModel, config: TALLRecConfig, embeddings: CollaborativeEmbeddings | None = None
    ) -> None:
        super().__init__(base_model, config)
        layers, device, r = self.patch.layers.values(), base_model.device, config.r
        # A list: the name of a module holds dots, that of a parameter may hold none.
        self.lora_as = nn.ParameterList(_uniform(one.in_features, r, device) for one in layers)
        self.lora_bs = nn.ParameterList(torch.zeros(r, one.out_features, device=device) for one in layers)

    def deltas(self, samples: Samples) -> dict[str, Delta]:
        """The one LoRA, whoever the samples are about."""
        factors = zip(self.patch.layers, self.lora_as, self.lora_bs, strict=True)
        return {name: Delta(lora_a, lora_b, self.config.scaling) for name, lora_a, lora_b in factors}

    @classmethod
    def _built(cls, base_model: PreTrainedModel, config: TALLRecConfig, folder: Path) -> "TALLRecModel":
        return cls(base_model, config)


def _uniform(width: int, r: int, device: torch.device) -> Tensor:
    return torch.empty(width, r, device=device).uniform_(-1, 1) / math.sqrt(width)
