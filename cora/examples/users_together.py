"""python -m cora.examples.users_together: an adapter for each of eight users, all trained in the same batches.

Each user counts in steps of their own: 3, 5, 7, … for one, 3, 6, 9, … for another. One frozen language model, tiny and
random, learns all of them at once: a batch has a row of every user, and every row its own LoRA. The adapters are then
written in PEFT's format, one folder a user.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import cora
from cora.export.adapter import Adapter, Factors
from cora.export.bank import AdapterBank

NUMBERS, RANK = 32, 8
USERS = {f"user{i}": i for i in range(1, 9)}  # the step that each counts in


def main(steps: int = 100) -> tuple[float, float]:
    """Trains them; returns how often the next number is right by one's own adapter, and by another user's."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=NUMBERS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    patch = cora.patch(model, "all-linear")
    bank = AdapterBank({user: Adapter(_start(patch), None) for user in USERS}, model)
    optimizer = torch.optim.Adam(bank.parameters(), lr=1e-2)
    for step in range(steps):
        ids = _counted(list(USERS))
        patch.set_deltas(bank.deltas(list(USERS)))
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0:
            print(f"step {step:4d}  loss {loss.item():.3f}")
    own = _right(model, patch, bank, list(USERS))
    others = _right(model, patch, bank, list(USERS)[::-1])
    print(f"the next number is right: {own:.0%} by one's own adapter, {others:.0%} by another user's")
    with tempfile.TemporaryDirectory() as folder:
        bank.save_pretrained(folder)
        print("as PEFT adapters:", ", ".join(sorted(path.name for path in Path(folder).iterdir())))
    return own, others


def _start(patch: cora.Patch) -> dict[str, Factors]:
    """LoRA's start: A uniform, B zero."""
    return {
        name: Factors(
            torch.empty(layer.in_features, RANK).uniform_(-1, 1) / layer.in_features**0.5,
            torch.zeros(RANK, layer.out_features),
            2.0,
        )
        for name, layer in patch.layers.items()
    }


def _counted(users: list[str], length: int = 12) -> Tensor:
    """A row of numbers for each user, from a number drawn on, around at the end."""
    steps = torch.tensor([USERS[user] for user in users])[:, None]
    return (torch.randint(NUMBERS, (len(users), 1)) + steps * torch.arange(length)) % NUMBERS


@torch.no_grad()
def _right(model: LlamaForCausalLM, patch: cora.Patch, bank: AdapterBank, adapters: list[str]) -> float:
    ids = _counted(list(USERS))
    patch.set_deltas(bank.deltas(adapters))
    # From the second number on the step is known to one who knows the user alone.
    return (model(input_ids=ids).logits[:, :-1].argmax(-1) == ids[:, 1:]).float().mean().item()


if __name__ == "__main__":
    main()
