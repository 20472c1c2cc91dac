"""RQ-VAE: vectors of items, through a bottleneck that is quantised level by level, and back."""

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from cora.checks import as_tuple, check_int, is_number
from cora.codes.quantiser import ResidualQuantiser

_LARGEST_BATCH = 4096
# How much faster codebooks learn: at the encoder's rate they stay behind what it moves.
_FASTER = 10


@dataclass
class Recipe:
    """How an RQ-VAE is built and trained.

    levels, codes      codes of an item, and how many there are of each level; 0: as few, a power of two, as make eight
                       times as many different codes as there are items
    hidden             widths between the vectors and the bottleneck; dim: that of the bottleneck
    steps              optimiser steps, each on all items, or on 4,096 of them drawn anew
    learning_rate, weight_decay
                       of AdamW; the rate rises over a twentieth of the steps and then falls to zero, linearly
    epsilon            of the balanced codes of the last level in training; 0 for none

    Raises ValueError that names the field.
    """

    levels: int = 3
    codes: int = 0
    hidden: tuple[int, ...] = (256, 128)
    dim: int = 32
    steps: int = 1000
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    epsilon: float = 0.003

    def __post_init__(self) -> None:
        for name, least in (("levels", 1), ("codes", 0), ("dim", 1), ("steps", 0)):
            check_int(name, getattr(self, name), least)
        self.hidden = as_tuple("hidden", self.hidden, int)
        if min(self.hidden) < 1:
            raise ValueError(f"hidden: expected widths from 1, got {self.hidden}")
        for name in ("learning_rate", "weight_decay", "epsilon"):
            if not (is_number(value := getattr(self, name)) and value >= 0):
                raise ValueError(f"{name}: expected a number from 0, got {value!r}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """Raises ValueError for a name that is no field."""
        known = [one.name for one in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"unknown fields of Recipe: {', '.join(unknown)}; known are {', '.join(known)}")
        return cls(**values)

    def codes_for(self, items: int) -> int:
        """How many codes a level has for so many items. Raises ValueError where they cannot be told apart by them, for
        more codes than items, and for more beginnings than an int64 counts."""
        if max(self.codes, 2) ** self.levels > 2**62:
            raise ValueError(f"levels, codes: expected codes^levels of at most 2^62, got {self.codes}^{self.levels}")
        if self.codes == 0:
            size = 1
            while size**self.levels < 8 * items:
                size *= 2
            return min(size, items)
        if self.codes**self.levels < items:
            raise ValueError(
                f"levels, codes: {self.levels} levels of {self.codes} codes tell {self.codes**self.levels:,} items "
                f"apart, there are {items:,}"
            )
        if self.codes > items:
            raise ValueError(f"codes: expected at most as many as there are items, {items}, got {self.codes}")
        return self.codes


class RQVAE(nn.Module):
    """x̂ = decoder(quantiser(encoder(x))): two mirrored MLPs with ReLU between their layers and none last.

    loss = mse(x̂, x) + the quantiser's. width: of the vectors; sizes as in `Recipe`, codes already counted. Weights
    start Xavier normal, biases at zero. Source: Zheng et al., LC-Rec, ICDE 2024, arXiv 2311.09049.
    """

    def __init__(self, width: int, recipe: Recipe, codes: int) -> None:
        super().__init__()
        widths = [width, *recipe.hidden, recipe.dim]
        self.encoder, self.decoder = _mlp(widths), _mlp(widths[::-1])
        self.quantiser = ResidualQuantiser(recipe.levels, codes, recipe.dim, recipe.epsilon)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loss [] and the codes int64 [B, L] of vectors x [B, width]."""
        found = self.quantiser(self.encoder(x))
        loss = functional.mse_loss(self.decoder(found.z_q), x) + found.loss
        return loss, found.codes


def train_rqvae(vectors: Tensor, recipe: Recipe, seed: int = 0) -> tuple[RQVAE, list[float]]:
    """An RQ-VAE of vectors [n, width] fp32, trained, in eval mode, and its loss before every step.

    The codebooks start by k-means on the items of the first step. Deterministic given the seed; the global random state
    is left as it was.

    Raises ValueError for what `Recipe.codes_for` refuses, and for vectors that are not finite.
    """
    codes = recipe.codes_for(len(vectors))
    if not bool(vectors.isfinite().all()):
        raise ValueError("vectors: expected finite numbers")
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RQVAE(vectors.shape[1], recipe, codes)
        books = model.quantiser.codebooks
        others = [one for one in model.parameters() if one is not books]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": [books], "lr": _FASTER * recipe.learning_rate}]
        optimiser = torch.optim.AdamW(groups, recipe.learning_rate, weight_decay=recipe.weight_decay)
        warmup = max(1, recipe.steps // 20)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser,
            lambda step: min((step + 1) / warmup, (recipe.steps - step) / max(1, recipe.steps - warmup)),
        )
        with torch.no_grad():
            model.quantiser.start(model.encoder(vectors[_drawn(len(vectors))]), seed)
        for _ in tqdm(range(recipe.steps), desc="codes", delay=2, leave=False):
            loss, _ = model(vectors[_drawn(len(vectors))])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
    return model.eval(), losses


def _drawn(items: int) -> Tensor | slice:
    return slice(None) if items <= _LARGEST_BATCH else torch.randperm(items)[:_LARGEST_BATCH]


def _mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(widths):
        linear = nn.Linear(size_in, size_out)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
