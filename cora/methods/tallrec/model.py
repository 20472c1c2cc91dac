"""TALLRecModel: a frozen causal LM with one LoRA for all users, told of user and item in its prompt alone."""

from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel

from cora.collaborative import CollaborativeEmbeddings
from cora.llm.deltas import Delta
from cora.methods.config import MethodConfig
from cora.methods.model import MethodModel
from cora.methods.samples import Samples
from cora.methods.shared_lora import SharedLoRA
from cora.methods.tallrec.config import TALLRecConfig


class TALLRecModel(MethodModel, SharedLoRA):
    """y = x·Wᵀ + (alpha / r) · (x·A) · B in every adapted linear, A [K, r] and B [r, N] learned, shared by all samples.

    Dropout: rows of A, [K, 1], once per forward and for each group of linears that share an input, as in CoRAModel.

    base_model, config: as for MethodModel. embeddings: not read, the text alone is; every method is built alike.
    Source: Bao et al., TALLRec, RecSys 2023, arXiv 2305.00447.
    """

    Config: ClassVar[type[MethodConfig]] = TALLRecConfig
    config: TALLRecConfig

    def __init__(
        self, base_model: PreTrainedModel, config: TALLRecConfig, embeddings: CollaborativeEmbeddings | None = None
    ) -> None:
        super().__init__(base_model, config)
        with self.or_unpatched():
            self.make_lora(self.patch.layers, config.r, base_model.device)

    def deltas(self, samples: Samples) -> dict[str, Delta]:
        """The one LoRA, whoever the samples are about."""
        return self.lora_deltas(self.patch.layers, self.config.scaling)

    @classmethod
    def _built(cls, base_model: PreTrainedModel, config: TALLRecConfig, folder: Path) -> "TALLRecModel":
        return cls(base_model, config)
