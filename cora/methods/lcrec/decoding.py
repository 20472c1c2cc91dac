"""TreeDecoder: the logits of next codes behind every node of a beam, each prompt and each node computed once."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from cora.codes.search import Step
from cora.llm.deltas import Delta

if TYPE_CHECKING:
    from cora.methods.lcrec.model import LCRecModel


class TreeDecoder:
    """Step -> logits [U, W, K], as `beam_search` asks for them, of prompts that end where a code begins.

    The prompts of U users go through the model once, padded on the right. The nodes of a level are then one token each,
    W of them in the row of their user, behind one key-value cache: a node sees the prompt, the nodes it came from and
    itself, by an attention mask [U, 1, W, cached + W]; so no cache is copied or reordered for a beam. Asked for the
    first level again, it forgets the nodes and begins anew behind the same prompts. Deltas are one a user, as the rows
    of the batch are.
    """

    def __init__(
        self, model: "LCRecModel", prompts: Sequence[Sequence[int]], deltas: Mapping[str, Delta] | None
    ) -> None:
        self.model, self.deltas = model, deltas
        device = model.base.device
        self.lengths = torch.tensor([len(one) for one in prompts], device=device)
        self.prompts = torch.zeros(len(prompts), int(self.lengths.max()), dtype=torch.int64, device=device)
        for row, one in enumerate(prompts):
            self.prompts[row, : len(one)] = torch.tensor(one, device=device)
        self.cache = DynamicCache()
        self.visible = torch.empty(0)
        self._first: Tensor | None = None

    def __call__(self, step: Step) -> Tensor:
        model, users = self.model, len(self.prompts)
        model.patch.set_deltas(self.deltas)
        if step.level == 0:
            longest = self.prompts.shape[1]
            if self._first is None:
                hidden = self._run(self.prompts, None, None)
                last = hidden[torch.arange(users, device=hidden.device), self.lengths - 1]
                self._first = model.tokens.logits(last[:, None], 0)
            if (nodes := self.cache.get_seq_length() - longest) > 0:
                self.cache.crop(-nodes)
            self.visible = (torch.arange(longest, device=self.lengths.device) < self.lengths[:, None])[:, None]
            return self._first
        codes, parents = step.codes.to(self.visible.device), step.parents.to(self.visible.device)
        width = codes.shape[1]
        # What its parent saw, and of the nodes of this level itself.
        seen = self.visible.gather(1, parents[..., None].expand(-1, -1, self.visible.shape[2]))
        itself = torch.eye(width, dtype=torch.bool, device=seen.device).expand(users, -1, -1)
        self.visible = torch.cat([seen, itself], 2)
        tokens = model.tokens.first + (step.level - 1) * model.tokens.size + codes
        positions = (self.lengths + step.level - 1)[:, None].expand(-1, width)
        hidden = self._run(tokens, positions, self.visible[:, None])
        return model.tokens.logits(hidden, step.level)

    def _run(self, tokens: Tensor, positions: Tensor | None, visible: Tensor | None) -> Tensor:
        base = self.model.base
        mask = None
        if visible is not None:
            mask = torch.zeros(visible.shape, dtype=base.dtype, device=visible.device)
            mask.masked_fill_(~visible, torch.finfo(base.dtype).min)
        found: Tensor = base.base_model(
            inputs_embeds=self.model.tokens.embedded(base, tokens),
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        return found
