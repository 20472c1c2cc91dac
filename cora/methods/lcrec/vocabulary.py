"""CodeTokens: codes as tokens of the language model, without a change of its vocabulary."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from cora.codes import ItemCodes


class CodeTokens(nn.Module):
    """E_new [L·K, h], learned: what codes are read as, and what the hidden state before a code is compared with.

    The token of code c of level l is V + l·K + c, V the language model's own vocabulary, whose embeddings and head stay
    as they are. logits of a level = h·E_newᵀ over its K codes, the unused ones at -inf; so nothing of the width of the
    vocabulary is computed. fp32, whatever the language model's dtype.
    """

    used: Tensor
    item_tokens: Tensor

    def __init__(self, base: PreTrainedModel, codes: ItemCodes) -> None:
        super().__init__()
        embeddings = _table(base)
        self.levels, self.size, self.first = codes.levels, codes.size, len(embeddings)
        self.rows = nn.Parameter(torch.empty(self.levels * self.size, embeddings.shape[1], device=base.device))
        with torch.no_grad():
            self.rows.copy_(embeddings.float().mean(0).expand_as(self.rows))
        used = torch.stack([torch.bincount(column, minlength=self.size) > 0 for column in codes.codes.T])
        self.register_buffer("used", used.to(base.device), persistent=False)
        tokens = self.first + torch.arange(self.levels) * self.size + codes.codes
        self.register_buffer("item_tokens", tokens, persistent=False)  # [items, L]

    @torch.no_grad()
    def start(self, base: PreTrainedModel, title_tokens: Sequence[Sequence[int]]) -> None:
        """Sets every code to the mean embedding of the tokens of its items' titles, one list for each item."""
        embeddings = _table(base).float()
        means = torch.stack(
            [embeddings[torch.tensor(ids, dtype=torch.int64)].mean(0) if len(ids) else embeddings.mean(0)
             for ids in title_tokens]
        )  # fmt: skip
        for column in (self.item_tokens.to(means.device) - self.first).T:
            total = torch.zeros_like(self.rows).index_add_(0, column, means)
            count = torch.bincount(column, minlength=len(self.rows))[:, None]
            self.rows.copy_(torch.where(count > 0, total / count.clamp(min=1), self.rows))

    def embedded(self, base: PreTrainedModel, input_ids: Tensor) -> Tensor:
        """[..., h] in the language model's dtype: of tokens from V on E_new, of the others its own embeddings."""
        is_code = input_ids >= self.first
        own: Tensor = cast(nn.Module, base.get_input_embeddings())(input_ids.masked_fill(is_code, 0))
        codes = functional.embedding((input_ids - self.first).clamp(min=0), self.rows).to(own)
        return torch.where(is_code[..., None], codes, own)

    def logits(self, hidden: Tensor, level: int) -> Tensor:
        """[..., K] fp32: of hidden states [..., h] the logits of the codes of a level."""
        rows = self.rows[level * self.size : (level + 1) * self.size]
        with torch.autocast(hidden.device.type, enabled=False):
            found = functional.linear(hidden.float(), rows.float())
        return found.masked_fill(~self.used[level], -torch.inf)


def _table(base: PreTrainedModel) -> Tensor:
    """[V, h], the language model's own embeddings."""
    return cast(Tensor, cast(nn.Module, base.get_input_embeddings()).weight)
