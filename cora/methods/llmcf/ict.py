"""ICT: a small causal transformer that reads examples, why each was liked or disliked, and then the row itself."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cora.methods.llmcf.backbones import MLP

_TINY = 1e-8
_BASE = 10_000.0  # of the rotations, as published for RoPE


class ICT(nn.Module):
    """f = h at the last position of a causal transformer over [x_1, t_1, y_1, …, x_k, t_k, y_k, x].

        x_j = MLP(fields of example j)            fields -> hidden -> width; x likewise, of the row
        t_j = MLP_text(vector of its text)        text -> hidden -> width; no such position without texts
        y_j = E[label of example j]
        L_cot = 1 - mean_j cos(MLP_back(h at x_j), vector of its text)    over the examples that are there

    fields: width of the flattened fields; text: of the vectors, None for none; width: of f. Examples that are not there
    come first and are seen from nowhere; positions are relative, so that the rest is as if they were not. RMSNorm
    before each part, RoPE, SwiGLU, no biases and no dropout. Text vectors are given and not trained.
    Source: Sun et al., LLM-CF, CIKM 2024, arXiv 2403.17688.
    """

    def __init__(
        self, fields: int, text: int | None, width: int = 32, hidden: int = 64, layers: int = 2, heads: int = 2
    ) -> None:
        super().__init__()
        self.of_row = MLP(fields, (hidden,), width)
        self.of_text = None if text is None else MLP(text, (hidden,), width)
        self.back = None if text is None else MLP(width, (hidden,), text)
        self.label = nn.Embedding(2, width)
        self.blocks = nn.ModuleList(_Block(width, hidden, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(width)

    @property
    def step(self) -> int:
        """Positions of an example."""
        return 2 if self.of_text is None else 3

    def forward(self, row: Tensor, examples: Tensor, texts: Tensor | None, labels: Tensor, there: Tensor) -> Tensor:
        """h [B, step·k + 1, width] of row [B, fields], examples [B, k, fields], their texts [B, k, text], labels int64
        [B, k] and which are there, bool [B, k]."""
        return self.read(self.of_row(row), self.of_row(examples), self._text(texts), labels, there)

    def read(
        self, x: Tensor, examples: Tensor, texts: Tensor | None, labels: Tensor, there: Tensor, last: bool = False
    ) -> Tensor:
        """The same of what the MLPs have made: x [B, width], examples and texts [B, k, width]. last: whether the last
        position alone is asked for, [B, 1, width], which spares half of the work."""
        parts = [examples, *([] if texts is None else [texts]), self.label(labels)]
        told = torch.stack(parts, 2).flatten(1, 2)
        seen = functional.pad(there.repeat_interleave(self.step, 1), (0, 1), value=True)
        h = torch.cat([told, x[:, None]], 1)
        places = torch.arange(h.shape[1], device=h.device)
        # A position that is not there sees itself, so that it has something to see; nobody sees it.
        itself = places[:, None] == places
        allowed = (seen[:, None] & (places[:, None] >= places)) | itself
        for block in self.blocks[:-1]:
            h = block(h, allowed[:, None])
        found: Tensor = self.norm(self.blocks[-1](h, allowed[:, None], last))
        return found

    def text_loss(self, h: Tensor, texts: Tensor, there: Tensor) -> Tensor:
        """L_cot [] of h as `forward` gives it; 0 where no example is there."""
        assert self.back is not None
        found, wanted = self.back(h[:, : -1 : self.step][there]), texts[there]
        # As functional.cosine_similarity, in half its time: the vectors are the widest thing here.
        norms = torch.linalg.vector_norm(found, dim=1) * torch.linalg.vector_norm(wanted, dim=1)
        cosines = torch.linalg.vecdot(found, wanted) / norms.clamp(min=_TINY)
        return (1 - cosines).sum() / there.sum().clamp(min=1)

    def _text(self, texts: Tensor | None) -> Tensor | None:
        return None if self.of_text is None else self.of_text(texts)


class _Block(nn.Module):
    """h + Attention(norm h), then h + SwiGLU(norm h)."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.qk = nn.Linear(width, 2 * width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, h: Tensor, allowed: Tensor, last: bool = False) -> Tensor:
        """[B, T, width] of h [B, T, width] and what each position may see, bool [B, 1, T, T]; of the last one alone."""
        normed = self.norms[0](h)
        q, k = self._rotated(normed).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        v = self.v(normed).unflatten(2, (self.heads, -1)).transpose(1, 2)
        if last:
            h, q, allowed = h[:, -1:], q[:, :, -1:], allowed[:, :, -1:]
        read = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        h = h + self.out(read.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norms[1](h)).chunk(2, -1)
        return h + self.down(functional.silu(gate) * up)

    def _rotated(self, normed: Tensor) -> Tensor:
        """q and k [B, T, 2·width], each pair (2i, 2i + 1) of them turned by the angle of its position and i (RoPE).

        (a, b) -> (a cos - b sin, b cos + a sin): what is (-b, a) comes from rows of the weight in that order, so that
        all is products of whole rows; halves of a few numbers each would take most of the time of a block.
        """
        pairs = self.qk.weight.unflatten(0, (-1, 2))
        turned = functional.linear(normed, torch.stack([-pairs[:, 1], pairs[:, 0]], 1).flatten(0, 1))
        cos, sin = _rotation(normed.shape[1], 2 * self.heads, normed)
        return self.qk(normed) * cos + turned * sin


def _rotation(length: int, copies: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [length, 2·width] of the angles of RoPE, of `copies` heads of q and k, each angle twice in a row."""
    width = 2 * like.shape[-1] // copies
    speeds = _BASE ** (-torch.arange(0, width, 2, device=like.device, dtype=like.dtype) / width)
    angles = torch.arange(length, device=like.device, dtype=like.dtype)[:, None] * speeds
    angles = angles.repeat_interleave(2, 1).repeat(1, copies)
    return angles.cos(), angles.sin()
