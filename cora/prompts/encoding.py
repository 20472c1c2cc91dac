"""Prompts as tokens: within a limit, and with no control token that the template does not hold."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cora.prompts.template import PromptTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptEncoder:
    """(histories, titles) → token ids of `template.render` of each, at most `max_length`.

    Special tokens in front of the text (Llama's BOS) are the tokenizer's own; an end-of-text token behind it is taken
    away, as the answer is read at the last position. What reads like a special token is one in the template and text
    in a title. A prompt that is too long loses titles of its history, the oldest first, as few as need be; one that is
    too long without any loses the end of the title asked about, never the question.

    shortened, cut: how many prompts so far have lost titles or the end of one, and how many of them the latter.
    Raises ValueError for a max_length that does not hold the template with neither history nor title.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: PromptTemplate, max_length: int) -> None:
        self.template = template
        self.max_length = max_length
        self.shortened = self.cut = 0
        self._tokenizer = tokenizer
        special = {token.content: one for one, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = {*special.values(), *tokenizer.all_special_ids}
        self._special = special
        self._split = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
        self._own = [self._count(self._encoded([template.render(some, "")])[0]) for some in ([], [""])]
        self._costs: dict[str, int] = {}
        self._cut_titles: dict[str, list[int]] = {}
        self._bare = len(self._tokens([[]], [""])[0])
        if self._bare > max_length:
            raise ValueError(
                f"max_length: the prompt with neither history nor title has {self._bare} tokens, more than {max_length}"
            )

    def __call__(self, histories: Sequence[list[str]], titles: Sequence[str]) -> list[list[int]]:
        tokens = self._tokens(histories, titles)
        long = [row for row, one in enumerate(tokens) if len(one) > self.max_length]
        if long:
            fitting = self._fitting([histories[row] for row in long], [titles[row] for row in long])
            for row, one in zip(long, fitting, strict=True):
                tokens[row] = one
            self.shortened += len(long)
        return tokens

    def _fitting(self, histories: list[list[str]], titles: list[str]) -> list[list[int]]:
        """The tokens of prompts that are too long with their whole histories.

        How many titles fit is told by the tokens that each has alone, and then corrected by one until it is so for
        the whole prompt: a history costs as much as its length, however long it is.
        """
        kept = self._estimates(histories, titles)
        too_many = [len(history) for history in histories]
        fitting: dict[int, list[int]] = {}
        todo = list(range(len(histories)))
        while todo:
            tried = self._tokens(
                [histories[row][len(histories[row]) - kept[row] :] for row in todo], [titles[row] for row in todo]
            )
            again = []
            for row, tokens in zip(todo, tried, strict=True):
                if len(tokens) <= self.max_length:
                    fitting[row] = tokens
                    kept[row] += 1
                    done = kept[row] == too_many[row]
                else:
                    too_many[row] = kept[row]
                    kept[row] -= 1
                    done = row in fitting
                if kept[row] < 0:
                    fitting[row] = self._with_cut_title(titles[row])
                elif not done:
                    again.append(row)
            todo = again
        return [fitting[row] for row in range(len(histories))]

    def _estimates(self, histories: list[list[str]], titles: list[str]) -> list[int]:
        """How many of the newest titles of each history may fit: fewer than all."""
        newest = [history[max(0, len(history) - self.max_length) :] for history in histories]
        new = list({title for one in [*newest, titles] for title in one} - self._costs.keys())
        if new:
            texts = [f'"{title}", ' for title in new]
            alone = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            self._costs.update(zip(new, map(len, alone), strict=True))
        found = []
        for history, part, title in zip(histories, newest, titles, strict=True):
            left = self.max_length - self._bare - self._costs[title]
            kept = 0
            for one in reversed(part):
                left -= self._costs[one]
                if left < 0:
                    break
                kept += 1
            # One title is tried before none, in whose place the template has words, which may be more.
            found.append(max(0, min(max(kept, 1), len(history) - 1)))
        return found

    def _with_cut_title(self, title: str) -> list[int]:
        """The longest beginning of the title, in characters, that fits without any history."""
        self.cut += 1
        if title not in self._cut_titles:
            fits, too_long = 0, self.max_length
            while too_long < len(title) and self._fits(title[:too_long]):
                fits, too_long = too_long, 2 * too_long
            too_long = min(too_long, len(title))
            while too_long - fits > 1:
                middle = (fits + too_long) // 2
                fits, too_long = (middle, too_long) if self._fits(title[:middle]) else (fits, middle)
            (self._cut_titles[title],) = self._tokens([[]], [title[:fits]])
        return self._cut_titles[title]

    def _fits(self, title: str) -> bool:
        return len(self._tokens([[]], [title])[0]) <= self.max_length

    def _tokens(self, histories: Sequence[list[str]], titles: Sequence[str]) -> list[list[int]]:
        """Of whole prompts, whatever their length."""
        tokens = self._encoded([self.template.render(*one) for one in zip(histories, titles, strict=True)])
        for row, (history, title) in enumerate(zip(histories, titles, strict=True)):
            if self._count(tokens[row]) != self._own[bool(history)]:
                tokens[row] = self._with_titles_as_text(history, title)
        return tokens

    def _encoded(self, prompts: list[str]) -> list[list[int]]:
        return [self._without_end(one) for one in self._tokenizer(prompts)["input_ids"]]

    def _count(self, tokens: list[int]) -> int:
        return sum(map(self._special_ids.__contains__, tokens))

    def _with_titles_as_text(self, history: list[str], title: str) -> list[int]:
        """The prompt in pieces: special tokens of the template as such, all between them as text."""
        pieces = [""]
        for text, is_title in self.template.pieces(history, title):
            start = 0
            for found in self._split.finditer("" if is_title else text):
                pieces[-1] += text[start : found.start()]
                pieces += [found[0], ""]
                start = found.end()
            pieces[-1] += text[start:]
        if len(pieces) == 1:
            return self._without_end(self._tokenizer(pieces[0], split_special_tokens=True)["input_ids"])
        plain = [[self._special[piece]] if row % 2 else self._as_text(piece) for row, piece in enumerate(pieces)]
        # What the tokenizer puts in front of a text, and behind it but for the end.
        around, inside = self._encoded(["x"])[0], self._as_text("x")
        start = next(at for at in range(len(around)) if around[at : at + len(inside)] == inside)
        return [*around[:start], *(one for piece in plain for one in piece), *around[start + len(inside) :]]

    def _as_text(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _without_end(self, tokens: list[int]) -> list[int]:
        return tokens[:-1] if tokens and tokens[-1] == self._tokenizer.eos_token_id else tokens
