"""Examples of the tasks: prompts and responses as tokens, with the targets that training asks for."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from cora.methods.lcrec import templates
from cora.methods.lcrec.config import LCRecConfig
from cora.prompts.parts import Parts
from cora.prompts.template import one_line

IGNORED = -100
_TITLE_TOKENS = 32  # of one title, at most
_HISTORY = 10  # items of a history beside titles: titles are many tokens


class Example(NamedTuple):
    """tokens: what the model reads; labels: of each position the token that follows, -100 where that is no target.
    user: whose it is, None for nobody's; before: how many of the user's training items come before it."""

    tokens: list[int]
    labels: list[int]
    user: int | None = None
    before: int = 0


class TaskEncoder:
    """Histories, titles and codes as token ids. A prompt and its response are tokenised apart and joined as ids, and so
    are the text of a template and what fills it; titles are text on one line, and no special token is made of them.

    item_tokens: int64 [items, L], the tokens of each item's code (`CodeTokens`); titles: of each item.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, item_tokens: Tensor, titles: Sequence[str]) -> None:
        self._parts = Parts(tokenizer)
        self.codes: list[list[int]] = item_tokens.tolist()
        quoted = self._parts.as_texts([f' "{one_line(title)}"' for title in titles])
        self.titles = [one[:_TITLE_TOKENS] for one in quoted]
        end = tokenizer.eos_token_id
        self._end = [] if end is None else [int(end)]
        self._texts: dict[tuple[str, bool], list[int]] = {}

    def sequence(self, items: Sequence[int], template: int = 0) -> list[int]:
        """The prompt that a history ends: behind it the code of the next item begins."""
        return self._filled(templates.SEQREC[template], [one for item in items for one in self.codes[item]])

    def dense(self, items: Sequence[int], template: int) -> Example:
        """A sequence of which every code is a target."""
        return _example(self.sequence([], template), [one for item in items for one in self.codes[item]])

    def next_item(self, history: Sequence[int], item: int, template: int) -> Example:
        """The same with the code of the next item alone as the targets."""
        return _example(self.sequence(history, template), self.codes[item])

    def title_to_code(self, item: int, template: int) -> Example:
        return _example(self._filled(templates.TITLE_TO_CODE[template], self.titles[item]), self.codes[item])

    def code_to_title(self, item: int, template: int) -> Example:
        prompt = self._filled(templates.CODE_TO_TITLE[template], self.codes[item])
        return _example(prompt, self.titles[item] + self._end)

    def history_to_title(self, history: Sequence[int], item: int, template: int) -> Example:
        codes = [one for earlier in history for one in self.codes[earlier]]
        prompt = self._filled(templates.HISTORY_TO_TITLE[template], codes)
        return _example(prompt, self.titles[item] + self._end)

    def titles_to_code(self, history: Sequence[int], item: int, template: int) -> Example:
        titles: list[int] = []
        for earlier in history:
            titles += [*(self._text(",", False) if titles else []), *self.titles[earlier]]
        return _example(self._filled(templates.TITLES_TO_CODE[template], titles), self.codes[item])

    def _filled(self, template: str, slot: list[int]) -> list[int]:
        """The template's tokens with those of the slot in the place of its field, or at its end where it has none."""
        before, field, behind = template.partition("{")
        tail = behind.partition("}")[2] if field else ""
        return [*self._text(before.rstrip(), True), *slot, *self._text(tail, False)]

    def _text(self, text: str, begins: bool) -> list[int]:
        if (text, begins) not in self._texts:
            self._texts[text, begins] = self._parts.tokens([[(text, False)]], begins)[0] if text or begins else []
        return self._texts[text, begins]


