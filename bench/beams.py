"""Recommending by generated codes, SmolLM2-135M: our beam over the items' codes against transformers' own constrained
beam search on the same model, its low-rank weights merged and its vocabulary enlarged.

    python -m bench.beams [users] [a round]

Both rank 20 of 1,682 items of random codes behind histories of 50 items. That both find the same items is checked in
float32 first; then they take turns in the dtype that is fast here, each round with users of its own, and the CPU time
per user is printed.
"""

import random
import sys
import time
from collections.abc import Callable
from operator import truediv
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cora.codes import ItemCodes
from cora.codes.assign import random_codes
from cora.llm.loading import chosen_dtype, load_base
from cora.methods.lcrec.config import LCRecConfig
from cora.methods.lcrec.model import LCRecModel

NAME, ITEMS, LEVELS, SIZE, BEAM, HISTORY = "smollm2-135m", 1682, 3, 32, 20, 50
Lists = list[list[int]]


def built(dtype: torch.dtype) -> LCRecModel:
    """A model whose codes and low-rank weights are random, as trained ones are in size."""
    torch.manual_seed(0)
    codes = ItemCodes(list(range(ITEMS)), random_codes(ITEMS, LEVELS, SIZE, seed=0), SIZE)
    model = LCRecModel(load_base(NAME, dtype=dtype), LCRecConfig(beam=BEAM), codes).eval()
    with torch.no_grad():
        model.tokens.rows.normal_(std=0.1)
        model.tokens.head.copy_(model.tokens.rows)  # as transformers ties them here
        for matrix in model.lora_bs:
            matrix.normal_(std=0.02)
    return model


def prompts(model: LCRecModel, users: int) -> Lists:
    """Twenty tokens of text and the codes of a history, of each user."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(100, 40000, (20,), generator=generator).tolist()
    histories = torch.randint(ITEMS, (users, HISTORY), generator=generator)
    return [text + model.tokens.item_tokens[one].flatten().tolist() for one in histories]


def ours(model: LCRecModel, asked: Lists) -> Lists:
    return model.rank(asked).items.tolist()


def stock(model: LCRecModel) -> Callable[[Lists], Lists]:
    """transformers' generate, held to the items by a function of the beginning; takes the model apart."""
    rows, tokens = model.tokens.rows.detach().clone(), model.tokens.item_tokens.tolist()
    changes = {name: one.scaling * (one.lora_a @ one.lora_b).detach() for name, one in model.deltas(None).items()}
    base: Any = model.unpatch()
    first = len(base.get_input_embeddings().weight)
    with torch.no_grad():
        for name, change in changes.items():
            base.get_submodule(name).weight += change.t().to(base.dtype)
        base.resize_token_embeddings(first + len(rows))
        base.get_input_embeddings().weight[first:] = rows  # the head is tied to it
    behind: dict[tuple[int, ...], list[int]] = {}
    for one in tokens:
        for level in range(LEVELS):
            behind.setdefault(tuple(one[:level]), []).append(one[level])
    item_of = {tuple(one): item for item, one in enumerate(tokens)}

    def run(asked: Lists) -> Lists:
        length = len(asked[0])

        def following(_: int, sequence: Tensor) -> list[int]:
            return behind[tuple(sequence[length:].tolist())]

        found = base.generate(
            input_ids=torch.tensor(asked),
            attention_mask=torch.ones(len(asked), length, dtype=torch.int64),
            num_beams=BEAM,
            num_return_sequences=BEAM,
            max_new_tokens=LEVELS,
            prefix_allowed_tokens_fn=following,
            renormalize_logits=True,
            eos_token_id=None,
            do_sample=False,
        )
        items = [item_of[tuple(one)] for one in found[:, length:].tolist()]
        return [items[start : start + BEAM] for start in range(0, len(items), BEAM)]

    return run


def processor_seconds(run: Callable[[], object], calls: int) -> float:
    """Seconds of a call that the process had a processor, whoever else used the machine meanwhile."""
    start = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - start) / calls


def main(users: int = 100, a_round: int = 10) -> None:
    exact = built(torch.float32)
    asked = prompts(exact, users)
    got = ours(exact, asked[:1])
    assert got == stock(exact)(asked[:1]), "the two do not find the same items"
    dtype = chosen_dtype("auto", torch.device("cpu"))
    mine, theirs = built(dtype), stock(built(dtype))
    runs: dict[str, Callable[[Lists], Lists]] = {"ours": lambda lists: ours(mine, lists), "transformers": theirs}
    for run in runs.values():
        run(asked[:1])  # what is prepared once
    order, seconds = random.Random(0), {name: [] for name in runs}
    for start in range(0, users, a_round):
        some = asked[start : start + a_round]
        for name in order.sample(list(runs), len(runs)):
            seconds[name].append(processor_seconds(lambda run=runs[name], some=some: run(some), 1) / len(some))
    print(f"CPU seconds a user, {len(seconds['ours'])} rounds of {a_round} users, {dtype}: median, least, most")
    for name, samples in seconds.items():
        print(f"{name:<14}" + "".join(f"{f(samples):8.3f}" for f in (median, min, max)))
    ratio = median(map(truediv, seconds["transformers"], seconds["ours"]))
    print(f"transformers over ours: {ratio:.1f}, median of the rounds")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
