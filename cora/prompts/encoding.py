"""Prompts as tokens: within a limit, and with no control token that the template does not hold."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from cora.prompts.parts import Parts, cut_for
from cora.prompts.template import PromptTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """The tokens of a prompt; prefix: how many of them come before the title asked about, None where it is whole."""

    tokens: list[int]
    prefix: int | None


class PromptEncoder:
    """(histories, titles) → token ids of `template.render` of each, at most `max_length`.

    Special tokens in front of the text (Llama's BOS) are the tokenizer's own; an end-of-text token behind it is taken
    away, as the answer is read at the last position. What reads like a special token is one in the template and text
    in a title. A prompt that is too long loses titles of its history, as few as need be, the oldest first or those
    that an order of keeping has last; one that is too long without any loses the end of the title asked about, never
    the question.

    split: whether prompts are two parts, each tokenised on its own, as `cut_for` cuts them: the text up to the title
    asked about, whose tokens are the same whatever that title is, and the rest.

    shortened, cut: how many prompts so far have lost titles or the end of one, and how many of them the latter.
    Raises ValueError for a max_length that does not hold the template with neither history nor title.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", template: PromptTemplate, max_length: int, split: bool = False
    ) -> None:
        self.template = template
        self.max_length = max_length
        self.shortened = self.cut = 0
        self._parts = Parts(tokenizer)
        self._split = cut_for(self._parts, template) if split else None
        self._costs: dict[str, int] = {}
        self._cut_titles: dict[str, Encoded] = {}
        self._bare = len(self._encoded([[]], [""])[0].tokens)
        if self._bare > max_length:
            raise ValueError(
                f"max_length: the prompt with neither history nor title has {self._bare} tokens, more than {max_length}"
            )

    def __call__(self, histories: Sequence[list[str]], titles: Sequence[str]) -> list[list[int]]:
        return [one.tokens for one in self.encode(histories, titles)]

    def encode(
        self, histories: Sequence[list[str]], titles: Sequence[str], orders: Sequence[Sequence[int]] | None = None
    ) -> list[Encoded]:
        """The same, with the number of tokens before each title where prompts are split. orders: of each history the
        places of its titles, the one to be kept longest first; None for the newest first."""
        if orders is None:
            orders = [range(len(one) - 1, -1, -1) for one in histories]
        # No title is less than a token: longer histories cannot fit, and are not read to their end.
        short = [row for row, one in enumerate(histories) if len(one) <= self.max_length]
        whole = self._encoded([histories[row] for row in short], [titles[row] for row in short])
        found = {row: one for row, one in zip(short, whole, strict=True) if len(one.tokens) <= self.max_length}
        if long := [row for row in range(len(histories)) if row not in found]:
            fitting = self._fitting(
                [histories[row] for row in long], [titles[row] for row in long], [orders[row] for row in long]
            )
            found |= zip(long, fitting, strict=True)
            self.shortened += len(long)
        return [found[row] for row in range(len(histories))]

    def _fitting(self, histories: list[list[str]], titles: list[str], orders: list[Sequence[int]]) -> list[Encoded]:
        """The tokens of prompts that are too long with their whole histories.

        How many titles fit is told by the tokens that each has alone, and then corrected by one until it is so for
        the whole prompt: a history costs as much as its length, however long it is.
        """
        kept = self._estimates(histories, titles, orders)
        too_many = [len(history) for history in histories]
        fitting: dict[int, Encoded] = {}
        todo = list(range(len(histories)))
        while todo:
            tried = self._encoded(
                [[histories[row][place] for place in sorted(orders[row][: kept[row]])] for row in todo],
                [titles[row] for row in todo],
            )
            again = []
            for row, one in zip(todo, tried, strict=True):
                if len(one.tokens) <= self.max_length:
                    fitting[row] = one
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

    def _estimates(self, histories: list[list[str]], titles: list[str], orders: list[Sequence[int]]) -> list[int]:
        """How many titles of each history, in their order, may fit: fewer than all."""
        first = [
            [history[place] for place in order[: self.max_length]]
            for history, order in zip(histories, orders, strict=True)
        ]
        new = list({title for one in [*first, titles] for title in one} - self._costs.keys())
        if new:
            alone = self._parts.as_texts([f'"{title}", ' for title in new])
            self._costs.update(zip(new, map(len, alone), strict=True))
        found = []
        for history, part, title in zip(histories, first, titles, strict=True):
            left = self.max_length - self._bare - self._costs[title]
            kept = 0
            for one in part:
                left -= self._costs[one]
                if left < 0:
                    break
                kept += 1
            # One title is tried before none, in whose place the template has words, which may be more.
            found.append(max(0, min(max(kept, 1), len(history) - 1)))
        return found

    def _with_cut_title(self, title: str) -> Encoded:
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
            (self._cut_titles[title],) = self._encoded([[]], [title[:fits]])
        return self._cut_titles[title]

    def _fits(self, title: str) -> bool:
        return len(self._encoded([[]], [title])[0].tokens) <= self.max_length

    def _encoded(self, histories: Sequence[list[str]], titles: Sequence[str]) -> list[Encoded]:
        """Whole prompts, whatever their length."""
        pieces = [self.template.pieces(*one) for one in zip(histories, titles, strict=True)]
        if self._split is None:
            return [Encoded(tokens, None) for tokens in self._parts.tokens(pieces, begins=True)]
        halves = [self._split.halves(one) for one in pieces]
        before = self._parts.tokens([half for half, _ in halves], begins=True)
        after = self._parts.tokens([half for _, half in halves], begins=False)
        return [Encoded([*front, *back], len(front)) for front, back in zip(before, after, strict=True)]
