"""The published generator: learned queries read the pair's embeddings through the blocks of BLIP-2's Q-Former."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from cora.checks import check_choice, check_int, check_share
from cora.generators.generator import Generator, Linears
from cora.generators.heads import LoRAHeads
from cora.llm.deltas import Delta


@dataclass
class QFormerOptions:
    """tokens             the pair is one key/value token ("joint", as published) or two ("pair")
    num_queries, num_blocks, num_heads, ffn_size, width
                       queries, blocks, heads, FFN width, model width (None: twice the embeddings')
    generator_dropout  inside the blocks, in training
    """

    tokens: str = "joint"
    num_queries: int = 4
    num_blocks: int = 8
    num_heads: int = 8
    ffn_size: int = 3072
    width: int | None = None
    generator_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_choice("tokens", self.tokens, ("joint", "pair"))
        for name in ("num_queries", "num_blocks", "num_heads", "ffn_size"):
            check_int(name, getattr(self, name), at_least=1)
        if self.width is not None:
            check_int("width", self.width, at_least=1)
        check_share("generator_dropout", self.generator_dropout)


class QFormerGenerator(Generator):
    """A = l2norm(Linear(mean over the queries of QFormer(queries, e))), e the tokens of the pair, P shared.

    The affinity is not read, as published. Every block attends to the queries, then to e, then has its FFN.
    tokens "joint": e is the one token [e_u; e_i] (as published; attention to one token weighs nothing). "pair": e is
    two tokens, each by its own projection. Parameters that no output depends on are frozen: the biases of attention
    keys, which shift all scores of a query alike, and for one token the weights that would compare it with others.

    Raises ValueError if num_heads does not divide the width.
    Source: Liu et al., CoRA, AAAI 2025; Li et al., BLIP-2, ICML 2023.
    """

    Options = QFormerOptions

    def __init__(self, options: QFormerOptions, dim: int, linears: Linears, r: int, scaling: float) -> None:
        super().__init__(options, dim, linears, r, scaling)
        # The models of transformers take seconds to import, and options alone are read far more often.
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        width = options.width or 2 * dim
        if width % options.num_heads:
            raise ValueError(f"num_heads: expected a divisor of the generator's width {width}, got {options.num_heads}")
        joint = options.tokens == "joint"
        self.project_user = None if joint else nn.Linear(dim, width)
        self.project_item = None if joint else nn.Linear(dim, width)
        self.queries = nn.Parameter(torch.empty(options.num_queries, width).normal_(std=0.02))
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=width,
                num_hidden_layers=options.num_blocks,
                num_attention_heads=options.num_heads,
                intermediate_size=options.ffn_size,
                hidden_dropout_prob=options.generator_dropout,
                attention_probs_dropout_prob=options.generator_dropout,
                cross_attention_frequency=1,
                encoder_hidden_size=2 * dim if joint else width,
            )
        )
        self.heads = LoRAHeads(width, linears, r, scaling)
        for layer in cast(Any, self.qformer.encoder.layer):
            _freeze_idle(layer.attention.attention, keys=options.num_queries)
            _freeze_idle(layer.crossattention.attention, keys=1 if joint else 2)

    def forward(self, e_u: Tensor, e_i: Tensor, affinity: Tensor) -> dict[str, Delta]:
        if self.project_user is None or self.project_item is None:
            pair = torch.cat([e_u, e_i], dim=-1)[:, None]
        else:
            pair = torch.stack([self.project_user(e_u), self.project_item(e_i)], dim=1)
        queries = self.queries.expand(e_u.shape[0], -1, -1)
        read = self.qformer(query_embeds=queries, encoder_hidden_states=pair).last_hidden_state
        # The mean of a Linear is the Linear of the mean: one row instead of one per query.
        deltas: dict[str, Delta] = self.heads(read.mean(dim=1))
        return deltas


def _freeze_idle(attention: nn.Module, keys: int) -> None:
    """Freezes what cannot change the output of a softmax over `keys` scores."""
    for name, parameter in attention.named_parameters():
        if name == "key.bias" or (keys == 1 and name.startswith(("query.", "key."))):
            parameter.requires_grad_(False)
