"""Generators: modules that make lora_a of the embeddings of a user and an item.

A generator is built as Generator(config, dim, widths) from the CoRAConfig, the width d of the embeddings and the
input widths of the adapted linears. Its forward takes what `Pairs` gives, e_u [B, d], e_i [B, d] and affinity [B],
fp32, and returns {width: lora_a [B, width, r]} with ‖lora_a‖_F = 1 for every sample.
"""

from collections.abc import Sequence

from torch import nn

from cora.generators.mlp import MLPGenerator
from cora.generators.qformer import QFormerGenerator
from cora.methods.cora.config import CoRAConfig

_BY_NAME: dict[str, type[MLPGenerator | QFormerGenerator]] = {"mlp": MLPGenerator, "qformer": QFormerGenerator}


def build_generator(config: CoRAConfig, dim: int, widths: Sequence[int]) -> nn.Module:
    """The generator that config.generator names, for embeddings of width `dim` and linears of these input widths."""
    return _BY_NAME[config.generator](config, dim, widths)


__all__ = ["MLPGenerator", "QFormerGenerator", "build_generator"]
