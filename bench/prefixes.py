"""Prompts that begin alike, on SmolLM2-135M in bf16: many candidates of one user, and training rows of a few.

Ours with shared_prefix, ours with a delta of the pair from the first token on (the published form), and that form as
one writes it. A contestant is built as CONTESTANTS[name](batch) and gives the function that is timed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.endtoend import DIM, NAME, Setting, StockCoRA, matrices, stepping
from cora import CoRAConfig, CoRAModel
from cora.collaborative import CollaborativeEmbeddings
from cora.llm.loading import load_base, load_tokenizer
from cora_kernels import use_backend

# Of MovieLens-100k's valid rows: 128 tokens up to the title asked about, 24 to 30 from there on.
PREFIX, SHORTEST, LONGEST, AT_ONCE = 128, 24, 30, 16


@dataclass(frozen=True)
class Batch:
    """`users` users with `targets` prompts each, of random tokens, those of a user alike up to PREFIX."""

    what: str
    users: int
    targets: int

    @property
    def case(self) -> str:
        tokens = f"{PREFIX} tokens and {SHORTEST} to {LONGEST} behind them"
        return f"{self.what}, SmolLM2-135M bf16, {self.users} × {self.targets} prompts of {tokens}"

    @property
    def rows(self) -> int:
        return self.users * self.targets

    @property
    def trains(self) -> bool:
        return self.what.startswith("training")

    @property
    def user_ids(self) -> list[int]:
        return [user for user in range(self.users) for _ in range(self.targets)]

    def tokens(self) -> tuple[Tensor, Tensor]:
        """input_ids and attention_mask [rows, T], padded on the right."""
        generator = torch.Generator().manual_seed(0)
        lengths = PREFIX + SHORTEST + torch.arange(self.rows) % (LONGEST - SHORTEST + 1)
        mask = (torch.arange(PREFIX + LONGEST) < lengths[:, None]).long()
        tokens = torch.randint(100, 40000, mask.shape, generator=generator)
        tokens[:, :PREFIX] = tokens[:: self.targets, :PREFIX].repeat_interleave(self.targets, 0)
        return tokens * mask, mask

    @property
    def prefix_lengths(self) -> Tensor:
        return torch.full((self.rows,), PREFIX)

    def model(self, shared_prefix: bool, dtype: torch.dtype = torch.bfloat16) -> CoRAModel:
        """The same random generator and P at every call."""
        generator = torch.Generator().manual_seed(0)
        config = CoRAConfig(dropout=0.0, generator_dropout=0.0, shared_prefix=shared_prefix)
        users, items = (torch.randn(n, DIM, generator=generator) for n in (self.users, self.rows))
        embeddings = CollaborativeEmbeddings(list(range(self.users)), list(range(self.rows)), users, items)
        torch.manual_seed(0)
        model = CoRAModel(load_base(NAME, dtype=dtype), config.with_answer_ids(load_tokenizer(NAME)), embeddings)
        for matrix in matrices(model):
            nn.init.normal_(matrix, std=0.05)
        return model.train()


BATCHES = (Batch("100 candidates of one user", 1, 100), Batch("training rows of 7 users", 7, 8))


def ours(batch: Batch, shared_prefix: bool = True) -> Callable[[], object]:
    model = batch.model(shared_prefix)
    ids, mask = batch.tokens()
    rows: list[Any] = [ids, mask, batch.user_ids, list(range(batch.rows))]
    prefix = batch.prefix_lengths if shared_prefix else None
    if not batch.trains:
        return lambda: model.score(*rows, prefix_lengths=prefix)
    labels = (torch.arange(batch.rows) % 2).float()
    if shared_prefix:
        return stepping(model, [lambda: model(*rows, labels, prefix_lengths=prefix).loss])

    def loss(part: slice) -> Callable[[], Tensor]:
        return lambda: model(*(one[part] for one in rows), labels[part]).loss

    return stepping(model, [loss(part) for part in _parts(batch)])


def separate(batch: Batch) -> Callable[[], object]:
    return ours(batch, shared_prefix=False)


def stock(batch: Batch) -> Callable[[], object]:
    model, (ids, mask) = StockCoRA(batch.model(False)), batch.tokens()
    labels = (torch.arange(batch.rows) % 2).float()
    settings = [
        Setting("cpu", torch.bfloat16, model.config, model.embeddings, ids[part], mask[part], labels[part],
                batch.user_ids[part], list(range(batch.rows))[part])
        for part in _parts(batch)
    ]  # fmt: skip
    if not batch.trains:
        return torch.no_grad()(lambda: torch.cat([model(one)[1] for one in settings]))
    return stepping(model, [lambda one=one: model(one)[0] for one in settings])


def _parts(batch: Batch) -> list[slice]:
    return [slice(start, start + AT_ONCE) for start in range(0, batch.rows, AT_ONCE)]


CONTESTANTS: dict[str, Callable[[Batch], Callable[[], object]]] = {
    "stock transformers": stock,
    "separate prompts": separate,
    "ours": ours,
}


def three_ways() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Scores and gradients of a small batch: prompts that share their beginning, each by itself with the same deltas,
    and the latter in float64."""
    batch = replace(BATCHES[1], users=2, targets=4)
    found = []
    for dtype, backend in ((torch.bfloat16, None), (torch.bfloat16, "reference"), (torch.float64, "reference")):
        model, (ids, mask) = batch.model(True, dtype), batch.tokens()
        if dtype == torch.float64:
            model.double()
        with use_backend(backend):
            out = model(ids, mask, batch.user_ids, list(range(batch.rows)), prefix_lengths=batch.prefix_lengths)
            scores = out.logits
            scores.backward(torch.arange(batch.rows).to(scores) % 2 - 0.5)
        trained = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append({"scores": scores.detach(), "gradients": torch.cat(trained)})
    return found[0], found[1], found[2]
