"""CoLLMModel: a frozen causal LM with one LoRA for all users and, within the prompt, a soft token of user and item."""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cora.collaborative import CollaborativeEmbeddings
from cora.llm.deltas import Delta
from cora.methods.collm.config import CoLLMConfig
from cora.methods.config import PairConfig
from cora.methods.pair_model import PairModel
from cora.methods.samples import Samples
from cora.methods.shared_lora import SharedLoRA


class CoLLMModel(PairModel, SharedLoRA):
    """The slots of a prompt hold c · MLP(e_u) and c · MLP(e_i) in place of embeddings, c the size of the model's own.

    MLP = Linear(d, mid_factor·d), ReLU, Linear(mid_factor·d, h), one for users and items. In training the LoRA learns
    first, from prompts whose slots hold their own token, then the MLP, with the LoRA fixed (`text_share`). Otherwise as
    TALLRec; generation is of prompts with soft tokens too.

    base_model, config: as for MethodModel. embeddings: the vectors of users and items.
    Source: Zhang et al., CoLLM, TKDE 2025, arXiv 2310.19488.
    """

    Config: ClassVar[type[PairConfig]] = CoLLMConfig
    config: CoLLMConfig
    second_stage: Tensor

    def __init__(self, base_model: PreTrainedModel, config: CoLLMConfig, embeddings: CollaborativeEmbeddings) -> None:
        if config.answer_ids is not None and config.slot_id is None:  # both or neither are set
            raise ValueError("config: slot_id is not set; use CoLLMConfig.with_answer_ids(tokenizer)")
        super().__init__(base_model, config, embeddings)
        device, dim = base_model.device, embeddings.users.shape[1]
        with self.or_unpatched():
            self.make_lora(self.patch.layers, config.r, device)
        table = cast(nn.Embedding, base_model.get_input_embeddings()).weight
        middle = config.mid_factor * dim
        self.projection = nn.Sequential(nn.Linear(dim, middle), nn.ReLU(), nn.Linear(middle, table.shape[1])).to(device)
        self.token_size = float(table.detach().float().square().mean().sqrt())
        # Whether the projection learns, and the LoRA no more. A buffer: a checkpoint knows how far it was.
        self.register_buffer("second_stage", torch.ones((), dtype=torch.bool, device=device))

    def at(self, done: float) -> None:
        self.second_stage.fill_(done >= self.config.text_share)

    def deltas(self, samples: Samples) -> dict[str, Delta]:
        """The one LoRA, whoever the samples are about."""
        deltas = self.lora_deltas(self.patch.layers, self.config.scaling)
        if not self.second_stage:
            return deltas
        return {name: Delta(one.lora_a.detach(), one.lora_b.detach(), one.scaling) for name, one in deltas.items()}

    def embedded(self, input_ids: Tensor, samples: Samples) -> Tensor | None:
        """The embeddings of the tokens [..., h], with the soft tokens of each sample in its two slots."""
        if not self.second_stage:
            return None
        slots = input_ids.eq(cast(int, self.config.slot_id))
        e_u, e_i, _ = self.pair(samples)
        with torch.autocast(self.base.device.type, enabled=False):
            soft = self.token_size * self.projection(torch.stack([e_u, e_i], 1)).flatten(0, 1)
        tokens: Tensor = cast(nn.Embedding, self.base.get_input_embeddings())(input_ids)
        return tokens.masked_scatter(slots[..., None], soft.to(tokens))

    def _checked(self, input_ids: Tensor, attention_mask: Tensor | None, samples: Samples) -> tuple[Tensor, Tensor]:
        """Raises ValueError, before any stage, unless every prompt holds two slots; padding of their token is none."""
        input_ids, attention_mask = super()._checked(input_ids, attention_mask, samples)
        slot_id = cast(int, self.config.slot_id)
        input_ids = input_ids.masked_fill(attention_mask == 0, int(slot_id == 0))
        counts = input_ids.eq(slot_id).sum(1)
        if not bool((counts == 2).all()):
            row = int((counts != 2).nonzero()[0])
            raise ValueError(
                f"input_ids: expected the token {slot_id} ({self.config.slot_token!r}) twice a prompt, "
                f"{2 * len(counts)} times, got it {int(counts.sum())} times, {int(counts[row])} times in row {row}"
            )
        return input_ids, attention_mask
