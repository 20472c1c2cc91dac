"""The published generator: learned queries read the pair's embeddings through the blocks of BLIP-2's Q-Former."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from cora.generators.heads import LoRAHeads
from cora.methods.cora.config import CoRAConfig


class QFormerGenerator(nn.Module):
    """A = l2norm(Linear(mean over the queries of QFormer(queries, e))), e the tokens of the pair.

    e_u, e_i [B, d] -> {width: lora_a [B, width, r]}; the affinity is not read, as published. Every block attends to the
    queries, then to e, then has its FFN.
    tokens "joint": e is the one token [e_u; e_i] (as published; attention to one token weighs nothing). "pair": e is
    two tokens, each by its own projection. Parameters that no output depends on are frozen: the biases of attention
    keys, which shift all scores of a query alike, and for one token the weights that would compare it with others.

    Raises ValueError if num_heads does not divide the width.
    Source: Liu et al., CoRA, AAAI 2025; Li et al., BLIP-2, ICML 2023.
    """

    def __init__(self, config: CoRAConfig, dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        width = config.width or 2 * dim
        if width % config.num_heads:
            raise ValueError(f"num_heads: expected a divisor of the generator's width {width}, got {config.num_heads}")
        joint = config.tokens == "joint"
        self.project_user = None if joint else nn.Linear(dim, width)
        self.project_item = None if joint else nn.Linear(dim, width)
        self.queries = nn.Parameter(torch.empty(config.num_queries, width).normal_(std=0.02))
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=width,
                num_hidden_layers=config.num_blocks,
                num_attention_heads=config.num_heads,
                intermediate_size=config.ffn_size,
                hidden_dropout_prob=config.generator_dropout,
                attention_probs_dropout_prob=config.generator_dropout,
                cross_attention_frequency=1,
                encoder_hidden_size=2 * dim if joint else width,
            )
        )
        self.heads = LoRAHeads(width, widths, config.r)
        for layer in cast(Any, self.qformer.encoder.layer):
            _freeze_idle(layer.attention.attention, keys=config.num_queries)
            _freeze_idle(layer.crossattention.attention, keys=1 if joint else 2)

    def forward(self, e_u: Tensor, e_i: Tensor, affinity: Tensor) -> dict[int, Tensor]:
        if self.project_user is None or self.project_item is None:
            pair = torch.cat([e_u, e_i], dim=-1)[:, None]
        else:
            pair = torch.stack([self.project_user(e_u), self.project_item(e_i)], dim=1)
        queries = self.queries.expand(e_u.shape[0], -1, -1)
        read = self.qformer(query_embeds=queries, encoder_hidden_states=pair).last_hidden_state
        # The mean of a Linear is the Linear of the mean: one row instead of one per query.
        heads: dict[int, Tensor] = self.heads(read.mean(dim=1))
        return heads


def _freeze_idle(attention: nn.Module, keys: int) -> None:
    """Freezes what cannot change the output of a softmax over `keys` scores."""
    for name, parameter in attention.named_parameters():
        if name == "key.bias" or (keys == 1 and name.startswith(("query.", "key."))):
            parameter.requires_grad_(False)