class Tasks(Dataset[Example]):
    """The examples of training, epoch after epoch without end, each epoch in an order and with templates of its own.

    An epoch has of every user's training items as few sequences of at most max_history + 1 items as hold them, cut at
    other places each time; of every item, as the configuration's tasks say, its title's code and its code's title; and
    of every user one history with a title in it or behind it. The same seed and index give the same example.

    training: of each user their training items, oldest first, from which everything is made.
    """

    def __init__(self, encoder: TaskEncoder, training: Sequence[np.ndarray], config: LCRecConfig, seed: int) -> None:
        self.encoder, self.training, self.config, self.seed = encoder, training, config, seed
        longest = config.max_history + 1
        self._entries: list[tuple[str, int, int]] = []  # task, user or item, which of its sequences
        for user, items in enumerate(training):
            parts = -(-len(items) // longest)
            self._entries += [("seqrec", user, part) for part in range(parts + 1 if parts > 1 else parts)]
        of_items = [name for name in ("item2index", "index2item") if name in config.tasks]
        self._entries += [(name, item, 0) for name in of_items for item in range(len(encoder.codes))]
        if "fusion" in config.tasks:
            self._entries += [("fusion", user, 0) for user, items in enumerate(training) if len(items) > 1]
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    @property
    def epoch(self) -> int:
        """How many examples an epoch has."""
        return len(self._entries)

    def __getitem__(self, index: int) -> Example:
        epoch, place = divmod(index, len(self._entries))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self._entries))
        entry = int(self._order[1][place])
        task, which, part = self._entries[entry]
        random = np.random.default_rng([self.seed, epoch, entry])
        if task == "seqrec":
            return self._sequence(which, part, epoch, random)
        if task == "item2index":
            return self.encoder.title_to_code(which, int(random.integers(len(templates.TITLE_TO_CODE))))
        if task == "index2item":
            return self.encoder.code_to_title(which, int(random.integers(len(templates.CODE_TO_TITLE))))
        return self._fusion(which, random)

    def _sequence(self, user: int, part: int, epoch: int, random: np.random.Generator) -> Example:
        items = self.training[user]
        parts = -(-len(items) // (self.config.max_history + 1))
        start, stop = 0, len(items)
        if parts > 1:  # The cuts of all parts of a user are one draw.
            shift = int(np.random.default_rng([self.seed, epoch, user]).integers(1, max(2, len(items) // parts)))
            cuts = [0, *(shift + len(items) * one // parts for one in range(parts)), len(items)]
            start, stop = cuts[part], cuts[part + 1]
        template, window = int(random.integers(len(templates.SEQREC))), items[start:stop].tolist()
        if self.config.targets == "dense":
            made = self.encoder.dense(window, template)
        else:
            cut = int(random.integers(len(window)))
            made = self.encoder.next_item(window[:cut], window[cut], template)
        return made._replace(user=user, before=start)

    def _fusion(self, user: int, random: np.random.Generator) -> Example:
        items = self.training[user].tolist()
        place = int(random.integers(1, len(items)))
        start = max(0, place - _HISTORY)
        history, item = items[start:place], items[place]
        if random.integers(2):
            made = self.encoder.history_to_title(history, item, int(random.integers(len(templates.HISTORY_TO_TITLE))))
        else:
            made = self.encoder.titles_to_code(history, item, int(random.integers(len(templates.TITLES_TO_CODE))))
        return made._replace(user=user, before=start)


def collated(examples: Sequence[Example]) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels [B, T] of examples, padded on the right, as `LCRecModel` takes them."""
    width = max(len(one.tokens) for one in examples)
    shape = len(examples), width
    ids, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED)
    for row, one in enumerate(examples):
        length = len(one.tokens)
        ids[row, :length], mask[row, :length] = torch.tensor(one.tokens), 1
        labels[row, :length] = torch.tensor(one.labels)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _example(prompt: list[int], response: list[int]) -> Example:
    """Of the tokens of both all but the last are read; the targets are those of the response."""
    tokens = [*prompt, *response]
    return Example(tokens[:-1], [IGNORED] * (len(prompt) - 1) + response)
