"""An A of its own for every layer and module: one learned query a layer reads the pair, as in VLoRA."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cora.checks import check_int, check_share
from cora.generators.generator import Generator, Linears
from cora.generators.shared_p import SharedP
from cora.llm.deltas import Delta
from cora.llm.names import layer_index


@dataclass
class PerLayerOptions:
    """query_width        width of the queries and of the blocks that they pass
    decoder_blocks, decoder_heads
                       blocks, and heads of their attention
    generator_dropout  inside the blocks, in training
    """

    query_width: int = 64
    decoder_blocks: int = 2
    decoder_heads: int = 4
    generator_dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("query_width", "decoder_blocks", "decoder_heads"):
            check_int(name, getattr(self, name), at_least=1)
        check_share("generator_dropout", self.generator_dropout)


class PerLayerGenerator(Generator):
    """A_lm = Linear_m(layernorm(decoder(queries, [e_u, e_i, affinity])_l)) for layer l and module m, P shared.

    One query a layer passes pre-norm blocks: attention among the queries, then to the pair's three tokens, then an FFN.
    Every kind of module (q_proj, k_proj, …) has a Linear of its own, so A differs by layer and by module. It is not
    normalised, as in VLoRA; the Linears start so small that ‖A_lm‖_F is 1 in the mean, as the normalised A of the other
    generators is, since training diverges from a start far above.

    Raises ValueError if decoder_heads does not divide query_width.
    Source: Ma et al., Visual Perception by Large Language Model's Weights (VLoRA), NeurIPS 2024.
    """

    Options = PerLayerOptions

    def __init__(self, options: PerLayerOptions, dim: int, linears: Linears, r: int, scaling: float) -> None:
        super().__init__(options, dim, linears, r, scaling)
        width = options.query_width
        if width % options.decoder_heads:
            raise ValueError(f"decoder_heads: expected a divisor of query_width {width}, got {options.decoder_heads}")
        self.user, self.item, self.affinity = nn.Linear(dim, width), nn.Linear(dim, width), nn.Linear(1, width)
        layers = {layer: row for row, layer in enumerate(dict.fromkeys(layer_index(name) for name in linears))}
        self.queries = nn.Parameter(torch.randn(len(layers), width))
        self.blocks = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width,
                options.decoder_heads,
                4 * width,
                options.generator_dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(options.decoder_blocks)
        )
        self.norm = nn.LayerNorm(width)
        # Which query and which Linear make the A of each linear.
        self._made_by = {
            name: (layers[layer_index(name)], f"{name.rpartition('.')[2]} {linear.in_features}")
            for name, linear in linears.items()
        }
        sizes = {self._made_by[name][1]: linear.in_features * r for name, linear in linears.items()}
        self.linears = nn.ModuleDict({kind: _small_linear(width, size) for kind, size in sizes.items()})
        self.p = SharedP(linears, r, scaling)

    def forward(self, e_u: Tensor, e_i: Tensor, affinity: Tensor) -> dict[str, Delta]:
        pair = torch.stack([self.user(e_u), self.item(e_i), self.affinity(affinity[:, None])], dim=1)
        read = self.queries.expand(len(e_u), -1, -1)
        for block in self.blocks:
            read = block(read, pair)
        read = self.norm(read)
        lora_as = {
            name: self.linears[kind](read[:, row]).view(len(e_u), -1, self.r)
            for name, (row, kind) in self._made_by.items()
        }
        deltas: dict[str, Delta] = self.p(lora_as)
        return deltas


def _small_linear(width: int, size: int) -> nn.Linear:
    """Gives vectors [size] of unit norm in the mean, from inputs [width] of unit variance."""
    linear = nn.Linear(width, size)
    nn.init.normal_(linear.weight, std=(width * size) ** -0.5)
    nn.init.zeros_(linear.bias)
    return linear
