"""A LoRA of its own for every pair, mixed from a few learned ones by a gate that reads the pair, as in RecLoRA."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cora.checks import check_choice, check_int, check_share, is_number
from cora.generators.generator import Generator, Linears
from cora.llm.deltas import Delta


@dataclass
class GatedOptions:
    """meta_loras         LoRAs of every linear that are mixed; one alone is plain LoRA, whatever the pair
    mix                what is mixed: their "factors" A and B each by itself, or their "outputs", Σ α_k·A_k·B_k
    gate_width         width of the gates' hidden layer
    gate_temperature   what the gates' scores are divided by before the softmax
    gate_top           LoRAs that each sample uses at most, those of the highest scores; 0 for all
    generator_dropout  of the gates' hidden layer, in training
    """

    meta_loras: int = 8
    mix: str = "factors"
    gate_width: int = 60
    gate_temperature: float = 1.0
    gate_top: int = 0
    generator_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_int("meta_loras", self.meta_loras, at_least=1)
        check_choice("mix", self.mix, ("factors", "outputs"))
        check_int("gate_width", self.gate_width, at_least=1)
        if not (is_number(self.gate_temperature) and 0 < self.gate_temperature < math.inf):
            raise ValueError(f"gate_temperature: expected a positive number, got {self.gate_temperature!r}")
        check_int("gate_top", self.gate_top, at_least=0)
        check_share("generator_dropout", self.generator_dropout)


class GatedGenerator(Generator):
    """α = softmax(gate(layernorm([e_u; e_i; affinity])) / τ); A = Σ_k α_k·A_k [B, K, r], B = Σ_k α_k·B_k [B, r, N].

    Every linear has meta-LoRAs A_k [K, r], B_k [r, N] and a gate Linear, ReLU, Dropout, Linear of its own. A and B are
    mixed each by itself, so that the kernels see rank r and ΔW has the cross terms α_j·α_k·A_j·B_k. mix "outputs" is
    ΔW = Σ_k α_k·A_k·B_k: lora_a [K, n·r] holds the A_k of all n side by side, shared by the samples, and lora_b
    [B, n·r, N] the α_k·B_k one below the other. A_k starts uniform in ±1/√K, each for itself, and B_k at zero.
    With gate_top scores below the highest ones are -inf before the softmax: their weights are exactly zero.

    Raises ValueError if gate_top is more than meta_loras.
    Source: Zhu et al., Lifelong personalized low-rank adaptation of large language models for recommendation
    (RecLoRA), arXiv 2408.03533.
    """

    Options = GatedOptions

    def __init__(self, options: GatedOptions, dim: int, linears: Linears, r: int, scaling: float) -> None:
        super().__init__(options, dim, linears, r, scaling)
        loras, read = options.meta_loras, 2 * dim + 1
        if options.gate_top > loras:
            raise ValueError(f"gate_top: expected at most meta_loras {loras}, got {options.gate_top}")
        self.names = tuple(linears)
        # Lists: the name of a module holds dots, that of a parameter may hold none.
        self.lora_as = nn.ParameterList(_uniform(loras, one.in_features, r) for one in linears.values())
        self.lora_bs = nn.ParameterList(torch.zeros(loras, r, one.out_features) for one in linears.values())
        # One LoRA has nothing to choose among, and its gate would learn nothing.
        self.gates = nn.ModuleList(_gate(read, options) for _ in self.names if loras > 1)

    def forward(self, e_u: Tensor, e_i: Tensor, affinity: Tensor) -> dict[str, Delta]:
        mixed = _mixed_factors if self.options.mix == "factors" else _mixed_outputs
        weights = self.weights(e_u, e_i, affinity).values()
        factors = zip(self.names, weights, self.lora_as, self.lora_bs, strict=True)
        return {name: Delta(*mixed(alpha, a, b), self.scaling) for name, alpha, a, b in factors}

    def weights(self, e_u: Tensor, e_i: Tensor, affinity: Tensor) -> dict[str, Tensor]:
        """{linear name: α [B, meta_loras]}: how much of each meta-LoRA every sample gets."""
        if not self.gates:
            return dict.fromkeys(self.names, e_u.new_ones(len(e_u), 1))
        pair = torch.cat([e_u, e_i, affinity[:, None]], dim=-1)
        return {name: self._weights_of(gate(pair)) for name, gate in zip(self.names, self.gates, strict=True)}

    def _weights_of(self, scores: Tensor) -> Tensor:
        if top := self.options.gate_top:
            best = scores.topk(top, dim=-1).indices
            scores = torch.full_like(scores, -math.inf).scatter(-1, best, scores.gather(-1, best))
        return (scores / self.options.gate_temperature).softmax(-1)

    @torch.no_grad()
    def spread(self, e_u: Tensor, e_i: Tensor, affinity: Tensor) -> dict[str, float]:
        """What tells a collapse, means over linears: gate_entropy, that of α over log meta_loras, 1 for weights that
        are all alike and 0 for one LoRA a sample; b_cosine, the cosine of pairs of B_k, 1 where all are one. Empty for
        one meta-LoRA."""
        loras = self.options.meta_loras
        if loras == 1:
            return {}
        alphas = torch.stack(list(self.weights(e_u, e_i, affinity).values()))
        entropy = torch.special.entr(alphas).sum(-1).mean() / math.log(loras)
        units = [functional.normalize(one.flatten(1), dim=-1) for one in self.lora_bs]
        products = torch.stack([one @ one.T for one in units])
        pairs = products.sum((1, 2)) - products.diagonal(dim1=1, dim2=2).sum(1)
        return {"gate_entropy": float(entropy), "b_cosine": float(pairs.mean()) / (loras * (loras - 1))}


def _mixed_factors(alpha: Tensor, lora_as: Tensor, lora_bs: Tensor) -> tuple[Tensor, Tensor]:
    """Σ α_k·A_k [B, K, r] and Σ α_k·B_k [B, r, N]: one product each."""
    a, b = ((alpha @ one.flatten(1)).view(-1, *one.shape[1:]) for one in (lora_as, lora_bs))
    return a, b


def _mixed_outputs(alpha: Tensor, lora_as: Tensor, lora_bs: Tensor) -> tuple[Tensor, Tensor]:
    """[A_1 … A_n] [K, n·r], shared, and [α_1·B_1 ; … ; α_n·B_n] [B, n·r, N]."""
    return lora_as.transpose(0, 1).flatten(1), (alpha[:, :, None, None] * lora_bs).flatten(1, 2)


def _uniform(loras: int, width: int, r: int) -> Tensor:
    return torch.empty(loras, width, r).uniform_(-1, 1) / math.sqrt(width)


def _gate(read: int, options: GatedOptions) -> nn.Sequential:
    """Scores [B, meta_loras] of [B, read]."""
    hidden, last = nn.Linear(read, options.gate_width), nn.Linear(options.gate_width, options.meta_loras)
    for linear in (hidden, last):
        nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
        nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(read), hidden, nn.ReLU(), nn.Dropout(options.generator_dropout), last)
