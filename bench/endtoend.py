"""CoRA on SmolLM2-135M in bf16: one training step and one scoring batch, ours, as one writes it, and the frozen LLM.

A contestant is built as CONTESTANTS[name](setting, what) and gives the function that is timed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cora import CoRAConfig, CoRAModel
from cora.collaborative import CollaborativeEmbeddings
from cora.llm.deltas import Delta
from cora.llm.loading import load_base, load_tokenizer
from cora.prompts import PromptCollator, PromptTemplate

NAME, BATCH, SHORTEST, LONGEST, DIM = "smollm2-135m", 16, 120, 200, 256
WHAT = ("training step", "scoring batch")
_TITLES = ("Casablanca", "Star Wars", "Toy Story", "The Silence of the Lambs", "Back to the Future", "Grease", "Speed")


@dataclass(frozen=True)
class Setting:
    """A batch of prompts padded on the right, of 120 to 200 random tokens each, and the model's settings."""

    device: str
    dtype: torch.dtype
    config: CoRAConfig
    embeddings: CollaborativeEmbeddings
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    user_ids: list[int]
    item_ids: list[int]

    @classmethod
    def make(cls, device: str) -> "Setting":
        generator = torch.Generator().manual_seed(0)
        config = CoRAConfig(dropout=0.0, generator_dropout=0.0).with_answer_ids(load_tokenizer(NAME))
        ids = list(range(BATCH))
        users, items = (torch.randn(BATCH, DIM, generator=generator) for _ in range(2))
        lengths = torch.linspace(SHORTEST, LONGEST, BATCH).long()
        mask = (torch.arange(LONGEST) < lengths[:, None]).long()
        tokens = torch.randint(100, 40000, mask.shape, generator=generator) * mask
        labels = (torch.arange(BATCH) % 2).float()
        embeddings = CollaborativeEmbeddings(ids, ids, users, items)
        tensors = tokens.to(device), mask.to(device), labels.to(device)
        return cls(device, torch.bfloat16, config, embeddings, *tensors, ids, ids)

    @property
    def tokens(self) -> int:
        """Tokens that are no padding."""
        return int(self.attention_mask.sum())

    def model(self) -> CoRAModel:
        """The same random generator and P at every call; P is not zero, so that all gradients are not."""
        torch.manual_seed(0)
        base = load_base(NAME, dtype=self.dtype).to(self.device)
        model = CoRAModel(base, self.config, self.embeddings).to(self.device)
        for matrix in matrices(model):
            nn.init.normal_(matrix, std=0.05)
        return model.train()


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """Every P."""
    return [parameter for name, parameter in model.named_parameters() if ".p." in name]


class StockCoRA(nn.Module):
    """The same model as one writes it: hooks that add x @ A @ P, attention masks, and the whole head."""

    def __init__(self, model: CoRAModel) -> None:
        super().__init__()
        self.pairs, self.generator = model.pairs, model.generator
        self.embeddings, self.config = model.embeddings, model.config
        names = list(model.patch.layers)
        self.base: Any = model.unpatch().requires_grad_(False)
        self.generated: dict[str, Delta] = {}
        for name in names:
            self.base.get_submodule(name).register_forward_hook(self._adding(name))

    def _adding(self, name: str) -> Callable[..., Tensor]:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            a, p, scaling = self.generated[name]
            return output + scaling * (args[0] @ a.to(output.dtype) @ p.to(output.dtype))

        return add

    def forward(self, setting: Setting) -> tuple[Tensor, Tensor]:
        """Loss [] and logits [B]."""
        rows = self.embeddings.lookup_users(setting.user_ids), self.embeddings.lookup_items(setting.item_ids)
        self.generated = self.generator(*self.pairs(*rows))
        logits = self.base(input_ids=setting.input_ids, attention_mask=setting.attention_mask, use_cache=False).logits
        answers = logits[torch.arange(len(logits)), setting.attention_mask.sum(1) - 1]
        yes, no = self.config.answer_ids or ()
        scores = answers[:, yes] - answers[:, no]
        scores = scores if scores.dtype == torch.float64 else scores.float()
        return functional.binary_cross_entropy_with_logits(scores, setting.labels.to(scores)), scores


def ours(setting: Setting, what: str) -> Callable[[], object]:
    model = setting.model()
    batch = (setting.input_ids, setting.attention_mask, setting.user_ids, setting.item_ids)
    if what == "scoring batch":
        return lambda: model.score(*batch)
    return stepping(model, [lambda: model(*batch, setting.labels).loss])


def stock(setting: Setting, what: str) -> Callable[[], object]:
    model = StockCoRA(setting.model())
    if what == "scoring batch":
        return torch.no_grad()(lambda: model(setting)[1])
    return stepping(model, [lambda: model(setting)[0]])


def frozen(setting: Setting, what: str) -> Callable[[], object]:
    """The language model's own forward, without a head; in training with the gradient of its embedded input."""
    base: Any = load_base(NAME, dtype=setting.dtype).to(setting.device).requires_grad_(False)
    embedded = base.get_input_embeddings()(setting.input_ids).detach()

    def forward(x: Tensor) -> Tensor:
        hidden = base.model(inputs_embeds=x, use_cache=False).last_hidden_state
        return hidden[torch.arange(BATCH), setting.attention_mask.sum(1) - 1]

    if what == "scoring batch":
        return torch.no_grad()(lambda: forward(embedded))

    def step() -> object:
        x = embedded.detach().requires_grad_()
        return torch.autograd.grad(forward(x).float().square().sum(), x)

    return step


CONTESTANTS: dict[str, Callable[[Setting, str], Callable[[], object]]] = {
    "frozen LLM": frozen,
    "stock transformers": stock,
    "ours": ours,
}


def stepping(model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> Callable[[], object]:
    """A training step of the gradients of all losses, one after another."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        for loss in losses:
            loss().backward()
        optimizer.step()

    return step


def three_ways() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Scores of short prompts and what a fixed gradient of them gives: ours, the stock way's, and the stock way's in
    float64. The loss's own gradient would add the scores' error, which is compared for itself."""
    setting = _readable()
    model = setting.model()
    scores = model(setting.input_ids, setting.attention_mask, setting.user_ids, setting.item_ids).logits
    found = [_gradients(model, scores, setting.labels)]
    for dtype in (torch.bfloat16, torch.float64):
        one = StockCoRA(setting.model()).to(dtype) if dtype == torch.float64 else StockCoRA(setting.model())
        found.append(_gradients(one, one(setting)[1], setting.labels))
    return found[0], found[1], found[2]


def _readable() -> Setting:
    """Prompts of real words: after random tokens the gradients of two equally exact ways differ twofold by chance."""
    prompts = [PromptTemplate().render(_TITLES[i % 5 : i % 5 + 2], _TITLES[i % 7]) for i in range(BATCH)]
    rows = [
        {"input_ids": ids, "user_id": 0, "item_id": 0, "label": 0} for ids in load_tokenizer(NAME)(prompts).input_ids
    ]
    batch = PromptCollator(load_tokenizer(NAME), "right")(rows)
    return replace(Setting.make("cpu"), input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def _gradients(model: Any, scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    scores.backward(2 * labels.to(scores) - 1)
    named = {"scores": scores.detach()}
    ps = matrices(model)
    others = [p for p in model.generator.parameters() if all(p is not one for one in ps)]
    for name, part in (("d P", ps), ("d generator", others)):
        named[name] = torch.cat([p.grad.flatten() for p in part if p.grad is not None])
    return named
