"""CodeTokens: codes as tokens of the language model, without a change of its vocabulary."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from cora.codes import ItemCodes

_TINY = 1e-6


class CodeTokens(nn.Module):
    """E [L·K, h], what codes are read as, and H [L·K, h], by which they are told from the hidden state; both learned.

    The token of code c of level l is V + l·K + c, V the language model's own vocabulary, whose embeddings and head stay
    as they are. logits of a level = h·Hᵀ over its K codes, the unused ones at -inf; so nothing of the width of the
    vocabulary is computed. fp32, whatever the language model's dtype. H is not E, as published, and starts at zero:
    every code is as probable then. Of E, the hidden states of an untrained code would make logits in the tens.
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
        self.head = nn.Parameter(torch.zeros_like(self.rows))
        used = torch.stack([torch.bincount(column, minlength=self.size) > 0 for column in codes.codes.T])
        self.register_buffer("used", used.to(base.device), persistent=False)
        tokens = self.first + torch.arange(self.levels) * self.size + codes.codes
        self.register_buffer("item_tokens", tokens, persistent=False)  # [items, L]
        for level, table in enumerate(codes.trie.children):
            self.register_buffer(f"trie_{level}", table.to(base.device), persistent=False)

    @torch.no_grad()
    def start(self, base: PreTrainedModel, title_tokens: Sequence[Sequence[int]]) -> None:
        """E of a code = m + s · d / |d|, d = the mean embedding of its items' titles, less that of all items' titles;
        m the mean of the vocabulary, s the median distance of its embeddings from m.

        title_tokens: one list for each item. The means themselves are a thirtieth of s apart, too little for the
        language model to tell codes by. Codes whose titles say nothing, as there are none or all alike, differ by
        chance, the same every time.
        """
        embeddings = _table(base).float()
        middle = embeddings.mean(0)
        means = torch.stack(
            [embeddings[torch.tensor(ids, dtype=torch.int64)].mean(0) if len(ids) else middle for ids in title_tokens]
        )
        means -= means.mean(0)
        chance = torch.randn(self.rows.shape, generator=torch.Generator().manual_seed(0))
        total = _TINY * chance.to(means)
        for column in (self.item_tokens.to(means.device) - self.first).T:
            total.index_add_(0, column, means)
        scale = (embeddings - middle).norm(dim=1).median()
        self.rows.copy_(middle + scale * functional.normalize(total, dim=1))

    def embedded(self, base: PreTrainedModel, input_ids: Tensor) -> Tensor:
        """[..., h] in the language model's dtype: of tokens from V on E, of the others its own embeddings."""
        is_code = input_ids >= self.first
        own: Tensor = cast(nn.Module, base.get_input_embeddings())(input_ids.masked_fill(is_code, 0))
        codes = functional.embedding((input_ids - self.first).clamp(min=0), self.rows).to(own)
        return torch.where(is_code[..., None], codes, own)

    def trie_level(self, level: int) -> Tensor:
        """int64 [nodes of the level before, K]: the trie's children."""
        return cast(Tensor, getattr(self, f"trie_{level}"))

    def parents(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The node of the trie that the codes up to each token of input_ids [B, T] lead to, int64 [B, T], where a code
        follows that goes on with them, as labels [B, T] say; 0, the root, where any other label follows; -1 where no
        item's code begins like that."""
        place = input_ids - self.first
        level, following = place // self.size, (labels - self.first) // self.size
        node = torch.full_like(place, -1)
        for one in range(self.levels):
            before = torch.zeros_like(node)
            if one > 0:
                before = functional.pad(node.where(level == one - 1, -1)[:, :-1], (1, 0), value=-1)
            table = self.trie_level(one)
            there = table[before.clamp(min=0), place % self.size].where(before >= 0, -1)
            node = there.where(level == one, node)
        return node.where(following == level + 1, -1).where(following > 0, 0)

    def logits(self, hidden: Tensor, level: int) -> Tensor:
        """[..., K] fp32: of hidden states [..., h] the logits of the codes of a level."""
        rows = self.head[level * self.size : (level + 1) * self.size]
        with torch.autocast(hidden.device.type, enabled=False):
            found = functional.linear(hidden.float(), rows.float())
        return found.masked_fill(~self.used[level], -torch.inf)


def _table(base: PreTrainedModel) -> Tensor:
    """[V, h], the language model's own embeddings."""
    return cast(Tensor, cast(nn.Module, base.get_input_embeddings()).weight)
