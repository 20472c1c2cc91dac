"""RecLoRAModel: a frozen causal LM with a LoRA of every pair's own, mixed from a few meta-LoRAs by a gate."""

from typing import ClassVar

from cora.methods.generated_model import GeneratedModel
from cora.methods.reclora.config import RecLoRAConfig


class RecLoRAModel(GeneratedModel):
    """y = x·Wᵀ + (alpha / r) · (x·A(u, i)) · B(u, i) in every adapted linear, A and B mixed as `GatedGenerator` says.

    The gate reads what `Pairs` gives of a conventional recommender, which is frozen: the vectors of user and item, and
    their inner product; of the collaborative model "din" that is its last hidden layer c, which is of the pair. At the
    start every B_k is zero, and the model is the base model; meta-LoRAs and gates alone are trained.

    base_model, config: as for MethodModel. embeddings: the vectors of users and items.
    Source: Zhu et al., RecLoRA, arXiv 2408.03533.
    """

    Config: ClassVar[type[RecLoRAConfig]] = RecLoRAConfig
    config: RecLoRAConfig
